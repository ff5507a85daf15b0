"""Which ids a config's heads take."""

import pytest
from mmengine.config import Config

from anchorformer_mm.datasets.label_targets import split_targets

SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)
SOFTMAX = dict(type='mmseg.CrossEntropyLoss')


def targets(decode, auxiliary=None, split='train', **cfg):
    model = dict(decode_head=decode, auxiliary_head=auxiliary)
    return split_targets(Config(dict(model=model, **cfg)), split)


def head(num_classes, **kwargs):
    return dict(type='FCNHead', num_classes=num_classes, **kwargs)


def test_alike_heads_are_one_target():
    (target,) = targets([head(3), head(3)], head(3))
    assert str(target) == (
        'model.decode_head[0] and model.decode_head[1] and '
        'model.auxiliary_head (num_classes=3, ignore_index=255)'
    )


def test_a_head_that_was_forgotten_is_another_target():
    auxiliary = [head(3), head(19, ignore_index=0)]
    first, second = targets(head(3), auxiliary)
    assert second.names == ('model.auxiliary_head[1]',)
    assert (second.num_ids, second.ignore_index) == (19, 0)
    assert first.unknown([0, 2, 3, 18, 255]) == [3, 18]
    assert second.unknown([0, 2, 3, 18, 255]) == [255]


def test_heads_are_found_within_a_head_of_heads():
    update = [dict(type='KernelUpdateHead', num_classes=4)] * 2
    generate = head(4)
    (target,) = targets(
        dict(
            type='IterativeDecodeHead',
            kernel_update_head=update,
            kernel_generate_head=generate,
        )
    )
    assert target.num_ids == 4
    assert 'model.decode_head.kernel_generate_head' in target.names


def test_a_head_of_boundaries_and_a_model_without_classes_take_any_map():
    (target,) = targets(head(19), dict(type='STDCHead', num_classes=2))
    assert target.num_ids == 19
    assert targets(dict(type='VPDDepthHead')) == []


@pytest.mark.parametrize(
    ('decode', 'num_ids'),
    [
        (head(2), 2),
        (head(2, out_channels=2), 2),
        (head(2, out_channels=1, loss_decode=SIGMOID), 2),
        (head(2, out_channels=1, loss_decode=[SIGMOID]), 2),
        (head(2, out_channels=1, loss_decode=dict(type='LovaszLoss')), 2),
        (head(1, loss_decode=SIGMOID), 2),
        # A softmax over one channel is sure of class 0, and fails on 1.
        (head(1), 1),
        (head(2, out_channels=1), 1),
        (head(2, out_channels=1, loss_decode=[SIGMOID, SOFTMAX]), 1),
        (head(3, loss_decode=SIGMOID), 3),
    ],
)
def test_one_channel_with_a_sigmoid_tells_two_classes(decode, num_ids):
    assert [t.num_ids for t in targets(decode)] == [num_ids]


@pytest.mark.parametrize(
    ('evaluator', 'ignored'),
    [
        (dict(type='IoUMetric'), 255),
        ([dict(type='Other'), dict(type='IoUMetric', ignore_index=7)], 7),
        (None, 255),
    ],
)
def test_an_evaluation_ignores_what_its_metric_does(evaluator, ignored):
    (target,) = targets(
        head(3, ignore_index=9), head(5), 'val', val_evaluator=evaluator
    )
    assert target.names == ('model.decode_head',)
    assert (target.num_ids, target.ignore_index) == (3, ignored)
