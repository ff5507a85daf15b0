"""mmengine's runner for strategies, and strategies for it."""

from anchorformer_mm.engine.strategies.sharded_strategy import ShardedStrategy
from anchorformer_mm.engine.strategies.strategy_runner import StrategyRunner
from anchorformer_mm.engine.strategies.zero_strategy import ZeroStrategy

__all__ = ['ShardedStrategy', 'StrategyRunner', 'ZeroStrategy']
