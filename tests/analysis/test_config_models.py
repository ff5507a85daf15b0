import pytest

from anchorformer_mm.analysis import config_models
from anchorformer_mm.analysis.config_models import config_path, read_config
from anchorformer_mm.utils.errors import UsageError


@pytest.mark.parametrize(
    ('name', 'scope'),
    [
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'mmdet'),
        ('mmpretrain::deit/deit-small_4xb256_in1k.py', 'mmpretrain'),
        # mmengine does not find those of mmseg's fork.
        ('mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', 'mmseg'),
    ],
)
@pytest.mark.smoke
def test_a_config_of_a_library_is_found_by_name(name, scope):
    assert read_config(name).default_scope == scope


def test_anything_else_is_a_path():
    assert str(config_path('some/where.py')) == 'some/where.py'


def test_overrides_are_merged(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("model = dict(backbone=dict(type='A', depth=1), n=2)")
    cfg = read_config(
        path, {'model.backbone': dict(_delete_=True, type='B'), 'model.n': 3}
    )
    assert cfg.model == dict(backbone=dict(type='B'), n=3)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mmrotate::a/b.py', 'must be one of mmdet, mmpretrain, mmseg'),
        ('mmdet::rtmdet/none.py', 'mmdet has no config rtmdet/none.py'),
        ('none.py', 'config not found: none.py'),
    ],
)
def test_what_is_not_there_is_told(name, message):
    with pytest.raises(UsageError, match=message):
        read_config(name)


def test_a_library_that_is_missing_is_told(monkeypatch):
    def missing(names):
        raise UsageError(f'{names} is not installed')

    monkeypatch.setattr(config_models, 'check_environment', missing)
    with pytest.raises(UsageError, match='mmdet.* is not installed'):
        config_path('mmdet::a/b.py')
