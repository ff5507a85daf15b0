"""The parts of a config's model that a warm start concerns."""

from dataclasses import dataclass

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from anchorformer_mm.models.backbones import AnchorFormer
from anchorformer_mm.utils.errors import UsageError


@dataclass(frozen=True)
class Target:
    """What is to be warm-started.

    Args:
        backbone: Freshly built; its parameters are as the constructors draw
            them.
        backbone_cfg: Its arguments.
        head: The classification head, if the model has one.
    """

    backbone: AnchorFormer
    backbone_cfg: dict
    head: nn.Module | None


def build_target(cfg: Config) -> Target:
    """Build the backbone and the classification head of a config.

    The rest, such as a teacher or a detection head, is not needed. Nothing is
    initialised, hence no other checkpoint is read.

    Raises:
        UsageError: The config has no AnchorFormer as its backbone, or gives
            it an argument that is refused.
    """
    model = cfg.get('model') or {}
    backbone_cfg = model.get('backbone')
    if not backbone_cfg:
        raise UsageError(f'{cfg.filename} has no model.backbone')
    init_default_scope(cfg.get('default_scope') or 'anchorformer_mm')
    try:
        backbone = MODELS.build(backbone_cfg)
    except (ValueError, TypeError) as error:
        raise UsageError(f'model.backbone of the config: {error}') from None
    if not isinstance(backbone, AnchorFormer):
        raise UsageError(
            'model.backbone of the config must be anchorformer_mm.'
            f'AnchorFormer, got {backbone_cfg["type"]!r}'
        )
    head = model.get('head')
    return Target(
        backbone,
        backbone_cfg.to_dict(),
        MODELS.build(head) if head else None,
    )
