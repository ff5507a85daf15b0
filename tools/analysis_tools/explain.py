"""Picture what a trained model looks at: anchors, clusters, or Grad-CAM."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config

# Pictures of what layers themselves make; and all methods.
MAPS = ('anchors', 'clusters')
METHODS = (*MAPS, 'grad-cam')
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
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', help='image files', type=Path)
    parser.add_argument(
        '--out', required=True, type=Path, help='folder for the pictures'
    )
    parser.add_argument(
        '--method',
        choices=METHODS,
        help='default: anchors, or clusters of a model that has these alone',
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides of the config, as key=value pairs',
    )
    maps = parser.add_argument_group('anchors and clusters')
    maps.add_argument(
        '--layers',
        nargs='+',
        type=int,
        help='layers with anchors or clusters, counted from 0 (default: all '
        'with anchors, the last of each stage with clusters)',
    )
    anchors = parser.add_argument_group('anchors')
    anchors.add_argument(
        '--heads',
        nargs='+',
        help="heads, counted from 0, or 'mean' (default)",
    )
    anchors.add_argument(
        '--num-anchors-shown',
        type=int,
        metavar='K',
        help='anchors of each layer (default: 6)',
    )
    anchors.add_argument(
        '--order',
        choices=['contrast', 'mass'],
        help='show those that tell patches apart (default), or those that '
        'collect most',
    )
    clusters = parser.add_argument_group('clusters')
    clusters.add_argument(
        '--scales',
        nargs='+',
        type=int,
        help='a row for each, such as 1 4 (default: the coarsest scale)',
    )
    grad_cam = parser.add_argument_group('grad-cam')
    grad_cam.add_argument(
        '--target',
        metavar='CLASS',
        help='name or number of a class (default: the predicted one; of a '
        'segmentor, the one with most pixels)',
    )
    grad_cam.add_argument(
        '--target-layer',
        metavar='NAME',
        help='layer whose map is weighted, such as backbone.layers.11.ln1 '
        '(the default for a classifier with AnchorFormer of 12 layers), '
        'backbone.layers.11 (for a segmentor with it), or backbone.stages.2',
    )
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Refuse what is wrong before anything is loaded.

    Raises:
        UsageError: A file is missing, an argument has no use or no meaning.
    """
    check_belonging(args, [args.method] if args.method else MAPS)
    if not Path(args.checkpoint).is_file():
        raise UsageError(f'checkpoint not found: {args.checkpoint}')
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f'--out must be a folder, got the file {args.out}')
    stems = [image.stem for image in args.images]
    for image in args.images:
        if stems.count(image.stem) > 1:
            raise UsageError(
                f'several images are named {image.stem!r}, and so would be '
                'their pictures: explain them with another --out each'
            )


def check_belonging(args: argparse.Namespace, methods: Sequence[str]) -> None:
    """Refuse arguments of which none of the methods makes use.

    Raises:
        UsageError: There is one.
    """
    for name, users in BELONGS.items():
        if getattr(args, name) is not None and not {*users} & {*methods}:
            flag = f'--{name.replace("_", "-")}'
            raise UsageError(
                f'{flag} is of --method {" or ".join(users)} only, not of '
                f'{" or ".join(methods)}'
            )


def chosen_heads(heads: list[str] | None) -> list[int] | None:
    """Numbers of heads, None for their mean.

    Raises:
        UsageError: They are neither.
    """
    if heads in (None, ['mean']):
        return None
    if not all(head.isdecimal() for head in heads):
        raise UsageError(
            f"--heads must be numbers from 0, or 'mean'; got {' '.join(heads)}"
        )
    return [int(head) for head in heads]


def explain_layers(args: argparse.Namespace, cfg: 'Config') -> None:
    """Draw what the layers of the model make of every image.

    Raises:
        UsageError: They make neither anchor maps nor clusters, or an argument
            is not of what they make.
    """
    from anchorformer_mm.analysis.inference import load_model, prepare_image
    from anchorformer_mm.analysis.layer_maps import (
        maps_of,
        picture_anchors,
        picture_clusters,
    )

    heads = chosen_heads(args.heads)
    model = load_model(cfg, args.checkpoint, args.device)
    method = args.method or maps_of(model)
    check_belonging(args, [method])
    options = dict(layers=args.layers)
    if method == 'clusters':
        draw = picture_clusters
        options |= dict(scales=args.scales)
    else:
        draw = picture_anchors
        options |= dict(
            heads=heads, num_anchors=args.num_anchors_shown, order=args.order
        )
    given = {name: o for name, o in options.items() if o is not None}
    for path in args.images:
        image = prepare_image(cfg, model, path)
        for picture in draw(model, image, args.out / path.stem, **given):
            print(picture)


def explain_class(args: argparse.Namespace, cfg: 'Config') -> None:
    """Draw Grad-CAM of every image, for a classifier."""
    from anchorformer_mm.analysis.grad_cam import draw_grad_cam, grad_cam
    from anchorformer_mm.analysis.inference import load_model, prepare_image

    model = load_model(cfg, args.checkpoint, args.device)
    classes = model.dataset_meta.get('classes') or ()
    for path in args.images:
        image = prepare_image(cfg, model, path)
        evidence = grad_cam(
            model,
            image.inputs,
            target=args.target,
            classes=classes,
            layer=args.target_layer,
        )
        picture = args.out / f'{path.stem}_grad_cam.png'
        draw_grad_cam(image.pixels, evidence, picture, classes=classes)
        print(picture)


def explain_pixels(args: argparse.Namespace, cfg: 'Config') -> None:
    """Draw Grad-CAM of every image, for a segmentor.

    Raises:
        UsageError: An image has no pixel of the class, among others.
    """
    from anchorformer_mm.analysis.grad_cam import class_name
    from anchorformer_mm.analysis.inference import load_model, prepare_image
    from anchorformer_mm.analysis.segmentation_grad_cam import (
        draw_segmentation_grad_cam,
        segmentation_grad_cam,
    )
    from anchorformer_mm.analysis.segmentations import palette_of

    model = load_model(cfg, args.checkpoint, args.device)
    names = model.dataset_meta.get('classes') or ()
    classes = [class_name(i, names) for i in range(model.num_classes)]
    palette = palette_of(model.dataset_meta, classes)
    for path in args.images:
        image = prepare_image(cfg, model, path)
        try:
            evidence = segmentation_grad_cam(
                model,
                image.inputs,
                target=args.target,
                classes=classes,
                layer=args.target_layer,
                image_size=image.pixels.shape[:2],
            )
        except UsageError as error:
            # One image has the class, another has not.
            raise UsageError(f'{path}: {error}') from error
        picture = args.out / f'{path.stem}_grad_cam.png'
        draw_segmentation_grad_cam(
            image.pixels, evidence, picture, classes=classes, palette=palette
        )
        print(picture)


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    check_args(args)
    # Import what was just checked.
    from anchorformer_mm.analysis.inference import require_image
    from anchorformer_mm.engine.launch import load_config

    cfg = load_config(args, [])
    for path in args.images:
        require_image(path)
    if args.method != 'grad-cam':
        explain_layers(args, cfg)
        return
    scope = cfg.get('default_scope')
    if scope not in ('mmpretrain', 'mmseg'):
        raise UsageError(
            '--method grad-cam is for classifiers of mmpretrain and '
            f'segmentors of mmseg; {args.config} is of {scope}'
        )
    check_environment(['pytorch_grad_cam'])
    if scope == 'mmseg':
        explain_pixels(args, cfg)
    else:
        explain_class(args, cfg)


if __name__ == '__main__':
    run_command_line(main)
