"""Parameters, gradients and the optimiser's state in shards (FSDP).

To be inherited beside a config, and started with a launcher. `blocks` names
the classes of modules that are gathered one at a time.
"""

runner_type = 'anchorformer_mm.StrategyRunner'
strategy = dict(
    type='anchorformer_mm.ShardedStrategy', blocks=('TransformerBlock',)
)
