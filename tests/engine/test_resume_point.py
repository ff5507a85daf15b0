"""Which checkpoint a training goes on from."""

import os

import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.engine.resuming.resume_point import (
    newest_resume_point,
    read_resume_point,
    remove_unfinished,
)
from anchorformer_mm.engine.safe_training import find_resume_point
from anchorformer_mm.utils.errors import UsageError


def save(path, age, seed=7):
    meta = dict(seed=seed, epoch=1, iter=1)
    torch.save(dict(meta=meta, state_dict={}, message_hub={}), path)
    time = 1_700_000_000 - age
    os.utime(path, (time, time))
    return path


def truncate(path):
    data = path.read_bytes()
    time = path.stat().st_mtime
    path.write_bytes(data[: len(data) // 2])
    os.utime(path, (time, time))


@pytest.fixture
def cfg(tmp_path):
    """A work folder with three checkpoints, of which the third is named."""
    for epoch in (1, 2, 3):
        save(tmp_path / f'epoch_{epoch}.pth', age=10 - epoch)
    # Of no use for going on.
    save(tmp_path / 'best_score_epoch_3.pth', age=0)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    return Config(dict(work_dir=str(tmp_path), resume=True))


def test_the_named_one_is_the_newest(cfg, tmp_path):
    point = newest_resume_point(cfg)
    assert point[:3] == (tmp_path / 'epoch_3.pth', 7, '')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 no zip'])
def test_a_damaged_one_gives_way_to_the_one_before(cfg, tmp_path, content):
    (tmp_path / 'epoch_3.pth').write_bytes(content)
    truncate(tmp_path / 'epoch_2.pth')
    point = newest_resume_point(cfg)
    assert point.path == tmp_path / 'epoch_1.pth'
    for name in ('epoch_3.pth', 'epoch_2.pth', 'epoch_1.pth'):
        assert name in point.warning


@pytest.mark.parametrize('meta', [[], dict(cfg=1)])
def test_meta_of_something_else_is_refused(tmp_path, meta):
    checkpoint = dict(meta=meta, state_dict={}, message_hub={})
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='its meta is not one of mmengine'):
        read_resume_point(tmp_path / 'a.pth')


def test_a_config_in_a_file_is_refused(cfg, tmp_path):
    """mmengine would run it."""
    meta = dict(config='import os')
    checkpoint = dict(meta=meta, state_dict={}, message_hub={})
    torch.save(checkpoint, tmp_path / 'epoch_3.pth')
    with pytest.raises(UsageError, match='has code in its meta..config'):
        read_resume_point(tmp_path / 'epoch_3.pth')


def test_code_in_a_file_is_not_run(cfg, tmp_path):
    torch.save(dict(meta=os.system), tmp_path / 'epoch_3.pth')
    assert newest_resume_point(cfg).path == tmp_path / 'epoch_2.pth'


def test_one_that_is_gone_is_told(cfg, tmp_path):
    (tmp_path / 'epoch_3.pth').unlink()
    point = newest_resume_point(cfg)
    assert point.path == tmp_path / 'epoch_2.pth'
    assert f'not found: {tmp_path / "epoch_3.pth"}' in point.warning


def test_nothing_readable_is_an_error_that_names_all(cfg, tmp_path):
    for epoch in (1, 2, 3):
        truncate(tmp_path / f'epoch_{epoch}.pth')
    with pytest.raises(UsageError) as error:
        newest_resume_point(cfg)
    assert all(f'epoch_{e}.pth cannot' in str(error.value) for e in (1, 2, 3))


def test_an_empty_folder_is_a_beginning(tmp_path):
    cfg = Config(
        dict(work_dir=str(tmp_path / 'no'), resume=True, begin_from='a.pth')
    )
    assert find_resume_point(cfg) is None
    assert (cfg.resume, cfg.load_from) == (False, 'a.pth')


def test_the_seed_of_the_run_comes_before_its_data(cfg, tmp_path):
    cfg.randomness = dict(deterministic=True)
    find_resume_point(cfg)
    assert cfg.randomness == dict(deterministic=True, seed=7)
    assert cfg.load_from == str(tmp_path / 'epoch_3.pth')


def test_a_chosen_one_that_cannot_be_read_is_an_error(cfg, tmp_path):
    truncate(tmp_path / 'epoch_3.pth')
    cfg.load_from = str(tmp_path / 'epoch_3.pth')
    with pytest.raises(UsageError, match='epoch_3.pth cannot be read'):
        find_resume_point(cfg)


def test_weights_alone_are_no_point_to_resume_from(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='it lacks meta, message_hub'):
        read_resume_point(tmp_path / 'a.pth')


def test_a_moved_folder_and_one_of_its_own_are_found(cfg, tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/run/epoch_2.pth')
    assert newest_resume_point(cfg).path == tmp_path / 'epoch_2.pth'
    run = tmp_path / 'run'
    hook = dict(out_dir=str(tmp_path / 'large'), filename_tmpl='e{}.pth')
    (tmp_path / 'large' / 'run').mkdir(parents=True)
    path = save(tmp_path / 'large' / 'run' / 'e2.pth', age=1)
    cfg = Config(dict(work_dir=str(run), default_hooks=dict(checkpoint=hook)))
    assert newest_resume_point(cfg).path == path


def test_a_copy_goes_on_from_its_own_files(cfg, tmp_path):
    """Its ``last_checkpoint`` still names the original's."""
    original = tmp_path / 'original'
    original.mkdir()
    named = save(original / 'epoch_3.pth', age=0, seed=1)
    (tmp_path / 'last_checkpoint').write_text(str(named))
    point = newest_resume_point(cfg)
    assert point[:3] == (tmp_path / 'epoch_3.pth', 7, '')


def test_only_unfinished_files_are_removed(cfg, tmp_path):
    kept = {path.name for path in tmp_path.iterdir()}
    others = ['.hidden', '.a.pth', '.my_notes.2024.pth', '.last_checkpoint.a']
    for name in (
        '.epoch_4.123.pth',
        '.best_coco_bbox_mAP_epoch_4.123.pth',
        '.interrupted.4.pth',
        '.last_checkpoint.9',
        *others,
    ):
        (tmp_path / name).touch()
    removed = remove_unfinished(cfg)
    assert len(removed) == 4
    left = {path.name for path in tmp_path.iterdir()}
    assert left == kept | set(others)


def test_what_is_given_anew_and_has_no_effect_is_told(cfg, tmp_path):
    path = tmp_path / 'epoch_3.pth'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta']['cfg'] = 'optim_wrapper = dict(lr=0.1)'
    torch.save(checkpoint, path)
    cfg.optim_wrapper = dict(lr=0.5)
    cfg.randomness = dict(seed=8)
    warning = find_resume_point(cfg).warning
    assert 'randomness.seed=8 is of no use: the run goes on with 7' in warning
    assert 'optim_wrapper.lr: 0.1 -> 0.5' in warning
    assert cfg.randomness.seed == 7
