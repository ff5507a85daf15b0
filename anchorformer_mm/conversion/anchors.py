"""Anchors of an AnchorFormer from the queries of a ViT on some images."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import scandir
from sklearn.cluster import KMeans
from torch import Tensor

from anchorformer_mm.apis import image_pipeline, prepare_with
from anchorformer_mm.models.backbones import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(folder: str | Path, count: int, seed: int = 0) -> list[Path]:
    """Choose images below a folder at random.

    Args:
        folder: Searched with all folders in it.
        count: Images wanted; all of them where there are fewer.
        seed: Of the choice.

    Raises:
        UsageError: There is no image.
    """
    found = scandir(folder, _SUFFIXES, recursive=True, case_sensitive=False)
    files = sorted(Path(folder) / name for name in found)
    if not files:
        raise UsageError(
            f'no image ({", ".join(_SUFFIXES)}) found in the folder {folder}'
        )
    return sorted(random.Random(seed).sample(files, min(count, len(files))))


def image_batches(cfg: Config, paths: Iterable[Path]) -> Iterator[Tensor]:
    """Images as the model of a config is given them when it is tested.

    Args:
        cfg: Its ``test_dataloader.dataset.pipeline`` and its data
            preprocessor are used, and no more of its model.
        paths: Image files.

    Returns:
        Iterator[Tensor]: One image at a time, shape (1, C, H, W); sizes may
        differ.

    Raises:
        UsageError: The config has no test pipeline or no data preprocessor;
            or, while iterating, a file holds no image that can be read.
    """
    init_default_scope(cfg.get('default_scope') or 'anchorformer_mm')
    pipeline = image_pipeline(cfg)
    settings = cfg.model.get('data_preprocessor')
    settings = settings or cfg.get('data_preprocessor')
    if settings is None:
        raise UsageError(
            'the config has no data_preprocessor, which tells how images are '
            'normalised'
        )
    # The one that mmpretrain's classifiers have where none is named.
    settings = dict(type='mmpretrain.ClsDataPreprocessor') | settings
    model = MODELS.build(settings)
    return (prepare_with(pipeline, model, path).inputs for path in paths)


@torch.no_grad()
def collect_queries(
    model: AnchorFormer,
    batches: Iterable[Tensor],
    tokens_per_image: int,
    seed: int = 0,
) -> list[Tensor]:
    """Queries and keys of some tokens of each image, in every layer.

    Args:
        model: With vanilla attention, in evaluation mode.
        batches: Images as the model wants them, shape (B, 3, H, W).
        tokens_per_image: Tokens t taken of each image, at random and the same
            in all layers; all of them where there are fewer.
        seed: Of this choice.

    Returns:
        list[Tensor]: One for each layer, shape (2, h, N, d), queries before
        keys, where N is the number of tokens taken of all images.
    """
    generator = torch.Generator().manual_seed(seed)
    heads, dims = model.layers[0].attn.num_heads, model.embed_dims
    channels = model.patch_embed.projection.in_channels
    collected, outputs = [[] for _ in model.layers], []
    hooks = [
        layer.attn.qkv.register_forward_hook(
            lambda module, args, output: outputs.append(output)
        )
        for layer in model.layers
    ]
    try:
        for batch in batches:
            if batch.shape[1] != channels:
                raise UsageError(
                    'the test pipeline of the config gives images of '
                    f'{batch.shape[1]} channels, but its backbone has '
                    f'in_channels={channels}'
                )
            outputs.clear()
            model(batch)
            order = torch.rand(outputs[0].shape[:2], generator=generator)
            chosen = order.argsort(dim=1)[:, :tokens_per_image, None]
            for queries, qkv in zip(collected, outputs, strict=True):
                # Queries come first, then keys and values.
                index = chosen.expand(-1, -1, 2 * dims)
                queries.append(qkv[..., : 2 * dims].gather(1, index))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        torch.cat([t.flatten(0, 1) for t in queries])
        .unflatten(1, (2, heads, -1))
        .permute(1, 2, 0, 3)
        for queries in collected
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
    centroids = []
    for points in queries.numpy():
        different = len(np.unique(points, axis=0))
        if different < num_anchors:
            raise UsageError(
                f'{num_anchors} anchors need as many different queries, but '
                f'the images have {different}: give more images'
            )
        kmeans = KMeans(num_anchors, n_init=1, random_state=seed).fit(points)
        centroids.append(torch.from_numpy(kmeans.cluster_centers_))
    return torch.stack(centroids)


def reading_anchors(
    centroids: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    r"""Anchors that a token finds by its key as it would by its query.

    Tokens of softmax attention are told apart by their queries, and those of
    anchor attention by their keys alone. With the linear map R of keys to
    queries that fits best, :math:`q \approx R k` but for their means, a
    centred centroid c is read by :math:`q \cdot c \approx k \cdot R^\top c`.

    Args:
        centroids: Of queries, shape (h, m, d).
        queries: Shape (h, N, d).
        keys: Of the same tokens, shape (h, N, d).

    Returns:
        Tensor: Shape (h, m, d), of the norm of ``centroids``: for standardized
        logits it is free.
    """
    q, k, c = (t - t.mean(1, keepdim=True) for t in (queries, keys, centroids))
    # Keys may lie in fewer dimensions: a driver for such on every device.
    fit = torch.linalg.pinv(k.double()) @ q.double()  # k fit = q
    anchors = (c.double() @ fit.mT).to(centroids)
    norms = [t.norm(dim=(1, 2), keepdim=True) for t in (centroids, anchors)]
    return anchors * (norms[0] / norms[1].clamp(min=1e-12))


def share_anchors(
    centroids: Tensor, key_weight: Tensor, *, centre: bool = True
) -> tuple[Tensor, Tensor, float]:
    r"""Replace the anchors of each head by common ones.

    Heads have no common basis, hence no common anchors; but a head's basis is
    free, since only products of anchors and keys count. With centred
    centroids :math:`C_i` (m x d) of the heads side by side and their singular
    value decomposition
    :math:`[C_1 \dots C_h] = P \Sigma [Q_1 \dots Q_h]^\top`, the anchors
    :math:`U = s P \Sigma^{1/2}` and the change of basis
    :math:`M_i = s^{-1} \Sigma^{1/2} Q_i^\top` of the keys of head i give
    :math:`U M_i = C_i`, and so the same similarities:
    :math:`u_j \cdot M_i k = c_{ij} \cdot k`.

    Centring changes nothing in the layer: a vector added to all anchors adds
    the same to all similarities of a key, which a softmax over anchors does
    not see. The result is exact while the centred anchors have rank d or
    less, always so for m <= d + 1, and else the best fit in d dimensions.

    The channels that the anchors leave empty (all but m - 1) keep the rest of
    the keys: were they zero as well, no gradient would ever reach them. The
    scale s leaves the norm of the key projection as it is.

    Args:
        centroids: Anchors of each head, shape (h, m, d).
        key_weight: Key projection of each head, shape (h, d, D).
        centre: Whether they are centred; not where tokens are gathered by
            them alone, which is a softmax over tokens.

    Returns:
        tuple: In fp64, the anchors U, shape (m, d), and the bases M, shape
        (h, d, d): the keys k of head i become ``bases[i] k``. And the
        residual: the Frobenius norm of ``U M - C`` over that of C, centred.
    """
    heads, m, d = centroids.shape
    key_weight = key_weight.double()
    centred = centroids.double()
    if centre:
        centred = centred - centred.mean(dim=1, keepdim=True)
    stack = centred.transpose(0, 1).reshape(m, heads * d)
    p, sigma, qt = torch.linalg.svd(stack, full_matrices=False)
    # Singular values of rounding are no directions.
    threshold = sigma[:1] * max(stack.shape) * torch.finfo(p.dtype).eps
    rank = min(int((sigma > threshold).sum()), d)
    root = sigma[:rank].sqrt()
    q = qt[:rank].reshape(rank, heads, d).transpose(0, 1)
    used = root[:, None] * q  # (h, rank, d)
    span = torch.linalg.svd(used, full_matrices=True).Vh
    scale = torch.ones((), dtype=p.dtype)
    if rank:
        before = (span[:, :rank] @ key_weight).norm()
        after = (used @ key_weight).norm()
        if before > 0 and after > 0:
            scale = after / before
    anchors = torch.zeros(m, d, dtype=p.dtype)
    anchors[:, :rank] = scale * p[:, :rank] * root
    bases = torch.cat((used / scale, span[:, rank:]), dim=1)
    error = (anchors @ bases - centred).norm()
    return anchors, bases, float(error / centred.norm()) if rank else 0.0
