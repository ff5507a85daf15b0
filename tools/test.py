"""Evaluate a checkpoint of a detector, a segmentor or a classifier."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config

# How the visualisation hook of each library is told to draw to a folder.
SHOW_OPTIONS = dict(
    mmdet=lambda path: dict(draw=True, test_out_dir=path),
    mmseg=lambda path: dict(draw=True, interval=1),
    mmpretrain=lambda path: dict(enable=True, interval=1, out_dir=path),
)


def draw_to(cfg: 'Config', folder: str) -> None:
    """Have all predictions drawn into ``folder``.

    mmdet takes it as below its logs in the work folder, and mmseg's backend
    draws to ``vis_data/vis_image`` in it.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    scope = cfg.get('default_scope')
    if hook is None or scope not in SHOW_OPTIONS:
        raise UsageError(
            '--show-dir needs default_hooks.visualization and a default_scope '
            f'of {sorted(SHOW_OPTIONS)} in the config, got {scope!r}'
        )
    hook.update(SHOW_OPTIONS[scope](folder))
    if scope == 'mmseg':
        cfg.visualizer.save_dir = folder


def dump_to(cfg: 'Config', path: str) -> None:
    """Have the predictions dumped to ``path``.

    That is a pickle file, or for mmseg also a folder of label maps.
    """
    metrics = cfg.test_evaluator
    metrics = list(metrics) if isinstance(metrics, list) else [metrics]
    if Path(path).suffix not in ('.pkl', '.pickle'):
        write_label_maps(cfg, metrics, path)
        return
    kind = (
        'DumpDetResults'
        if cfg.get('default_scope') == 'mmdet'
        else 'mmengine.DumpResults'
    )
    cfg.test_evaluator = [*metrics, dict(type=kind, out_file_path=path)]


def write_label_maps(cfg: 'Config', metrics: list, path: str) -> None:
    """Have mmseg's metric write its predictions as PNG files."""
    if cfg.get('default_scope') != 'mmseg' or Path(path).suffix:
        raise UsageError(
            '--out must end with .pkl or .pickle, or for a segmentor name a '
            f'folder, got {path!r}'
        )
    writers = [m for m in metrics if str(m['type']).endswith('IoUMetric')]
    if not writers:
        raise UsageError(
            f'--out {path} needs an IoUMetric as test_evaluator, got '
            f'{[m["type"] for m in metrics]}'
        )
    writers[0].output_dir = path


def augment(cfg: 'Config') -> None:
    """Have several views of each image predicted, and the results merged."""
    missing = [k for k in ('tta_model', 'tta_pipeline') if not cfg.get(k)]
    if missing:
        raise UsageError(f'--tta needs {" and ".join(missing)} in the config')
    # Imports what was just checked.
    from anchorformer_mm.utils.dataset_paths import split_datasets

    for dataset in split_datasets(cfg, 'test'):
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Imports what was just checked.
    from anchorformer_mm.engine import launch
    from anchorformer_mm.utils.checkpoint import require_checkpoint

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='FILE.pkl',
        help='dump the predictions; a segmentor writes label maps if this '
        'is a folder, while a file holds the scores of every pixel too',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation, with tta_model and tta_pipeline of the '
        'config',
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the predictions'
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args()

    cfg = launch.load_config(args, splits=('test',))
    require_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.tta:
        augment(cfg)
    if args.show_dir is not None:
        draw_to(cfg, args.show_dir)
    if args.out is not None:
        dump_to(cfg, args.out)
    launch.run(cfg, 'test')


if __name__ == '__main__':
    run_command_line(main)
