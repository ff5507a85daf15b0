"""The model index beside the configs; the command: see tools/."""

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from modelindex.load_model_index import load

from anchorformer_mm.analysis.model_decisions import SMALL_DATA, TABLES
from anchorformer_mm.analysis.model_index import (
    collection_of,
    data_of,
    input_shape,
    metafile,
    model_entry,
    model_table,
    public_configs,
)
from anchorformer_mm.utils.dataset_paths import split_datasets
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.marked_blocks import marked_blocks

ROOT = Path(__file__).parents[2]
STORED = (ROOT / 'configs' / 'metafile.yml').read_text()
ENTRIES = {m['Name']: m for m in yaml.safe_load(STORED)['Models']}
# Configs that are examples, and no models to list.
EXAMPLES = {
    'anchorformer_t_digits',
    'anchorformer_t_fsdp_digits',
    'anchorformer_t_query_digits',
    'anchorformer_t_vanilla_digits',
    'anchorformer_t_zero2_digits',
    'clustr_t_digits',
    'picodet_anchorformer_s_bccd',
    'picodet_anchorformer_t_bccd',
    'picodet_anchorformer_t_digits',
    'picodet_s_bccd',
    'picodet_v2_anchorformer_t_bccd',
    'picodet_v2_s_bccd',
    'rtmdet_tiny_bccd',
    'semfpn_anchorformer_t_digits',
    'semfpn_anchorformer_t_vanilla_digits',
    'semfpn_clustr_t_digits',
    'semfpn_r18_digits',
    'upernet_anchorformer_t_digits',
    'yolox_tiny_bccd',
}


def test_every_config_is_listed_or_an_example():
    names = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert names == EXAMPLES | ENTRIES.keys()
    assert {n for n in names if data_of(n) in SMALL_DATA} == EXAMPLES
    listed = [path.stem for path in public_configs(ROOT / 'configs')]
    assert listed == list(ENTRIES)


# A detector, one of two stages, a segmentor and a classifier.
@pytest.mark.parametrize(
    'name',
    [
        'picodet_s_320_coco',
        'mask-rcnn_clustr_s_coco',
        'semfpn_anchorformer_t_ade20k',
        'anchorlevit_128s_in1k',
    ],
)
def test_stored_figures_are_those_of_the_models(name):
    path = ROOT / 'configs' / f'{name}.py'
    assert model_entry(path, ROOT) == ENTRIES[name]


def test_the_metafile_is_written_from_its_entries_alone():
    assert metafile(list(ENTRIES.values())) == STORED


@pytest.mark.parametrize('name', TABLES)
def test_the_front_page_has_the_stored_figures(name):
    page = (ROOT / 'README.md').read_text()
    table = model_table(TABLES[name], ENTRIES.values())
    assert marked_blocks(page)[name] == table


def test_the_reader_of_model_indices_accepts_it():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) in (None, [])
    assert not index.check_errors
    models = {model.name: model for model in index.models}
    assert models.keys() == ENTRIES.keys()
    model = models['picodet_s_coco']
    assert not model.check_errors
    assert model.metadata.parameters == 992_715
    assert model.metadata.flops == 2 * model.metadata.data['MACs']
    # Comes from the collection.
    assert 'ESNet' in model.full_model.metadata.architecture


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('picodet_s_coco', 'CocoDataset'),
        ('picodet_s_voc', 'VOCDataset'),
        ('clustr_t_in1k', 'ImageNet'),
        ('semfpn_clustr_s_ade20k', 'ADE20KDataset'),
    ],
)
def test_names_tell_the_data_that_is_trained_on(name, kind):
    cfg = Config.fromfile(ROOT / ENTRIES[name]['Config'])
    kinds = {dataset.type for dataset in split_datasets(cfg, 'train')}
    assert kinds == {kind}


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('picodet_s_cooc', 'must end in one of coco, .*got picodet_s_cooc'),
        ('picodet', 'must end in one of coco, .*got picodet'),
    ],
)
def test_a_name_without_known_data_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        data_of(name)


def test_a_config_is_in_one_collection():
    assert collection_of('picodet_v2_xs_coco').name == 'PicoDet v2'
    with pytest.raises(UsageError, match='resnet_in1k must be .* is in none'):
        collection_of('resnet_in1k')


def test_a_config_without_a_place_stops_the_listing(tmp_path):
    (tmp_path / '_base_').mkdir()
    (tmp_path / '_base_' / 'part.py').touch()
    (tmp_path / 'picodet_s_digits.py').touch()
    assert public_configs(tmp_path) == []
    (tmp_path / 'resnet_in1k.py').touch()
    with pytest.raises(UsageError, match='resnet_in1k must be in one'):
        public_configs(tmp_path)


def pipeline(*steps):
    dataset = dict(pipeline=[dict(type='LoadImageFromFile'), *steps])
    return Config(dict(test_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize(
    ('steps', 'shape'),
    [
        ([dict(type='Resize', scale=(320, 192))], (192, 320)),
        ([dict(type='mmseg.Resize', scale=(2048, 512))], (512, 2048)),
        ([dict(type='Resize', scale=384)], (384, 384)),
        (
            [
                dict(type='ResizeEdge', scale=256),
                dict(type='CenterCrop', crop_size=224),
            ],
            (224, 224),
        ),
    ],
)
def test_the_size_is_that_of_the_test_images(steps, shape):
    assert input_shape(pipeline(*steps)) == shape


def test_a_pipeline_without_a_size_is_refused():
    with pytest.raises(UsageError, match='no Resize and no CenterCrop'):
        input_shape(pipeline())


def test_a_table_with_an_unknown_model_is_refused():
    with pytest.raises(UsageError, match='picodet_anchorformer_t_coco'):
        model_table(TABLES['models-coco'], [])
