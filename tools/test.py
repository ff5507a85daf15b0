"""Evaluate a checkpoint of a detector, a segmentor or a classifier."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_arguments() -> argparse.Namespace:
    from anchorformer_mm.engine.launch import add_common_arguments

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file')
    text = (
        'dump the predictions; a segmentor writes label maps if this is a '
        'folder, while a file holds the scores of every pixel too'
    )
    add('--out', metavar='FILE.pkl', help=text)
    text = (
        'test-time augmentation, with tta_model and tta_pipeline of the config'
    )
    add('--tta', action='store_true', help=text)
    add('--show-dir', metavar='DIR', help='draw the predictions')
    add_common_arguments(parser)
    return parser.parse_args()


def dump_to(cfg: 'Config', library: str | None, path: str) -> None:
    """Have the predictions dumped to a pickle file."""
    metrics = cfg.test_evaluator
    metrics = list(metrics) if isinstance(metrics, list) else [metrics]
    kind = 'mmdet.DumpDetResults' if library == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*metrics, dict(type=kind, out_file_path=path)]


def write_to(
    cfg: 'Config', pictures: str | None, label_maps: str | None
) -> None:
    """Have a file written for each image, with what is predicted."""
    hook = dict(
        type='anchorformer_mm.PredictionFilesHook',
        pictures=pictures,
        label_maps=label_maps,
    )
    drawing = (cfg.get('default_hooks') or {}).get('visualization') or {}
    if 'score_thr' in drawing:
        hook['pred_score_thr'] = drawing['score_thr']
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def augment(cfg: 'Config') -> None:
    """Have several views of each image predicted, and the results merged."""
    from anchorformer_mm.utils.files import split_datasets

    missing = [k for k in ('tta_model', 'tta_pipeline') if not cfg.get(k)]
    if missing:
        raise UsageError(f'--tta needs {" and ".join(missing)} in the config')
    for dataset in split_datasets(cfg, 'test'):
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Imports what was just checked.
    from anchorformer_mm.engine import launch
    from anchorformer_mm.utils.checkpoint import require_checkpoint

    args = parse_arguments()
    cfg = launch.load_config(args, splits=('test',))
    library = launch.task_library(cfg)
    require_checkpoint(args.checkpoint)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.tta:
        augment(cfg)
    label_maps = None
    if args.out is not None and Path(args.out).suffix in ('.pkl', '.pickle'):
        dump_to(cfg, library, args.out)
    elif args.out is not None:
        label_maps = args.out
        if library != 'mmseg' or Path(args.out).suffix:
            raise UsageError(
                '--out must end with .pkl or .pickle, or for a segmentor name '
                f'a folder, got {args.out!r}'
            )
    if label_maps or args.show_dir:
        write_to(cfg, args.show_dir, label_maps)
    launch.join_processes(cfg)
    runner = launch.build_runner(cfg, testing=True)
    if not args.skip_data_check:
        # Needs the library of the config.
        from anchorformer_mm.datasets import checks

        findings = checks.check_runner(runner, ['test'])
        checks.report_findings(findings, runner.logger)
    runner.test()
    del runner
    launch.leave_processes()


if __name__ == '__main__':
    run_command_line(main)
