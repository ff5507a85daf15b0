"""Gradients and the optimiser's state in shards (DeepSpeed's ZeRO 2).

To be inherited beside a config, and started with a launcher.
"""

runner_type = 'anchorformer_mm.StrategyRunner'
strategy = dict(
    type='anchorformer_mm.ZeroStrategy',
    config=dict(
        zero_optimization=dict(stage=2),
        # For SGD, among others.
        zero_allow_untested_optimizer=True,
    ),
)
