"""Whether metrics and data sets read the same annotations."""

import os.path

from mmengine.config import ConfigDict

from anchorformer_mm.datasets.checks.findings import Finding, found
from anchorformer_mm.utils.dataset_paths import split_datasets


def evaluator_findings(
    cfg: ConfigDict, split: str, file: str
) -> list[Finding]:
    """Compare the annotations of a data set with those of the metrics.

    Args:
        cfg: A whole config.
        split: ``'train'``, which has no metric, ``'val'`` or ``'test'``.
        file: The annotations of the data set of that split. One of several
            is not compared: a metric may have them all in one file.
    """
    metrics = cfg.get(f'{split}_evaluator') or []
    if isinstance(metrics, dict):
        metrics = [metrics]
    if len(split_datasets(cfg, split)) > 1:
        return []
    theirs = [m['ann_file'] for m in metrics if m.get('ann_file')]
    return [
        found(
            'evaluator-file',
            file,
            f'is loaded, but {split}_evaluator compares with {other}',
        )
        for other in theirs
        if os.path.abspath(other) != os.path.abspath(file)
    ]
