"""What a command line's config is checked for."""

from argparse import Namespace

import pytest
from PIL import EpsImagePlugin, Image

from anchorformer_mm.engine.launch import load_config
from anchorformer_mm.utils.errors import UsageError

CONFIG = """
default_scope = 'mmseg'
model = dict(decode_head=dict(num_classes=2))
train_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        data_root={root!r},
        data_prefix=dict(img_path='', seg_map_path=''),
        pipeline=[],
    )
)
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(root=str(tmp_path)))

    def load(launcher='none', skip_data_check=False):
        args = Namespace(
            config=str(path),
            cfg_options=None,
            local_rank=0,
            work_dir=None,
            launcher=launcher,
            skip_data_check=skip_data_check,
        )
        return load_config(args, ('train',))

    return load


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [
        ('pytorch', 'RANK'),
        ('slurm', 'SLURM_PROCID'),
        ('mpi', 'OMPI_COMM_WORLD_RANK'),
    ],
)
def test_the_first_process_checks_the_label_maps(
    load, monkeypatch, launcher, variable
):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv(variable, '1')
    load(launcher)
    # Not started by that launcher, whatever it left in the environment.
    with pytest.raises(UsageError, match='train: no image in'):
        load('none')
    monkeypatch.setenv(variable, '0')
    with pytest.raises(UsageError, match='train: no image in'):
        load(launcher)


def test_the_check_of_label_maps_can_be_skipped(load, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert load(skip_data_check=True).default_scope == 'mmseg'


def test_no_image_starts_a_program(load, monkeypatch, tmp_path):
    """As one that is EPS by content, whatever its name."""
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', 'ghostscript')
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
    load(skip_data_check=True)
    image = Image.open(tmp_path / 'a.eps')
    with pytest.raises(OSError, match='Unable to locate Ghostscript'):
        image.load()
