"""Turn a pretrained ViT or DeiT into a start for an AnchorFormer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor, nn

    from anchorformer_mm.conversion.vit import ViTWeights
    from anchorformer_mm.models.backbones import AnchorFormer

# Queries of one head that are clustered; they bound memory and time.
MAX_QUERIES = 16384


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config whose model.backbone is an AnchorFormer')
    add(
        'checkpoint',
        help='weights of a ViT or DeiT of mmpretrain, timm or the DeiT '
        'release, .pth or .safetensors',
    )
    add('out', help='checkpoint to write', type=Path)
    add(
        '--anchors',
        choices=['kmeans', 'random'],
        default='kmeans',
        help='learned anchors are centroids of the queries of --images '
        '(default), or stay random',
    )
    add('--images', metavar='DIR', type=Path, help='folder of images')
    number = 'how many of them are used (default: 64)'
    add('--num-images', type=int, default=64, help=number)
    seed = 'of every choice (default: 0)'
    add('--seed', type=int, default=0, help=seed)
    overwrite = 'replace OUT if it is there'
    add('--overwrite', action='store_true', help=overwrite)
    args = parser.parse_args()
    if args.num_images < 1:
        parser.error(f'--num-images must be >= 1, got {args.num_images}')
    return args


def check_paths(args: argparse.Namespace) -> None:
    """Check what can be checked before anything heavy is imported."""
    if args.out.is_dir():
        raise UsageError(f'OUT is a folder: {args.out}')
    if args.out.exists() and not args.overwrite:
        raise UsageError(f'{args.out} is there; --overwrite replaces it')
    if not Path(args.checkpoint).is_file():
        raise UsageError(f'checkpoint not found: {args.checkpoint}')
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f'--images must be a folder, got {args.images}')


def build_target(cfg: 'Config') -> tuple['AnchorFormer', 'nn.Module | None']:
    """Build the backbone and the classification head of a config.

    The rest, such as a teacher or a detection head, is not needed.
    """
    from mmengine.registry import MODELS

    from anchorformer_mm.apis import build_model
    from anchorformer_mm.models.backbones import AnchorFormer

    backbone = build_model(cfg, backbone_only=True)
    if not isinstance(backbone, AnchorFormer):
        raise UsageError(
            'model.backbone of the config must be anchorformer_mm.'
            f'AnchorFormer, got {cfg.model.backbone["type"]!r}'
        )
    head = cfg.model.get('head')
    return backbone, MODELS.build(head) if head else None


def make_centroids(
    args: argparse.Namespace,
    cfg: 'Config',
    source: 'ViTWeights',
    backbone: 'AnchorFormer',
) -> list['Tensor']:
    """Anchors of each layer and head, from images run through the source."""
    import torch
    from mmengine.utils import track_iter_progress

    from anchorformer_mm.conversion import anchors, vit

    if args.images is None:
        raise UsageError(
            '--images is needed to make anchors: a folder of images of the '
            'kind that the model will see; or --anchors random'
        )
    paths = anchors.find_images(args.images, args.num_images, args.seed)
    images = anchors.image_batches(cfg, paths)
    model = vit.vanilla_model(source, cfg.model.backbone)
    print(f'running {len(paths)} images through the test pipeline')
    per_image = max(1, MAX_QUERIES // len(paths))
    batches = track_iter_progress((images, len(paths)))
    queries = anchors.collect_queries(model, batches, per_image, args.seed)
    print(f'\nclustering {queries[0].shape[2]} queries a head')
    layers = list(zip(backbone.layers, queries, strict=True))
    centroids = []
    for layer, (q, k) in track_iter_progress(layers):
        made = anchors.cluster_queries(q, layer.attn.num_anchors, args.seed)
        if not layer.attn.tied:
            reading = anchors.reading_anchors(made, q, k)
            made = torch.cat((made, reading), dim=1)
        centroids.append(made)
    return centroids


def main() -> None:
    args = parse_args()
    check_paths(args)
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Import what was just checked.
    import torch

    from anchorformer_mm.apis import build_model, read_config
    from anchorformer_mm.conversion import vit
    from anchorformer_mm.models.layers import AnchorAttention
    from anchorformer_mm.utils.files import replacing

    cfg = read_config(args.config)
    source = vit.vit_weights(vit.read_checkpoint(args.checkpoint))
    torch.manual_seed(args.seed)
    backbone, head = build_target(cfg)
    attn = backbone.layers[0].attn
    sizes = vit.sizes_of(source.backbone).items()
    print(f'{args.checkpoint}: {", ".join(f"{k} {v}" for k, v in sizes)}')
    print(f'num_heads {attn.num_heads}, from the config: weights do not tell')
    centroids = None
    if isinstance(attn, AnchorAttention) and args.anchors == 'kmeans':
        centroids = make_centroids(args, cfg, source, backbone)
    rest = None
    if source.other:
        with torch.device('meta'):
            rest = build_model(cfg).state_dict()
    state, inventory = vit.warm_start(source, backbone, head, centroids, rest)
    print(inventory)
    meta = dict(
        warm_start=dict(
            checkpoint=Path(args.checkpoint).name,
            config=Path(args.config).name,
            anchors=args.anchors,
            seed=args.seed,
            inventory=inventory.rows(),
        )
    )
    with replacing(args.out) as temporary:
        torch.save(dict(state_dict=state, meta=meta), temporary)
    print(f'{args.out}: written')


if __name__ == '__main__':
    run_command_line(main)
