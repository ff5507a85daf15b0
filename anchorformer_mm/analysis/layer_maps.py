"""What the layers of a model make of an image, as pictures."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from anchorformer_mm.analysis.anchor_maps import (
    choose_layers,
    collect_anchor_weights,
    draw_anchor_maps,
    draw_assignment,
)
from anchorformer_mm.analysis.cluster_maps import (
    choose_cluster_layers,
    collect_clusters,
    draw_clusters,
)
from anchorformer_mm.analysis.inference import PreparedImage
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError


def maps_of(model: nn.Module) -> str:
    """Which maps the layers of a model make.

    Returns:
        str: ``'anchors'``, or ``'clusters'`` if it has these alone.

    Raises:
        UsageError: It has neither.
    """
    layers = list(model.modules())
    if any(callable(getattr(layer, 'logits_of', None)) for layer in layers):
        return 'anchors'
    if any(isinstance(layer, ClusterAttention) for layer in layers):
        return 'clusters'
    raise UsageError(
        'the model has neither anchors nor clusters to draw (no layer has a '
        'method logits_of or is a ClusterAttention): vanilla attention and '
        'convolutions have none'
    )


def picture_anchors(
    model: nn.Module,
    image: PreparedImage,
    prefix: str | Path,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    num_anchors: int = 6,
    order: str = 'contrast',
) -> list[Path]:
    """Draw the anchor maps of an image, and the assignment of its patches.

    Args:
        model: Detector, segmentor or classifier.
        image: As it sees it.
        prefix: Folder, and what the names of the pictures begin with.
        layers: Their numbers; all for None.
        heads: Their numbers; None is their mean.
        num_anchors: Anchors of each layer, at most.
        order: Which ones, as for
            :func:`~anchorformer_mm.analysis.anchor_maps.draw_anchor_maps`.

    Returns:
        list[Path]: The pictures.

    Raises:
        UsageError: The model has no anchors, or an argument has no meaning.
    """
    collected = collect_anchor_weights(
        model, image.inputs, image.data_samples, mode='tensor'
    )
    common = dict(
        image=image.pixels,
        layers=choose_layers(collected, layers),
        heads=heads,
        input_size=image.input_size,
    )
    maps, assignment = (
        Path(f'{prefix}_{kind}.png') for kind in ('anchors', 'assignment')
    )
    draw_anchor_maps(**common, path=maps, num_anchors=num_anchors, order=order)
    draw_assignment(**common, path=assignment)
    return [maps, assignment]


def picture_clusters(
    model: nn.Module,
    image: PreparedImage,
    prefix: str | Path,
    *,
    layers: Sequence[int] | None = None,
    scales: Sequence[int] | None = None,
) -> list[Path]:
    """Draw the clusters of an image.

    Args:
        model: Detector, segmentor or classifier.
        image: As it sees it.
        prefix: Folder, and what the name of the picture begins with.
        layers: Their numbers; the last of each stage for None.
        scales: A row for each; the coarsest for None.

    Returns:
        list[Path]: The picture.

    Raises:
        UsageError: The model has no clusters, or no such layer or scale.
    """
    collected = collect_clusters(
        model, image.inputs, image.data_samples, mode='tensor'
    )
    picture = Path(f'{prefix}_clusters.png')
    draw_clusters(
        image.pixels,
        choose_cluster_layers(collected, layers),
        picture,
        scales=scales,
        input_size=image.input_size,
    )
    return [picture]
