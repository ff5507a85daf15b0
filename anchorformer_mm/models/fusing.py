"""Models as they are deployed, with weights that are multiplied once."""

from copy import deepcopy

from torch import nn

from anchorformer_mm.models.layers import AnchorAttention, BaseAnchorAttention


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy for evaluation that holds fused weights only.

    Layers of anchor attention get their folded weights
    (:meth:`.AnchorAttention.fuse`), where these are cheaper. Modules that
    know how to be deployed, with a method ``switch_to_deploy`` as in
    mmpretrain, do so: norms become part of linear layers in AnchorLeViT and
    its head.

    Args:
        model: Any model; it stays as it is.

    Returns:
        nn.Module: The same function in evaluation mode. Its weights cannot be
        loaded into the model that it was.
    """
    model = deepcopy(model)
    # Not chained: mmpretrain's backbones return None from it.
    model.eval()
    for module in list(model.modules()):
        if callable(getattr(module, 'switch_to_deploy', None)):
            module.switch_to_deploy()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, AnchorAttention):
                setattr(module, name, child.fuse())
    return model


def has_foldable(model: nn.Module) -> bool:
    """Return True if :func:`fuse` would fold anchors of a model."""
    return any(
        hasattr(module, 'anchors') and callable(getattr(module, 'fuse', None))
        for module in model.modules()
    )


def take_paper_order(model: nn.Module) -> None:
    """Let all anchor attention of a model run in the paper's order."""
    for module in model.modules():
        if isinstance(module, BaseAnchorAttention):
            module.order = 'paper'
