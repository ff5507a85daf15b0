"""Both detectors as a whole, small, on the inputs that users have."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

from anchorformer_mm.registry import MODELS

SMALL = dict(widths=(16, 32, 64), ratios=((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))


PARTS = dict(
    v1=dict(
        backbone=dict(type='anchorformer_mm.AnchorESNet', arch=SMALL),
        neck=dict(type='anchorformer_mm.CSPPAN', in_channels=[16, 32, 64]),
        head='anchorformer_mm.PicoHead',
    ),
    v2=dict(
        backbone=dict(type='anchorformer_mm.LCNet', arch='0.1x'),
        neck=dict(type='anchorformer_mm.LCPAN', in_channels=[16, 24, 48]),
        head='anchorformer_mm.PicoHeadV2',
    ),
)


def build_detector(version, num_classes=3, size_divisor=32, initial_epoch=100):
    """PicoDet ``'v1'`` or ``'v2'``; only v2 heeds ``initial_epoch``."""
    parts = PARTS[version]
    train_cfg = None
    if version == 'v2':
        train_cfg = dict(
            initial_epoch=initial_epoch,
            initial_assigner=dict(type='anchorformer_mm.PicoATSSAssigner'),
            assigner=dict(type='anchorformer_mm.PicoTaskAlignedAssigner'),
        )
    return MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            data_preprocessor=dict(
                type='mmdet.DetDataPreprocessor',
                mean=[127.5] * 3,
                std=[127.5] * 3,
                pad_size_divisor=size_divisor,
            ),
            backbone=parts['backbone'],
            neck=parts['neck'] | dict(out_channels=16),
            bbox_head=dict(
                type=parts['head'],
                num_classes=num_classes,
                in_channels=16,
                feat_channels=16,
                stacked_convs=1,
            ),
            train_cfg=train_cfg,
        )
    )


def random_boxes(count, height, width):
    corners = torch.rand(count, 2, 2)
    corners = corners.sort(dim=1).values * torch.tensor([width, height])
    boxes = corners.flatten(1).float()
    boxes[:, 2:] += 1
    return boxes


def make_batch(sizes, boxes, num_classes=3):
    """Batch of a data loader: images (3, H, W) uint8 and their samples.

    ``boxes`` are for each image those (n, 4), or how many random ones.
    """
    inputs, samples = [], []
    for (height, width), gt in zip(sizes, boxes, strict=True):
        if isinstance(gt, int):
            gt = random_boxes(gt, height, width)
        size = height, width
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        labels = torch.arange(len(gt)) % num_classes
        sample.gt_instances = InstanceData(bboxes=gt, labels=labels)
        samples.append(sample)
        inputs.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    return dict(inputs=inputs, data_samples=samples)


@pytest.fixture(autouse=True)
def runner_says():
    """Tell the epoch, as mmengine's runner does."""
    MessageHub._instance_dict.clear()
    yield lambda epoch: MessageHub.get_instance('training').update_info(
        'epoch', epoch
    )
    MessageHub._instance_dict.clear()


# v2 has another assigner in each of the two epochs.
PHASES = [('v1', 0), ('v2', 0), ('v2', 100)]


def losses_of(model, data):
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    return losses


def train_step(model, data):
    """Losses and gradients; every parameter must have a finite one."""
    losses = losses_of(model, data)
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return losses


BORDER = torch.tensor(
    [[0.0, 0, 96, 96], [0, 0, 1, 96], [95, 95, 96, 96], [40, 0, 40, 20]]
)
# Sizes (H, W) of the images, and the boxes of each, or how many.
CASES = {
    'rectangular': ([(97, 65), (33, 131)], [3, 2]),
    'batch of one': ([(64, 96)], [4]),
    'one image without boxes': ([(64, 64), (64, 64)], [0, 5]),
    'no boxes at all': ([(64, 64), (64, 64)], [0, 0]),
    'crowds': ([(64, 96), (64, 64)], [300, 1]),
    'on the border': ([(96, 96)], [BORDER]),
}


@pytest.mark.smoke
@pytest.mark.parametrize(('version', 'epoch'), PHASES)
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('num_classes', [1, 3])
def test_training_and_prediction(
    case, num_classes, version, epoch, runner_says
):
    runner_says(epoch)
    sizes, boxes = CASES[case]
    model = build_detector(version, num_classes).train()
    data = make_batch(sizes, boxes, num_classes)
    losses = train_step(model, data)
    if any(len(sample.gt_instances) for sample in data['data_samples']):
        assert losses['loss_bbox'] > 0
    else:
        assert losses['loss_bbox'] == losses['loss_dfl'] == 0
    model.eval()
    results = model.test_step(data)
    for result, (height, width) in zip(results, sizes, strict=True):
        found = result.pred_instances
        assert len(found) <= 100
        limit = torch.tensor([width, height, width, height])
        assert ((found.bboxes >= 0) & (found.bboxes <= limit)).all()
        assert ((found.labels >= 0) & (found.labels < num_classes)).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('version', ['v1', 'v2'])
def test_learning_one_image_by_heart(version, runner_says, one_thread):
    """With v2 first by ATSS, then by task alignment."""
    # So few steps end elsewhere where sums are rounded otherwise.
    model = build_detector(version).train()
    model.init_weights()
    boxes = torch.tensor([[10.0, 12, 50, 60], [60, 30, 90, 90]])
    data = make_batch([(96, 96)], [boxes])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(120):
        runner_says(100 * (step >= 60))
        optimizer.zero_grad()
        sum(losses_of(model, data).values()).backward()
        optimizer.step()
    found = model.eval().test_step(data)[0].pred_instances[:2]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1]
    assert (found.bboxes[order] - boxes).abs().max() < 6
    assert (found.scores > 0.3).all()


def test_the_assigner_changes_at_its_epoch_also_after_a_resume(tmp_path):
    def run(folder, epochs, **cfg):
        """Train for so many epochs in all; the assigners of each of them."""
        MessageHub._instance_dict.clear()
        model, used = build_detector('v2', initial_epoch=2), {}
        head, data = model.bbox_head, make_batch([(96, 96)], [2])
        for assigner in (head.initial_assigner, head.assigner):

            def record(*args, assigner=assigner):
                name = type(assigner).__name__
                used.setdefault(runner.epoch, set()).add(name)
                return type(assigner).assign_batch(assigner, *args)

            assigner.assign_batch = record
        runner = Runner(
            model,
            work_dir=str(tmp_path / folder),
            train_dataloader=DataLoader([data] * 2, collate_fn=lambda x: x[0]),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(logger=None),
            **cfg,
        )
        runner.train()
        return used

    static, aligned = {'PicoATSSAssigner'}, {'PicoTaskAlignedAssigner'}
    assert run('whole', 4) == {0: static, 1: static, 2: aligned, 3: aligned}
    # One epoch, and the others by a process that knows nothing of it; and
    # again from behind the change.
    assert run('parts', 1) == {0: static}
    assert run('parts', 3, resume=True) == {1: static, 2: aligned}
    assert run('parts', 4, resume=True) == {3: aligned}
