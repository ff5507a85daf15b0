"""Hooks that mmengine does not have."""

from anchorformer_mm.engine.hooks.channels_last_hook import ChannelsLastHook
from anchorformer_mm.engine.hooks.cycle_ema_hook import CycleEMAHook
from anchorformer_mm.engine.hooks.interruption_hook import InterruptionHook
from anchorformer_mm.engine.hooks.non_finite_hook import NonFiniteHook
from anchorformer_mm.engine.hooks.resume_hook import ResumeHook
from anchorformer_mm.engine.hooks.safe_checkpoint_hook import (
    SafeCheckpointHook,
)

__all__ = [
    'ChannelsLastHook',
    'CycleEMAHook',
    'InterruptionHook',
    'NonFiniteHook',
    'ResumeHook',
    'SafeCheckpointHook',
]
