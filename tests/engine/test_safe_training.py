"""Which hooks make a training safe, and how they are changed."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config

from anchorformer_mm.engine import safe_training
from anchorformer_mm.engine.resuming.interruption import Interrupted

SAFE = {
    'checkpoint': 'SafeCheckpointHook',
    'non_finite': 'NonFiniteHook',
    'resume': 'ResumeHook',
    'interruption': 'InterruptionHook',
}


def hooks_of(**hooks):
    cfg = Config(dict(default_hooks=hooks))
    safe_training.add_safe_hooks(cfg)
    return cfg.default_hooks


def test_every_config_gets_them():
    cfg = Config(dict())
    safe_training.add_safe_hooks(cfg)
    types = {name: hook.type for name, hook in cfg.default_hooks.items()}
    assert types == {k: f'anchorformer_mm.{v}' for k, v in SAFE.items()}
    # mmengine's own default.
    assert cfg.default_hooks.checkpoint.interval == 1


def test_arguments_are_kept_and_can_be_given():
    hooks = hooks_of(
        checkpoint=dict(type='CheckpointHook', interval=7, save_best='mIoU'),
        non_finite=dict(action='skip'),
    )
    assert hooks.checkpoint == dict(
        type='anchorformer_mm.SafeCheckpointHook',
        interval=7,
        save_best='mIoU',
    )
    assert hooks.non_finite == dict(
        type='anchorformer_mm.NonFiniteHook', action='skip'
    )


def test_hooks_of_the_user_stay_and_none_takes_one_out():
    hooks = hooks_of(
        checkpoint=dict(type='my.CheckpointHook'),
        resume=None,
        interruption=dict(type='my.Hook'),
    )
    assert hooks.checkpoint.type == 'my.CheckpointHook'
    assert hooks.interruption.type == 'my.Hook'
    assert 'resume' not in hooks
    assert hooks_of(checkpoint=None).checkpoint is None


def test_an_interrupted_training_says_in_one_line_how_to_go_on(
    monkeypatch, capsys, tmp_path
):
    def train():
        raise Interrupted(2, 'run/interrupted.pth')

    monkeypatch.setattr(
        safe_training,
        'build_runner',
        lambda cfg, default: SimpleNamespace(train=train),
    )
    with pytest.raises(SystemExit) as error:
        safe_training.train_safely(Config(dict(work_dir=str(tmp_path))))
    assert error.value.code == 130
    assert capsys.readouterr().err == (
        'SIGINT: saved run/interrupted.pth; to go on, run the same command '
        'with --resume\n'
    )
