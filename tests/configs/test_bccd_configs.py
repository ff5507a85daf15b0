"""Settings for a few hundred images: one budget, whatever the detector."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
# With the config for COCO that has the same model.
OURS = {
    'picodet_s_bccd': 'picodet_s_coco',
    'picodet_anchorformer_t_bccd': 'picodet_anchorformer_t_coco',
    'picodet_anchorformer_s_bccd': 'picodet_anchorformer_s_coco',
    'picodet_v2_s_bccd': 'picodet_v2_s_coco',
    'picodet_v2_anchorformer_t_bccd': 'picodet_v2_anchorformer_t_coco',
}
# With the config of mmdet that has the same model and recipe.
MMDET = {
    'rtmdet_tiny_bccd': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox_tiny_bccd': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
}
ALL = [*OURS, *MMDET]
EPOCHS = 30
EPOCH_LENGTH = 205 // 8  # images, batch
SIZE = 320
# Arguments of transforms that say how large an image becomes.
SIZES = ('img_scale', 'scale', 'crop_size', 'size', 'border')


def load(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


def innermost(dataset):
    return innermost(dataset.dataset) if 'dataset' in dataset else dataset


def sizes(pipeline):
    return [
        (step.type, tuple(step[key]))
        for step in pipeline
        for key in SIZES
        if key in step
    ]


def rates(cfg, epochs):
    """The rate of every iteration."""
    base = cfg.optim_wrapper.optimizer.lr
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=base)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        # As mmengine's runner does.
        whole = epochs
        if not scheduler.get('by_epoch', True):
            whole *= EPOCH_LENGTH
        scheduler.setdefault('end', whole)
        schedulers.append(
            PARAM_SCHEDULERS.build(
                scheduler,
                default_args=dict(
                    optimizer=optimiser, epoch_length=EPOCH_LENGTH
                ),
            )
        )
    found = []
    for i in range(epochs * EPOCH_LENGTH):
        found.append(optimiser.param_groups[0]['lr'] / base)
        optimiser.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % EPOCH_LENGTH == 0:
                scheduler.step()
    return found


def test_no_config_is_left_out():
    assert {path.stem for path in CONFIGS.glob('*_bccd.py')} == set(ALL)


@pytest.mark.smoke
@pytest.mark.parametrize('name', ALL)
def test_every_config_builds_for_its_three_classes(name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    build_optim_wrapper(model, cfg.optim_wrapper)
    assert model.bbox_head.num_classes == 3
    for split in ('train', 'val', 'test'):
        dataset = innermost(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset.metainfo.classes) == 3
        assert dataset.ann_file == f'{split}.json'
        assert dataset.data_root == 'data/bccd/'
        if split != 'train':
            evaluator = cfg[f'{split}_evaluator']
            assert evaluator.ann_file == f'data/bccd/{split}.json'


@pytest.mark.parametrize('name', ALL)
def test_all_have_one_budget(name):
    cfg = load(name)
    assert cfg.train_cfg.max_epochs == EPOCHS
    assert cfg.train_cfg.val_interval == 10
    assert not cfg.train_cfg.get('dynamic_intervals')
    assert cfg.default_hooks.checkpoint.interval == 10
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.train_dataloader.drop_last
    assert cfg.train_dataloader.num_workers <= 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8)
    # From scratch, and convolutions in the same memory layout.
    assert "'Pretrained'" not in cfg.pretty_text
    assert cfg.load_from is None
    assert cfg.custom_hooks[-1].type == 'anchorformer_mm.ChannelsLastHook'
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        resize, *pad = sizes(loader.dataset.pipeline)
        assert resize == ('Resize', (SIZE, SIZE))
        assert all(size == (SIZE, SIZE) for _, size in pad)


@pytest.mark.parametrize('name', OURS)
def test_the_model_is_that_for_coco(name):
    model, coco = (load(n).model.to_dict() for n in (name, OURS[name]))
    assert model['bbox_head'].pop('num_classes') == 3
    assert coco['bbox_head'].pop('num_classes') == 80
    for part in (model, coco):
        part['train_cfg'].pop('initial_epoch', None)
    assert model == coco


@pytest.mark.parametrize('name', OURS)
def test_ours_train_on_five_sizes_around_that_of_evaluation(name):
    cfg = load(name)
    assert list(cfg.train_dataloader.collate_fn.sizes) == [
        SIZE + step for step in (-64, -32, 0, 32, 64)
    ]


@pytest.mark.parametrize('name', [n for n in OURS if '_v2_' in n])
def test_v2_aligns_after_the_same_part_of_the_training_as_on_coco(name):
    cfg, coco = load(name), load(OURS[name])
    initial = cfg.model.train_cfg.initial_epoch
    assert 0 < initial < EPOCHS
    assert (
        initial / EPOCHS
        == coco.model.train_cfg.initial_epoch / coco.train_cfg.max_epochs
    )


@pytest.mark.parametrize('name', MMDET)
def test_mmdets_augmentation_is_its_own_at_half_the_size(name):
    cfg = load(name)
    original = Config.fromstring(f"_base_ = '{MMDET[name]}'", '.py')
    ours, theirs = (
        c.train_dataloader.dataset.pipeline for c in (cfg, original)
    )
    pairs = [(ours, theirs)]
    last = [
        hook.switch_pipeline
        for c in (cfg, original)
        for hook in c.custom_hooks
        if 'switch_pipeline' in hook
    ]
    pairs += [tuple(last)] if last else []
    for ours, theirs in pairs:
        assert sizes(ours)
        assert sizes(ours) == [
            (kind, tuple(side // 2 for side in size))
            for kind, size in sizes(theirs)
        ]
        for pipeline in (ours, theirs):
            for step in pipeline:
                for key in (*SIZES, '_scope_'):
                    step.pop(key, None)
        assert ours == theirs


@pytest.mark.parametrize('name', MMDET)
def test_mmdets_optimiser_is_its_own(name):
    original = Config.fromstring(f"_base_ = '{MMDET[name]}'", '.py')
    assert load(name).optim_wrapper == original.optim_wrapper


@pytest.mark.parametrize('name', ALL)
def test_the_rate_is_up_after_two_epochs_and_down_at_the_end(name):
    found = rates(load(name), EPOCHS)
    peak = 2 * EPOCH_LENGTH
    assert found[0] < 0.2
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert max(found) == pytest.approx(found[peak], rel=0.01)
    assert found[peak] == pytest.approx(1, rel=0.01)
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 0.07


def test_the_cosine_ends_with_a_training_of_another_length():
    for epochs in (10, 60):
        found = rates(load('picodet_s_bccd'), epochs)
        assert found[50] == pytest.approx(1)
        assert 0 < found[-1] < 1e-4


@pytest.fixture
def own_folder(tmp_path):
    """Two images of two classes in each split, as COCO and as VOC."""
    names = ('cat', 'dog')
    for folder in ('images', 'JPEGImages', 'Annotations', 'ImageSets/Main'):
        (tmp_path / folder).mkdir(parents=True)
    for split in ('train', 'val', 'test'):
        coco = dict(
            images=[],
            annotations=[],
            categories=[dict(id=7, name='cat'), dict(id=5, name='dog')],
        )
        stems = [f'{split}_{i}' for i in range(2)]
        for i, (stem, name) in enumerate(zip(stems, names, strict=True)):
            image = np.full((60, 80, 3), 128, np.uint8)
            for folder in ('images', 'JPEGImages'):
                cv2.imwrite(str(tmp_path / folder / f'{stem}.jpg'), image)
            coco['images'].append(
                dict(id=i, file_name=f'{stem}.jpg', width=80, height=60)
            )
            coco['annotations'].append(
                dict(
                    id=1 + i,  # pycocotools takes 0 for unmatched
                    image_id=i,
                    category_id=7 if name == 'cat' else 5,
                    bbox=[10, 10, 40, 30],
                    area=1200,
                    iscrowd=0,
                )
            )
            (tmp_path / 'Annotations' / f'{stem}.xml').write_text(
                '<annotation><size><width>80</width><height>60</height>'
                f'</size><object><name>{name}</name><bndbox><xmin>11</xmin>'
                '<ymin>11</ymin><xmax>51</xmax><ymax>41</ymax></bndbox>'
                '</object></annotation>'
            )
        (tmp_path / f'{split}.json').write_text(json.dumps(coco))
        listing = tmp_path / 'ImageSets' / 'Main' / f'{split}.txt'
        listing.write_text('\n'.join(stems))
    return tmp_path


@pytest.mark.parametrize('kind', ['coco', 'voc'])
def test_the_documented_config_trains_on_a_folder_of_ones_own(
    own_folder, kind
):
    page = (ROOT / 'docs' / 'detection.md').read_text()
    blocks = [
        block
        for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL)
        if "data_root = 'data/mine/'" in block
    ]
    assert len(blocks) == 2
    text = next(b for b in blocks if ('VOCDataset' in b) == (kind == 'voc'))
    text = text.replace("_base_ = './", f"_base_ = '{CONFIGS}/")
    cfg = Config.fromstring(
        text.replace('data/mine/', f'{own_folder}/'), '.py'
    )
    init_default_scope(cfg.default_scope)
    classes = cfg.train_dataloader.dataset.metainfo.classes
    assert tuple(classes) == ('cat', 'dog')
    assert cfg.model.bbox_head.num_classes == len(classes)

    trainset = DATASETS.build(cfg.train_dataloader.dataset)
    labels = [
        trainset.get_data_info(i)['instances'][0]['bbox_label']
        for i in range(len(trainset))
    ]
    assert labels == [0, 1]
    assert {'inputs', 'data_samples'} <= set(trainset[0])
    for split in ('val', 'test'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        metric = METRICS.build(cfg[f'{split}_evaluator'])
        metric.dataset_meta = dataset.metainfo
        samples = []
        for item in dataset:
            assert tuple(item['inputs'].shape) == (3, SIZE, SIZE)
            assert split in item['data_samples'].img_path
            samples.append(perfect(item['data_samples']))
        metric.process({}, samples)
        best = cfg.default_hooks.checkpoint.save_best
        assert metric.evaluate(2)[best] == 1


def perfect(sample):
    """A sample in which its own boxes are found."""
    found = sample.gt_instances.clone()
    found.bboxes = found.bboxes.tensor
    found.scores = torch.ones(len(found))
    sample.pred_instances = found
    return sample.to_dict()
