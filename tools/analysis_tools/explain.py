"""Picture what a trained model looks at: anchors, clusters, or Grad-CAM."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from torch import nn

    from anchorformer_mm.apis import PreparedImage

# Pictures of what layers themselves make.
MAPS = ('anchors', 'clusters')
# Arguments that only some methods make use of.
BELONGS = dict(
    layers=MAPS,
    heads=('anchors',),
    num_anchors_shown=('anchors',),
    order=('anchors',),
    scales=('clusters',),
    target=('grad-cam',),
    target_layer=('grad-cam',),
)


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    own = "config file, or a library's own as mmpretrain::deit/FILE.py"
    add('config', help=own)
    add('checkpoint', help='checkpoint file')
    add('images', nargs='+', help='image files', type=Path)
    add('--out', required=True, type=Path, help='folder for the pictures')
    text = 'default: anchors, or clusters of a model that has these alone'
    add('--method', choices=[*MAPS, 'grad-cam'], help=text)
    add('--device', default='cpu')
    options = 'overrides of the config, as key=value pairs'
    add('--cfg-options', nargs='+', action=DictAction, help=options)
    add = parser.add_argument_group('anchors and clusters').add_argument
    text = (
        'layers with anchors or clusters, counted from 0 (default: all with '
        'anchors, the last of each stage with clusters)'
    )
    add('--layers', nargs='+', type=int, help=text)
    add = parser.add_argument_group('anchors').add_argument
    text = "heads, counted from 0, or 'mean' (default)"
    add('--heads', nargs='+', help=text)
    text = 'anchors of each layer (default: 6)'
    add('--num-anchors-shown', type=int, metavar='K', help=text)
    text = (
        'show those that tell patches apart (default), or those that collect '
        'most'
    )
    add('--order', choices=['contrast', 'mass'], help=text)
    add = parser.add_argument_group('clusters').add_argument
    text = 'a row for each, such as 1 4 (default: the coarsest scale)'
    add('--scales', nargs='+', type=int, help=text)
    add = parser.add_argument_group('grad-cam').add_argument
    text = (
        'name or number of a class (default: the predicted one; of a '
        'segmentor, the one with most pixels)'
    )
    add('--target', metavar='CLASS', help=text)
    text = (
        'layer whose map is weighted, such as backbone.layers.11.ln1 (the '
        'default for a classifier with AnchorFormer of 12 layers), '
        'backbone.layers.11 (for a segmentor with it), or backbone.stages.2'
    )
    add('--target-layer', metavar='NAME', help=text)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Refuse what is wrong before anything is loaded."""
    check_belonging(args, [args.method] if args.method else MAPS)
    if not Path(args.checkpoint).is_file():
        raise UsageError(f'checkpoint not found: {args.checkpoint}')
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f'--out must be a folder, got the file {args.out}')
    stems = [image.stem for image in args.images]
    for image in args.images:
        if stems.count(image.stem) > 1:
            raise UsageError(
                f'several images are named {image.stem!r}: explain them with '
                'another --out each'
            )


def check_belonging(args: argparse.Namespace, methods: Sequence[str]) -> None:
    """Refuse arguments of which none of the methods makes use."""
    for name, users in BELONGS.items():
        if getattr(args, name) is not None and not {*users} & {*methods}:
            flag = f'--{name.replace("_", "-")}'
            raise UsageError(
                f'{flag} is of --method {" or ".join(users)} only, not of '
                f'{" or ".join(methods)}'
            )


def chosen_heads(heads: list[str] | None) -> list[int] | None:
    """Numbers of heads, None for their mean."""
    if heads in (None, ['mean']):
        return None
    if not all(head.isdecimal() for head in heads):
        raise UsageError(
            f"--heads must be numbers from 0, or 'mean'; got {' '.join(heads)}"
        )
    return [int(head) for head in heads]


def layer_painter(
    args: argparse.Namespace, model: 'nn.Module'
) -> Callable[['PreparedImage', Path], list[Path]]:
    """Function that draws what the layers of a model make of an image."""
    from anchorformer_mm.analysis.layer_maps import maps_of, picture_layers

    kind = args.method or maps_of(model)
    check_belonging(args, [kind])
    options = dict(
        layers=args.layers,
        heads=chosen_heads(args.heads),
        num_anchors=args.num_anchors_shown,
        order=args.order,
        scales=args.scales,
    )
    given = {name: o for name, o in options.items() if o is not None}
    return partial(picture_layers, model, kind=kind, **given)


def class_painter(
    args: argparse.Namespace, model: 'nn.Module'
) -> Callable[['PreparedImage', Path], list[Path]]:
    """Function that draws Grad-CAM of an image."""
    from anchorformer_mm.analysis.grad_cam import (
        draw_grad_cam,
        grad_cam,
        segmentation_grad_cam,
    )

    classes = model.dataset_meta.get('classes') or ()
    segments = hasattr(model, 'encode_decode')
    explain = segmentation_grad_cam if segments else grad_cam
    options, colours = {}, {}
    if segments:
        from anchorformer_mm.analysis.pictures import class_name, palette_of

        meta = model.dataset_meta
        classes = [class_name(meta, i) for i in range(model.num_classes)]
        colours = dict(palette=palette_of(meta, classes))

    def draw(image: 'PreparedImage', stem: Path) -> list[Path]:
        if segments:
            options.update(image_size=image.pixels.shape[:2])
        evidence = explain(
            model,
            image.inputs,
            target=args.target,
            classes=classes,
            layer=args.target_layer,
            **options,
        )
        path = stem.with_name(f'{stem.name}_grad_cam.png')
        draw_grad_cam(image.pixels, evidence, path, classes=classes, **colours)
        return [path]

    return draw


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    check_args(args)
    # Import what was just checked.
    from anchorformer_mm.apis import (
        load_model,
        prepare_image,
        read_config,
        require_image,
    )

    cfg = read_config(args.config, args.cfg_options)
    for path in args.images:
        require_image(path)
    painter = layer_painter
    if args.method == 'grad-cam':
        scope = cfg.get('default_scope')
        if scope not in ('mmpretrain', 'mmseg'):
            raise UsageError(
                '--method grad-cam is for classifiers of mmpretrain and '
                f'segmentors of mmseg; {args.config} is of {scope}'
            )
        check_environment(['pytorch_grad_cam'])
        painter = class_painter
    model = load_model(cfg, args.checkpoint, args.device)
    draw = painter(args, model)
    for path in args.images:
        image = prepare_image(cfg, model, path)
        try:
            pictures = draw(image, args.out / path.stem)
        except UsageError as error:
            # One image has the class, another has not.
            raise UsageError(f'{path}: {error}') from error
        print(*pictures, sep='\n')


if __name__ == '__main__':
    run_command_line(main)
