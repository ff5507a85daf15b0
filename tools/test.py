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
    mmseg=lambda path: dict(draw=True),
    mmpretrain=lambda path: dict(enable=True, out_dir=path),
)


def draw_to(cfg: 'Config', folder: str) -> None:
    """Have the predictions drawn into ``folder``, below the work folder."""
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
    """Have the predictions dumped to ``path``."""
    if Path(path).suffix not in ('.pkl', '.pickle'):
        raise UsageError(f'--out must end with .pkl or .pickle, got {path!r}')
    metrics = cfg.test_evaluator
    metrics = list(metrics) if isinstance(metrics, list) else [metrics]
    kind = (
        'DumpDetResults'
        if cfg.get('default_scope') == 'mmdet'
        else 'mmengine.DumpResults'
    )
    cfg.test_evaluator = [*metrics, dict(type=kind, out_file_path=path)]


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Imports what was just checked.
    from anchorformer_mm.engine import launch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='dump the predictions'
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the predictions'
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args()

    cfg = launch.load_config(args, splits=('test',))
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise UsageError(f'checkpoint not found: {args.checkpoint}')
    cfg.load_from = args.checkpoint
    if args.show_dir is not None:
        draw_to(cfg, args.show_dir)
    if args.out is not None:
        dump_to(cfg, args.out)
    launch.run(cfg, 'test')


if __name__ == '__main__':
    run_command_line(main)
