"""Anchors for each head of a ViT: centroids of its queries."""

import warnings
from collections.abc import Iterable

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from anchorformer_mm.models.backbones import AnchorFormer
from anchorformer_mm.utils.errors import UsageError


@torch.no_grad()
def collect_queries(
    model: AnchorFormer,
    batches: Iterable[Tensor],
    tokens_per_image: int,
    seed: int = 0,
) -> list[Tensor]:
    """Queries of some tokens of each image, in every layer.

    Args:
        model: With vanilla attention, in evaluation mode.
        batches: Images as the model wants them, shape (B, 3, H, W).
        tokens_per_image: Tokens t taken of each image, at random and the same
            in all layers; all of them where there are fewer.
        seed: Of this choice.

    Returns:
        list[Tensor]: One for each layer, shape (h, N, d), where N is the
        number of tokens taken of all images.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = model.layers[0].attn.num_heads
    collected = [[] for _ in model.layers]
    index = None

    def choose(module, args, output) -> None:
        nonlocal index
        b, n, _ = args[0].shape
        order = torch.rand(b, n, generator=generator).argsort(dim=1)
        index = order[:, :tokens_per_image, None]

    def keep(store: list):
        def hook(module, args, output) -> None:
            # Of the first third of the output, in which the queries are.
            q = output[..., : module.in_features]
            q = q.gather(1, index.expand(-1, -1, q.shape[-1]))
            store.append(q.flatten(0, 1))

        return hook

    hooks = [model.drop_after_pos.register_forward_hook(choose)]
    hooks += [
        layer.attn.qkv.register_forward_hook(keep(store))
        for layer, store in zip(model.layers, collected, strict=True)
    ]
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        torch.cat(store).unflatten(1, (heads, -1)).transpose(0, 1)
        for store in collected
    ]


def cluster_queries(queries: Tensor, num_anchors: int, seed: int) -> Tensor:
    """Centroids of the queries of each head, by k-means.

    Args:
        queries: Shape (h, N, d).
        num_anchors: Centroids m.
        seed: Of their first choice.

    Returns:
        Tensor: Shape (h, m, d).

    Raises:
        UsageError: There are fewer different queries than centroids.
    """
    if queries.shape[1] < num_anchors:
        raise UsageError(
            f'{num_anchors} anchors need as many queries, but the images '
            f'have {queries.shape[1]}: give more images'
        )
    return torch.stack([_centroids(q, num_anchors, seed) for q in queries])


def _centroids(points: Tensor, count: int, seed: int) -> Tensor:
    kmeans = KMeans(count, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter('error', ConvergenceWarning)
        try:
            kmeans.fit(points.numpy())
        except ConvergenceWarning:
            raise UsageError(
                f'{count} anchors need as many different queries, but the '
                f'{len(points)} of these images repeat themselves: give more '
                'images'
            ) from None
    return torch.from_numpy(kmeans.cluster_centers_)
