"""Turn a pretrained ViT or DeiT into a start for an AnchorFormer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor

    from anchorformer_mm.conversion import Target, ViTWeights

# Queries of one head that are clustered; they bound memory and time.
MAX_QUERIES = 16384


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config whose model.backbone is an AnchorFormer'
    )
    parser.add_argument(
        'checkpoint',
        help='weights of a ViT or DeiT of mmpretrain, timm or the DeiT '
        'release, .pth or .safetensors',
    )
    parser.add_argument('out', help='checkpoint to write', type=Path)
    parser.add_argument(
        '--anchors',
        choices=['kmeans', 'random'],
        default='kmeans',
        help='learned anchors are centroids of the queries of --images '
        '(default), or stay random',
    )
    parser.add_argument(
        '--images', metavar='DIR', type=Path, help='folder of images'
    )
    parser.add_argument(
        '--num-images',
        type=_positive,
        default=64,
        help='how many of them are used (default: 64)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of every choice (default: 0)'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace OUT if it is there'
    )
    # What the other command lines ask for and this one does not.
    parser.set_defaults(
        cfg_options=None, work_dir=None, launcher='none', local_rank=0
    )
    return parser.parse_args()


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


def make_centroids(
    args: argparse.Namespace,
    cfg: 'Config',
    source: 'ViTWeights',
    target: 'Target',
) -> list['Tensor']:
    """Anchors of each layer and head, from images run through the source."""
    from mmengine.utils import ProgressBar

    from anchorformer_mm.conversion import (
        cluster_queries,
        collect_queries,
        find_images,
        image_batches,
        vanilla_model,
    )

    if args.images is None:
        raise UsageError(
            '--images is needed to make anchors: a folder of images of the '
            'kind that the model will see; or --anchors random'
        )
    paths = find_images(args.images, args.num_images, args.seed)
    images = image_batches(cfg, paths)
    model = vanilla_model(source, target.backbone_cfg)
    channels = model.patch_embed.projection.in_channels
    print(f'running {len(paths)} images through the test pipeline')
    bar = ProgressBar(len(paths))

    def batches():
        for batch in images:
            if batch.shape[1] != channels:
                raise UsageError(
                    'the test pipeline of the config gives images of '
                    f'{batch.shape[1]} channels, but its backbone has '
                    f'in_channels={channels}'
                )
            yield batch
            bar.update(len(batch))

    per_image = max(1, MAX_QUERIES // len(paths))
    queries = collect_queries(model, batches(), per_image, args.seed)
    layers = target.backbone.layers
    print(f'\nclustering {queries[0].shape[1]} queries a head')
    bar = ProgressBar(len(layers))
    centroids = []
    for layer, q in zip(layers, queries, strict=True):
        centroids.append(cluster_queries(q, layer.attn.num_anchors, args.seed))
        bar.update()
    print()
    return centroids


def main() -> None:
    args = parse_args()
    check_paths(args)
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Import what was just checked.
    import torch

    from anchorformer_mm.conversion import (
        build_target,
        read_checkpoint,
        sizes_of,
        vit_weights,
        warm_start,
    )
    from anchorformer_mm.engine import launch
    from anchorformer_mm.models.layers import AnchorAttention
    from anchorformer_mm.utils.files import replacing

    cfg = launch.load_config(args, splits=())
    source = vit_weights(read_checkpoint(args.checkpoint))
    torch.manual_seed(args.seed)
    target = build_target(cfg)
    attn = target.backbone.layers[0].attn
    sizes = ', '.join(f'{k} {v}' for k, v in sizes_of(source.backbone).items())
    print(f'{args.checkpoint}: {sizes}')
    print(f'num_heads {attn.num_heads}, from the config: weights do not tell')
    made = isinstance(attn, AnchorAttention) and args.anchors == 'kmeans'
    centroids = make_centroids(args, cfg, source, target) if made else None
    start = warm_start(source, target.backbone, target.head, centroids)
    print(start.inventory)
    meta = dict(
        warm_start=dict(
            checkpoint=Path(args.checkpoint).name,
            config=Path(args.config).name,
            anchors=args.anchors,
            seed=args.seed,
            inventory=start.inventory.rows(),
        )
    )
    with replacing(args.out) as temporary:
        torch.save(dict(state_dict=start.state_dict, meta=meta), temporary)
    print(f'{args.out}: written')


if __name__ == '__main__':
    run_command_line(main)
