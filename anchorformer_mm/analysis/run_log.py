"""Reading what mmengine logged of a run, resumed or not."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from anchorformer_mm.utils.errors import UsageError

# The one figure of each task, in the order of preference.
METRICS = ('coco/bbox_mAP', 'pascal_voc/mAP', 'mIoU', 'accuracy/top1')


@dataclass
class RunLog:
    """Scalars of a run.

    Attributes:
        train: Logged training records by iteration.
        val: Logged evaluation records by iteration, see :func:`read_run`.
    """

    train: dict[int, dict] = field(default_factory=dict)
    val: dict[int, dict] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the figure to report.

        Raises:
            UsageError: The run has evaluated none that is known.
        """
        names = {name for record in self.val.values() for name in record}
        for name in METRICS:
            if name in names:
                return name
        raise UsageError(
            f'the run has no evaluation with one of {METRICS}, only '
            f'{sorted(names)}'
        )

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations and values of a scalar, of training or evaluation."""
        records = {
            i: r[name]
            for side in (self.train, self.val)
            for i, r in side.items()
            if name in r
        }
        return sorted(records), [records[i] for i in sorted(records)]


def read_run(work_dir: str | Path) -> RunLog:
    """Read the scalars of all parts of a run, later ones winning.

    Args:
        work_dir: Folder of the run; every start of it, resumed or not, left
            a folder with ``vis_data/scalars.json`` there.

    Returns:
        RunLog: Where mmengine counts evaluations in iterations, which
        ``LoggerHook(log_metric_by_epoch=False)`` asks for, they stand at the
        iteration they were made after. Where it counts them in epochs, its
        default, they stand at the last *logged* training iteration before
        them; ``LoggerHook(ignore_last=False)`` logs the last of each epoch.

    Raises:
        UsageError: There is no log.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    run = RunLog()
    for log in logs:
        iteration = 0
        for line in log.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                iteration = record['step']
                run.train[iteration] = record
            else:
                # No record says what its `step` counts; epochs that are done
                # are never more than the iterations logged in them.
                run.val[max(iteration, record['step'])] = record
    if not run.train and not run.val:
        raise UsageError(
            f'no */vis_data/scalars.json with records in {work_dir}'
        )
    return run
