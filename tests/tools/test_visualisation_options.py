"""The option lines of the documentation that turn pictures and logs on."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, VISUALIZERS, init_default_scope

ROOT = Path(__file__).parents[2]
CONFIGS = [
    'picodet_anchorformer_t_digits',
    'semfpn_anchorformer_t_digits',
    'anchorformer_t_digits',
]
TENSORBOARD = {'visualizer.vis_backends.0.type': 'TensorboardVisBackend'}
MODULE = 'torch.utils.tensorboard'


def build(name, tmp_path, options):
    """The visualiser of a config, and its hook."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    cfg.merge_from_dict(options)
    init_default_scope(cfg.default_scope)
    visualizer = cfg.visualizer | dict(name=name, save_dir=str(tmp_path))
    visualizer = VISUALIZERS.build(visualizer)
    return visualizer, HOOKS.build(cfg.default_hooks.visualization)


@pytest.fixture
def _fresh(monkeypatch):
    """mmengine keeps one visualiser for each name."""
    from mmengine.visualization import Visualizer

    for kind in [Visualizer, *Visualizer.__subclasses__()]:
        monkeypatch.setattr(
            kind, '_instance_dict', type(kind._instance_dict)()
        )


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.usefixtures('_fresh')
def test_one_option_sends_figures_to_tensorboard(name, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, log_dir):
            assert Path(log_dir) == tmp_path / 'vis_data'

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    module = ModuleType(MODULE)
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, MODULE, module)
    visualizer, _ = build(name, tmp_path, TENSORBOARD)
    visualizer.add_scalars(dict(loss=0.5), step=3)
    assert written == [('loss', 0.5, 3)]


@pytest.mark.parametrize(
    ('name', 'flag'), zip(CONFIGS, ['draw', 'draw', 'enable'], strict=True)
)
@pytest.mark.usefixtures('_fresh')
def test_one_option_turns_pictures_on(name, flag, tmp_path):
    _, hook = build(name, tmp_path, {})
    assert isinstance(hook, Hook)
    assert getattr(hook, flag) is False
    option = {f'default_hooks.visualization.{flag}': True}
    _, hook = build(name, tmp_path, option)
    assert getattr(hook, flag) is True
