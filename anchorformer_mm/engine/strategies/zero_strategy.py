"""Training with DeepSpeed's ZeRO."""

from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine._strategy import BaseStrategy, DeepSpeedStrategy
from mmengine.config import ConfigDict
from mmengine.optim import BaseOptimWrapper
from torch import nn

from anchorformer_mm.registry import STRATEGIES
from anchorformer_mm.utils.errors import UsageError

_WRAPPERS = ('OptimWrapper', 'DeepSpeedOptimWrapper')
_KEYS = {'type', 'optimizer', 'constructor', 'paramwise_cfg'}
_NEVER = 10**13


@STRATEGIES.register_module()
class ZeroStrategy(DeepSpeedStrategy):
    """mmengine's ``DeepSpeedStrategy``, for configs as they are.

    Unlike mmengine's:

    - it runs with deepspeed 0.19.8, which lacks optimisers that mmengine's
      imports;
    - ``optim_wrapper`` may be the plain one of any config; its clipping
      becomes DeepSpeed's;
    - checkpoints are read with ``weights_only=True``.

    A checkpoint is a folder. The best one (``save_best``) is a file with the
    weights of the plain model.

    Args:
        config: DeepSpeed's configuration; the batch size is the train
            loader's.
        inputs_to_half: As for mmengine's.
        exclude_frozen_parameters: As for mmengine's.
        **kwargs: As for :class:`mmengine._strategy.BaseStrategy`.

    Raises:
        UsageError: deepspeed is not installed, or there is no launcher.
    """

    def __init__(
        self,
        *,
        config: dict,
        inputs_to_half: list[int | str] | None = None,
        exclude_frozen_parameters: bool | None = None,
        **kwargs,
    ) -> None:
        _admit_deepspeed_checkpoints()
        # Not mmengine's DeepSpeedStrategy: see above.
        BaseStrategy.__init__(self, **kwargs)
        if not self.distributed:
            raise UsageError(
                f'{type(self).__name__} needs a launcher, such as '
                'tools/dist_train.sh'
            )
        if isinstance(config, ConfigDict):
            # It goes into the checkpoints.
            config = config.to_dict()
        defaults = dict(
            train_micro_batch_size_per_gpu=1,
            gradient_accumulation_steps=1,
            steps_per_print=_NEVER,
        )
        self.config = defaults | config
        self._inputs_to_half = inputs_to_half
        self.exclude_frozen_parameters = exclude_frozen_parameters

    def prepare(
        self,
        model: nn.Module | dict,
        *,
        dispatch_kwargs: dict | None = None,
        **kwargs,
    ) -> nn.Module | list:
        """Build model and optimiser, and hand them to DeepSpeed.

        Args:
            model: The model or its config.
            dispatch_kwargs: As for mmengine's.
            **kwargs: As for mmengine's.

        Returns:
            nn.Module | list: What is built, as of mmengine's strategies.
        """
        key = 'train_micro_batch_size_per_gpu'
        self.config[key] = (dispatch_kwargs or {}).get(key, self.config[key])
        return super().prepare(
            model, dispatch_kwargs=dispatch_kwargs, **kwargs
        )

    def load_checkpoint(self, filename: str, **kwargs) -> dict:
        """Load the weights of a checkpoint of DeepSpeed's.

        Args:
            filename: Its folder.
            **kwargs: As for mmengine's.

        Returns:
            dict: What is in it besides.

        Raises:
            UsageError: It is no folder. DeepSpeed would go on without.
        """
        _check_folder(filename)
        return super().load_checkpoint(filename, **kwargs)

    def resume(self, filename: str, **kwargs) -> dict:
        """Go on from a checkpoint of DeepSpeed's.

        Args:
            filename: Its folder.
            **kwargs: As for mmengine's.

        Returns:
            dict: What is in it besides.

        Raises:
            UsageError: It is no folder.
        """
        _check_folder(filename)
        return super().resume(filename, **kwargs)

    def build_optim_wrapper(
        self,
        optim_wrapper: BaseOptimWrapper | dict,
        model: nn.Module | None = None,
    ) -> BaseOptimWrapper:
        """Build the optimiser; DeepSpeed clips in its place.

        Args:
            optim_wrapper: Built; or the config of an OptimWrapper with no
                more than ``clip_grad``, or of a DeepSpeedOptimWrapper.
            model: The plain model.

        Returns:
            BaseOptimWrapper: One that leaves backward and step to DeepSpeed.

        Raises:
            ValueError: It is of another type, or asks for what is up to
                DeepSpeed.
        """
        if isinstance(optim_wrapper, Mapping):
            optim_wrapper = self._translated(dict(optim_wrapper))
        return super().build_optim_wrapper(optim_wrapper, model)

    def _translated(self, cfg: dict) -> dict:
        """Turn the config of a plain wrapper into one of DeepSpeed's."""
        kind = cfg.get('type', 'OptimWrapper')
        if kind not in _WRAPPERS:
            raise ValueError(
                f'optim_wrapper.type must be one of {_WRAPPERS}, got '
                f'{kind!r}; half precision is strategy.config.bf16'
            )
        clip = dict(cfg.pop('clip_grad', None) or {})
        if clip:
            if set(clip) != {'max_norm'}:
                raise ValueError(
                    'optim_wrapper.clip_grad must have max_norm alone, got '
                    f'{clip!r}'
                )
            self.config['gradient_clipping'] = clip['max_norm']
        others = sorted(cfg.keys() - _KEYS)
        if others:
            raise ValueError(
                f'optim_wrapper must not have {others}, which is for '
                'strategy.config to say'
            )
        return cfg | dict(type='DeepSpeedOptimWrapper')


def _check_folder(filename: str) -> None:
    if not Path(filename).is_dir():
        raise UsageError(
            f'ZeroStrategy loads folders that DeepSpeed has written, got '
            f'{filename}: begin from plain weights with model.init_cfg, and '
            'evaluate them with the config without DeepSpeed'
        )


def _admit_deepspeed_checkpoints() -> None:
    """Let ``torch.load(..., weights_only=True)`` read DeepSpeed's.

    Raises:
        UsageError: deepspeed is not installed.
    """
    try:
        from deepspeed.runtime.fp16 import loss_scaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError as error:
        raise UsageError(
            f'ZeroStrategy needs deepspeed: pip install deepspeed ({error})'
        ) from error
    torch.serialization.add_safe_globals(
        [
            fragment_address,
            ZeroStageEnum,
            loss_scaler.LossScaler,
            loss_scaler.DynamicLossScaler,
        ]
    )
