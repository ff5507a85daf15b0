"""Fully sharded training (FSDP) that clips, saves and resumes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine._strategy import DDPStrategy, FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from anchorformer_mm.registry import STRATEGIES
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

# What torch puts into the names of modules that are units of their own.
_UNIT = '_fsdp_wrapped_module'
_OPTIMISER_STATE = ('state', 'param_groups')


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy``, for GPUs and for CPUs.

    Parameters, gradients and the state of the optimiser are split among the
    processes. A checkpoint is one file with the weights of the plain model;
    it can be resumed by another number of processes. Unlike mmengine's:

    - gradients are clipped by the norm of all shards, not by that of each;
    - ``paramwise_cfg`` and optimiser constructors see the plain model, with
      its names and shapes;
    - runs can be resumed with torch >= 2.1, and saved on a CPU;
    - weights keep their metadata, such as the grid of a position embedding;
    - a checkpoint gets its name once it is whole.

    Args:
        blocks: Names of the classes that are units of their own: their
            parameters are gathered just before they are used. What is
            outside of them is one unit more. A block must be called as a
            whole: nobody outside may read its parameters.
        model_wrapper: As for mmengine's; ``auto_wrap_policy`` takes the place
            of ``blocks``, and ``use_orig_params`` must not be False.
        **kwargs: As for :class:`mmengine._strategy.FSDPStrategy`, but for
            ``state_dict_cfg``.

    Raises:
        ValueError: ``blocks`` names no module of the model, or
            ``use_orig_params`` is False.
        UsageError: There is no launcher.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[str] = ('TransformerBlock',),
        model_wrapper: dict | None = None,
        **kwargs,
    ) -> None:
        wrapper = dict(model_wrapper or {})
        wrapper.setdefault('type', 'MMFullyShardedDataParallel')
        if not wrapper.get('use_orig_params', True):
            raise ValueError(
                'model_wrapper.use_orig_params must be True, got '
                f'{wrapper["use_orig_params"]!r}'
            )
        super().__init__(
            model_wrapper=wrapper, state_dict_cfg='full', **kwargs
        )
        self.blocks = tuple(blocks)
        if not self.distributed:
            raise UsageError(
                f'{type(self).__name__} needs a launcher, such as '
                'tools/dist_train.sh; its checkpoints are plain ones, which '
                'the same config without it evaluates'
            )

    def _init_state_dict_cfg(self, state_dict_cfg: str | dict) -> None:
        super()._init_state_dict_cfg(state_dict_cfg)
        if not torch.cuda.is_available():
            # torch frees what it has copied to the CPU, where there is no
            # copy if it was there already: a segmentation fault.
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False

    def prepare(
        self,
        model: nn.Module | dict,
        *,
        optim_wrapper: BaseOptimWrapper | dict | None = None,
        **kwargs,
    ) -> nn.Module | list:
        """Build the optimiser on the plain model, then shard both.

        Args:
            model: The model or its config.
            optim_wrapper: Likewise.
            **kwargs: As for mmengine's strategies.

        Returns:
            nn.Module | list: What is built, as of mmengine's strategies.
        """
        if isinstance(optim_wrapper, dict) and not self._prepared:
            model = self.build_model(model)
            if str(optim_wrapper.get('type')).endswith('AmpOptimWrapper'):
                optim_wrapper.setdefault('use_fsdp', True)
            optim_wrapper = DDPStrategy.build_optim_wrapper(
                self, optim_wrapper, model
            )
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.cuda.is_available():
            # torch synchronises norms on GPUs only, and mmengine would give
            # the number of one.
            model = revert_sync_batchnorm(model)
            self.model_wrapper.setdefault('device_id', torch.device('cpu'))
        if self.model_wrapper.get('auto_wrap_policy') is None:
            self.model_wrapper['auto_wrap_policy'] = self._policy(model)
        return super()._wrap_model(model)

    def _policy(self, model: nn.Module) -> partial:
        def is_block(module: nn.Module) -> bool:
            return type(module).__name__ in self.blocks

        if not any(map(is_block, model.modules())):
            names = sorted({type(m).__name__ for m in model.modules()})
            raise ValueError(
                'blocks must name classes of modules of the model, which are '
                f'{names}, got {self.blocks!r}'
            )
        return partial(lambda_auto_wrap_policy, lambda_fn=is_block)

    def build_optim_wrapper(
        self, optim_wrapper: BaseOptimWrapper, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        """Let an optimiser of the plain model work on the shards.

        Args:
            optim_wrapper: Of one optimiser, from :meth:`prepare`.
            model: The sharded model.

        Returns:
            BaseOptimWrapper: The same one: torch keeps the parameters, which
            hold their shards now.

        Raises:
            TypeError: There are several optimisers.
            RuntimeError: It has a parameter that the sharded model has not.
        """
        if not isinstance(optim_wrapper, OptimWrapper):
            raise TypeError(
                'optim_wrapper must be an OptimWrapper of one optimiser, got '
                f'{type(optim_wrapper).__name__}'
            )
        known = {id(p) for p in model.parameters()}
        groups = optim_wrapper.optimizer.param_groups
        if not all(id(p) in known for g in groups for p in g['params']):
            raise RuntimeError(
                'optim_wrapper has parameters that the sharded model does not '
                'have: it must be of the model before it was sharded'
            )
        clip = getattr(optim_wrapper, 'clip_func', None)
        if clip is torch.nn.utils.clip_grad_norm_:

            def clip_all_shards(
                params: list[Tensor], max_norm: float, norm_type: float = 2.0
            ) -> Tensor:
                return model.clip_grad_norm_(max_norm, norm_type)

            optim_wrapper.clip_func = clip_all_shards
        return optim_wrapper

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """Write a checkpoint that is whole or not there.

        Args:
            filename: Its path.
            **kwargs: As for mmengine's.
        """
        if not is_main_process() or '://' in filename:
            # It takes part, or the store writes objects as a whole.
            super().save_checkpoint(filename, **kwargs)
            return
        with replacing(filename) as unfinished:
            super().save_checkpoint(str(unfinished), **kwargs)

    def load_checkpoint(
        self,
        filename: str,
        *,
        map_location: str | Callable | None = None,
        **kwargs,
    ) -> dict:
        """Load weights by way of the CPU: a GPU may not hold them all.

        Args:
            filename: Path of a checkpoint.
            map_location: Not used.
            **kwargs: As for mmengine's.

        Returns:
            dict: What is in it besides.
        """
        return super().load_checkpoint(filename, map_location='cpu', **kwargs)

    def model_state_dict(self) -> dict[str, Tensor]:
        """The weights with the names and the metadata of the plain model.

        Returns:
            dict: In the first process; in the others empty.
        """
        state = super().model_state_dict()
        state._metadata = {
            _plain_name(name): about for name, about in state._metadata.items()
        }
        for name, value in state.items():
            # Without what torch notes down on it, which would be saved.
            state[name] = value.detach()
        return state

    def load_model_state_dict(
        self, state_dict: dict[str, Tensor], *, strict: bool = False, **kwargs
    ) -> None:
        """Load the weights of a plain model.

        Args:
            state_dict: By name.
            strict: Whether it is an error if names are missing or unknown,
                and not just a warning.
            **kwargs: Not used; mmengine's ``revise_keys``.
        """
        about = getattr(state_dict, '_metadata', {})
        state_dict = OrderedDict(state_dict)
        state_dict._metadata = {
            name: about[_plain_name(name)]
            for name, _ in self.model.named_modules()
            if _plain_name(name) in about
        }
        keys = self.model.load_state_dict(state_dict, strict=strict)
        for what, names in keys._asdict().items():
            if names:
                names = [_plain_name(name) for name in names]
                self.logger.warning(f'{what} in the weights: {names}')

    def optim_state_dict(self) -> dict:
        """The state of the optimiser, by name of the parameter.

        Returns:
            dict: In the first process whole.
        """
        wrapper = self.optim_wrapper
        more = wrapper.state_dict()
        for key in _OPTIMISER_STATE:
            del more[key]
        state = FullyShardedDataParallel.optim_state_dict(
            self.model, wrapper.optimizer
        )
        return state | more

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`optim_state_dict` gave.

        Args:
            state_dict: The whole state, in every process.
        """
        state = {key: state_dict.pop(key) for key in _OPTIMISER_STATE}
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, self.optim_wrapper.optimizer, state
        )
        self.optim_wrapper.load_state_dict(state_dict | state)


def _plain_name(name: str) -> str:
    """The name of a module or parameter in the plain model."""
    return '.'.join(part for part in name.split('.') if part != _UNIT)
