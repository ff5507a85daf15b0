"""A sample of tools/misc/fuzz_modules.py, the same in every run."""

import sys

import fuzz_modules
import pytest
import torch
from fuzz_subjects import SUBJECTS
from fuzz_trials import Subject, Trial, Wrong, judge, trials
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

from anchorformer_mm.utils.errors import UsageError

EXAMPLES = 10


@pytest.mark.parametrize('name', SUBJECTS)
def test_what_is_valid_runs_and_what_is_not_is_refused_in_words(name):
    subject = SUBJECTS[name]

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None
    )
    @given(trials(name, subject, large=False))
    def run(trial):
        judge(trial, subject)

    run()


def test_every_subject_is_the_class_of_that_name():
    for name, subject in SUBJECTS.items():
        assert subject.path.endswith(f':{name}')


class Fragile(nn.Linear):
    """Wrong in a way of its own for every ``fault``."""

    def __init__(self, fault='', rate=0.5):
        super().__init__(2, 2)
        if rate != 0.5 and fault != 'accepts':
            raise {
                'key': KeyError('rate'),
                'silent': ValueError('out of range'),
            }.get(fault, ValueError(f'rate must be 0.5, got {rate!r}'))
        self.fault = fault

    def forward(self, x):
        out = super().forward(x)
        if self.fault == 'raises':
            raise IndexError('nowhere')
        if self.fault == 'nan':
            return out / 0 * 0
        if self.fault == 'gradient':
            return (0 * out).sqrt()
        if self.fault == 'cut off':
            return super().forward(x.detach())
        return out


def judged(monkeypatch, fault, wrong):
    monkeypatch.setattr(fuzz_modules, 'Fragile', Fragile, raising=False)
    subject = Subject(
        'fuzz_modules:Fragile',
        st.just({}),
        st.nothing(),
        lambda module, arguments, size, make: module(make(3, 2)),
    )
    arguments = dict(fault=fault) | (wrong.arguments if wrong else {})
    trial = Trial(
        'Fragile',
        arguments,
        wrong,
        (1, 1, 1),
        torch.float32,
        True,
        'noise',
    )
    return judge(trial, subject)


@pytest.mark.parametrize(
    ('fault', 'rate', 'words'),
    [
        ('nan', None, 'output 0 is not finite'),
        ('gradient', None, 'gradient of .* is not finite'),
        ('cut off', None, 'no gradient reaches input 0'),
        ('raises', None, 'IndexError: nowhere'),
        ('accepts', 2, 'rate=2 was accepted'),
        ('key', 2, 'no clear error but KeyError'),
        ('silent', 2, 'does not name rate or 2'),
    ],
)
def test_faults_are_noticed(monkeypatch, fault, rate, words):
    wrong = rate and Wrong(dict(rate=rate), 'rate', rate)
    with pytest.raises(AssertionError, match=words):
        judged(monkeypatch, fault, wrong)


def test_a_module_without_fault_passes(monkeypatch):
    wrong = Wrong(dict(rate=2), 'rate', 2)
    assert judged(monkeypatch, '', None) == 'valid'
    assert judged(monkeypatch, '', wrong) == 'invalid'


def command(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['fuzz_modules.py', *args])
    fuzz_modules.main()


def test_the_command_counts_its_draws(monkeypatch, capsys):
    command(monkeypatch, '--draws', '25', '--module', 'SelfAttention')
    row = capsys.readouterr().out.splitlines()[2].strip('| ').split(' | ')
    name, draws, *outcomes = (cell.strip() for cell in row)
    assert (name, draws) == ('SelfAttention', '25')
    valid, invalid, no_fp16, failed = map(int, outcomes)
    assert valid > 0 and invalid > 0 and failed == 0
    assert valid + invalid + no_fp16 == 25


def test_fewer_draws_than_modules_are_refused(monkeypatch):
    with pytest.raises(UsageError, match='--draws must be .*, got 3'):
        command(monkeypatch, '--draws', '3')


@pytest.mark.smoke
def test_errors_of_built_modules_name_argument_and_value():
    cfg = dict(type='anchorformer_mm.CSPPAN', in_channels=8, out_channels=8)
    with pytest.raises(ValueError, match='in_channels must .* got 8'):
        MODELS.build(cfg)
