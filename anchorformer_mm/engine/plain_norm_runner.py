"""mmengine's runner for configs with SyncBN on machines without a GPU."""

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from torch import nn


class PlainNormRunner(Runner):
    """Runs norms that are synchronised between GPUs as plain ones on a CPU.

    mmengine does so for one process; of several, torch's wrapper would refuse
    the model. Each process then has the statistics of its own images.
    """

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model for the processes that train it."""
        if not torch.cuda.is_available():
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)
