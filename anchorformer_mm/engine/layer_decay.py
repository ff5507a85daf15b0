"""Learning rates that decay from the last layer to the first."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from anchorformer_mm.models.argument_checks import is_number
from anchorformer_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with a learning rate by depth besides.

    A parameter at depth l of L gets ``layer_decay_rate ** (L - 1 - l)`` times
    its learning rate. The backbone's ``get_layer_depth`` tells the depth;
    parameters outside it have the last depth and so the whole rate. It serves
    detectors, segmentors and classifiers: mmpretrain's own asks the whole
    model for its depths, mmseg's knows the backbones of BEiT, MAE and
    ConvNeXt only.

    Args:
        optim_wrapper_cfg: As mmengine's.
        paramwise_cfg: As mmengine's, with ``layer_decay_rate`` in (0, 1].

    Raises:
        ValueError: ``layer_decay_rate`` is missing or out of range, or no
            module of the model, or more than one, has ``get_layer_depth``.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.layer_decay_rate = self.paramwise_cfg.get('layer_decay_rate')
        rate = self.layer_decay_rate
        if not is_number(rate) or not 0 < rate <= 1:
            raise ValueError(
                'paramwise_cfg must have a layer_decay_rate in (0, 1], got '
                f'{rate!r}'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs
    ) -> None:
        """Add the parameter groups of a module, one for each parameter.

        Args:
            params: The groups so far; extended in place.
            module: Whose parameters are added.
            prefix: Its name in the model, empty for the model itself.
            **kwargs: Handed on to mmengine's.
        """
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return
        found = [
            (name, submodule)
            for name, submodule in module.named_modules()
            if hasattr(submodule, 'get_layer_depth')
        ]
        if len(found) > 1 and found[0][1] is module:
            # A classifier that hands the question on to its backbone.
            del found[0]
        if len(found) != 1:
            raise ValueError(
                'a learning rate by layer needs exactly one backbone with '
                f'get_layer_depth, got {[name for name, _ in found]} in '
                f'{type(module).__name__}'
            )
        ((name, backbone),) = found
        names = {id(p): n for n, p in module.named_parameters()}
        for group in params:
            depth, depths = backbone.get_layer_depth(
                names[id(group['params'][0])], f'{name}.' if name else ''
            )
            scale = self.layer_decay_rate ** (depths - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
