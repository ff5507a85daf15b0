"""Try every public module with arguments and inputs drawn at random.

A valid draw must build, run forward and backward, and leave nothing that is
not finite; an invalid one must be refused in words that name the argument and
its value. Prints a table, and of every kind of failure the first draw.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import torch
from fuzz_subjects import SUBJECTS
from fuzz_trials import Trial, judge, trials
from hypothesis import HealthCheck, Phase, given, seed, settings
from mmengine.logging import MMLogger

from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.tables import markdown_table

OUTCOMES = ('valid', 'invalid', 'no fp16', 'failed')
tell = partial(print, file=sys.stderr, flush=True)


@dataclass
class Record:
    """What came of the draws of a module.

    Attributes:
        outcomes: How many had each of ``OUTCOMES``.
        failures: The first message and trial of each kind of failure.
    """

    outcomes: Counter = field(default_factory=Counter)
    failures: dict[str, tuple[str, Trial]] = field(default_factory=dict)


def draw_and_judge(name: str, draws: int, number: int) -> Record:
    """Try a module.

    Args:
        name: Of ``SUBJECTS``.
        draws: How many.
        number: Seed of the draws.
    """
    record = Record()

    @seed(number)
    @settings(
        max_examples=draws,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(trials(name, SUBJECTS[name]))
    def run(trial: Trial) -> None:
        try:
            outcome = judge(trial, SUBJECTS[name])
        except AssertionError as error:
            outcome = 'failed'
            # Of failures that differ in a number only, one is enough.
            kind = ''.join(c for c in str(error)[:100] if not c.isdigit())
            record.failures.setdefault(kind, (str(error), trial))
        record.outcomes[outcome] += 1

    run()
    return record


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--draws', type=int, default=1_500, help='in all (default: 1500)'
    )
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    parser.add_argument(
        '--module', choices=list(SUBJECTS), help='try this one only'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    names = [args.module] if args.module else list(SUBJECTS)
    if args.draws < len(names):
        raise UsageError(
            f'--draws must be at least one for each of {len(names)} modules, '
            f'got {args.draws}'
        )
    torch.set_num_threads(1)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    records = {}
    for i, name in enumerate(names):
        # What is left over goes to the first ones.
        draws = args.draws // len(names) + (i < args.draws % len(names))
        records[name] = draw_and_judge(name, draws, args.seed)
        outcomes = records[name].outcomes
        tell(f'{name}: {outcomes.total()} draws, {dict(outcomes)}')
    total = sum((r.outcomes for r in records.values()), Counter())
    rows = [
        [name, str(c.total()), *(str(c[outcome]) for outcome in OUTCOMES)]
        for name, c in [
            *((name, r.outcomes) for name, r in records.items()),
            ('all', total),
        ]
    ]
    print(markdown_table(['module', 'draws', *OUTCOMES], rows))
    for record in records.values():
        for message, trial in record.failures.values():
            print(f'\n{trial}\n  {message}')
    if total['failed']:
        raise UsageError(f'{total["failed"]} draws failed')


if __name__ == '__main__':
    run_command_line(main)
