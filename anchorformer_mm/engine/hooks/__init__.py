"""Hooks that mmengine does not have."""

from anchorformer_mm.engine.hooks.channels_last_hook import ChannelsLastHook
from anchorformer_mm.engine.hooks.cycle_ema_hook import CycleEMAHook

__all__ = ['ChannelsLastHook', 'CycleEMAHook']
