"""Hooks that mmengine does not have."""

from anchorformer_mm.engine.hooks.channels_last_hook import ChannelsLastHook

__all__ = ['ChannelsLastHook']
