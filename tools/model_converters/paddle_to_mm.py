"""Turn PaddleDetection's weights of a PicoDet or its backbone into ours."""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        'weights',
        type=Path,
        help='.pdparams file of PaddleDetection; or, of a whole PicoDet that '
        'it exported, an ONNX file (.onnx) or the .pdiparams file of an '
        'inference model, with its .json beside it',
    )
    add('--config', required=True, help='config of the same model')
    add('--out', required=True, type=Path, help='checkpoint to write')
    add(
        '--backbone-only',
        action='store_true',
        help='leave neck and head; this also reads an ESNet or LCNet that was '
        'trained on ImageNet',
    )
    add(
        '--images',
        type=Path,
        metavar='DIR',
        help='folder of images, of which 50 are used to undo the folding of '
        'batch norms in an exported file; needed to train the weights further',
    )
    keys = 'list every key of the file, not only those that are left'
    add('--keys', action='store_true', help=keys)
    overwrite = 'replace OUT if it is there'
    add('--overwrite', action='store_true', help=overwrite)
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs, such as '
        'model.bbox_head.num_classes=20',
    )
    return parser.parse_args()


def class_names(cfg: 'Config', num_classes: int) -> dict:
    """Names and colours of the classes, as far as the config tells.

    Raises:
        UsageError: It names another number of classes than the head has.
    """
    from anchorformer_mm.apis import dataset_meta

    info = dataset_meta(cfg)
    if len(info.get('classes', ())) not in (0, num_classes):
        raise UsageError(
            f'the head of the config has num_classes={num_classes}, but '
            f'test_dataloader.dataset has {len(info["classes"])} classes; '
            'its metainfo.classes names them'
        )
    # A palette of the data set's own classes does not fit others.
    names = ('classes', 'palette')
    return {
        n: tuple(v)
        for n, v in info.items()
        if n in names and len(v) == num_classes
    }


def from_exported(
    args: argparse.Namespace, cfg: 'Config', model: 'nn.Module'
) -> tuple[dict, list, str]:
    """Convert an exported model, see ``convert_onnx``."""
    from anchorformer_mm.conversion.anchors import find_images, image_batches
    from anchorformer_mm.conversion.picodet_onnx import convert_onnx

    images = []
    if args.images:
        if not args.images.is_dir():
            raise UsageError(f'--images is no folder: {args.images}')
        images = list(image_batches(cfg, find_images(args.images, 50)))
    state, keys, norms = convert_onnx(args.weights, model, images)
    origins = dict(
        file='as in the file',
        images=f'folded in the file; made anew with {len(images)} images',
        neutral='folded in the file, and neutral in the checkpoint',
    )
    print(f'batch norms: {origins[norms]}')
    if norms == 'neutral':
        print(
            'warning: this checkpoint evaluates as the file does, but the '
            'first step of a training destroys it: to train it, convert with '
            '--images DIR, some images such as it is trained on',
            file=sys.stderr,
        )
    return state, keys, norms


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    if args.weights.suffix in ('.json', '.pdmodel'):
        args.weights = args.weights.with_suffix('.pdiparams')
    is_exported = args.weights.suffix in ('.onnx', '.pdiparams')
    if not args.weights.is_file():
        raise UsageError(f'file not found: {args.weights}')
    if args.out.is_dir():
        raise UsageError(f'--out is a folder: {args.out}')
    if is_exported and args.backbone_only:
        raise UsageError(
            '--backbone-only is for .pdparams files; of an exported model '
            "init_cfg takes the backbone alone by prefix='backbone.'"
        )
    if args.images and not is_exported:
        raise UsageError('--images is for .onnx and .pdiparams files only')
    if args.out.exists() and not args.overwrite:
        raise UsageError(f'{args.out} is there; --overwrite replaces it')
    # Import what was just checked.
    import torch
    from torch import nn

    from anchorformer_mm.apis import build_model, read_config
    from anchorformer_mm.conversion import paddle
    from anchorformer_mm.utils.files import replacing

    cfg = read_config(args.config, args.cfg_options)
    origin = {}
    if is_exported:
        model = build_model(cfg)
        state, keys, origin['batch_norms'] = from_exported(args, cfg, model)
    else:
        arrays = paddle.read_paddle(args.weights)
        model = build_model(cfg, backbone_only=args.backbone_only)
        if args.backbone_only:
            model = nn.ModuleDict(dict(backbone=model))
        state, keys = paddle.convert_paddle(arrays, model, args.backbone_only)
    counts = paddle.key_counts(keys)
    meta = dict(
        paddle=dict(
            file=args.weights.name,
            sha256=hashlib.sha256(args.weights.read_bytes()).hexdigest(),
            config=Path(args.config).name,
            keys=counts,
            **origin,
        )
    )
    if not args.backbone_only:
        classes = class_names(cfg, model.bbox_head.num_classes)
        if classes:
            meta['dataset_meta'] = classes
    for key in keys:
        if args.keys or not key.targets or key.note.startswith('other'):
            print(key)
    absent = {k: v for k, v in model.state_dict().items() if k not in state}
    columns = ('part', *paddle.ACTIONS, 'values', 'new')
    print(''.join(f'{name:>11}' for name in columns))
    for row in counts:
        prefix = f'{paddle.PARTS.get(row["part"], row["part"])}.'
        row['new'] = sum(
            value.numel()
            for name, value in absent.items()
            if row['part'] == 'all' or name.startswith(prefix)
        )
        print(''.join(f'{row[name]:>11}' for name in columns))
    counters = sum(name.endswith('.num_batches_tracked') for name in state)
    print(f'{counters} counters of batch norms: zero')
    if absent:
        print(
            f'{len(absent)} weights, for which the file has nothing, are not '
            f'written: {", ".join(absent)}. This is a start for a training, '
            'as load_from, and no model to be tested'
        )
    with replacing(args.out) as temporary:
        torch.save(dict(state_dict=state, meta=meta), temporary)
    print(f'{args.out}: written')


if __name__ == '__main__':
    run_command_line(main)
