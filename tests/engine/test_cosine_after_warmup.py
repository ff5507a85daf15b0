"""PicoDet's learning rate against its closed form, step by step."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from anchorformer_mm.registry import PARAM_SCHEDULERS

CONFIGS = Path(__file__).parents[2] / 'configs'
WARMUP = 300


def law(i, total, warmup=WARMUP, start=0.1):
    """The factor on the base rate at iteration i."""
    if i < warmup:
        return start + (1 - start) * i / warmup
    return (1 + math.cos(math.pi * (i - warmup) / (total - warmup))) / 2


def schedule(warmup, **settings):
    return [
        dict(
            type='LinearLR', start_factor=0.1, by_epoch=False, end=warmup + 1
        ),
        dict(
            type='anchorformer_mm.CosineAfterWarmupLR',
            warmup_iters=warmup,
            **settings,
        ),
    ]


def simulate(cfgs, rates, epochs, epoch_length):
    """Rates of all groups in every iteration, as a Runner would set them."""
    optimizer = torch.optim.SGD(
        [
            dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=r)
            for r in rates
        ]
    )
    wrapper = OptimWrapper(optimizer)
    schedulers = []
    for cfg in cfgs:
        end = epochs if cfg.get('by_epoch', True) else epochs * epoch_length
        schedulers.append(
            PARAM_SCHEDULERS.build(
                dict(cfg),
                default_args=dict(
                    optimizer=wrapper, epoch_length=epoch_length, end=end
                ),
            )
        )
    seen = []
    for _ in range(epochs * epoch_length):
        seen.append([group['lr'] for group in optimizer.param_groups])
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()
    return torch.tensor(seen, dtype=torch.float64)


@pytest.mark.parametrize(
    ('name', 'epochs'), [('picodet_s_coco', 300), ('picodet_l_coco', 250)]
)
def test_the_published_schedule_follows_its_law_in_every_iteration(
    name, epochs
):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert cfg.train_cfg.max_epochs == epochs
    base = cfg.optim_wrapper.optimizer.lr
    rates = simulate(cfg.param_scheduler, [base, base / 2], epochs, 9)
    factors = [law(i, 300 * 9) for i in range(epochs * 9)]
    expected = torch.tensor(factors, dtype=torch.float64)
    torch.testing.assert_close(
        rates, expected[:, None] * torch.tensor([base, base / 2])
    )


def test_a_run_and_its_resumption_follow_the_law(make_runner):
    """Four iterations of warm-up end within the second epoch of three."""
    cfg = schedule(4, T_max=6, convert_to_iter_based=True)
    runner = make_runner(param_scheduler=cfg)
    runner.train()
    rates = runner.recorder.rates
    for i in range(15):
        expected = 0.4 * law(i, total=18, warmup=4)
        assert rates[i] == [pytest.approx(expected)], i
    for epoch in (1, 2):
        resumed = make_runner(
            param_scheduler=cfg,
            load_from=f'{runner.work_dir}/epoch_{epoch}.pth',
            resume=True,
        )
        resumed.train()
        assert resumed.recorder.rates == {
            i: rates[i] for i in range(3 * epoch, 15)
        }


def test_accumulated_gradients_leave_the_schedule_as_it_is(make_runner):
    runner = make_runner(
        epochs=2,
        param_scheduler=schedule(2, by_epoch=False, T_max=6),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=1.0), accumulative_counts=2
        ),
    )
    runner.train()
    rates = [rate for (rate,) in runner.recorder.rates.values()]
    assert rates == pytest.approx([law(i, 6, warmup=2) for i in range(6)])


def test_without_an_end_of_its_own_the_cosine_ends_with_training(make_runner):
    runner = make_runner(
        epochs=2, param_scheduler=schedule(2, convert_to_iter_based=True)
    )
    runner.train()
    rates = [rate for (rate,) in runner.recorder.rates.values()]
    assert rates == pytest.approx(
        [0.4 * law(i, 6, warmup=2) for i in range(6)]
    )


@pytest.mark.parametrize(
    'settings',
    [
        # 100 iterations of cosine, 100 of training, and less than none.
        dict(warmup=300, T_max=100, end=1000, by_epoch=False),
        dict(warmup=300, T_max=1000, end=100, by_epoch=False),
        dict(warmup=-1, T_max=100, end=100, by_epoch=False),
    ],
)
def test_a_warmup_that_the_schedule_has_no_room_for_is_refused(settings):
    warmup = settings['warmup']
    with pytest.raises(
        ValueError, match=rf'warmup_iters .* 0\.\.99, .* got {warmup}'
    ):
        simulate(schedule(**settings)[1:], [1.0], 1, 100)


def test_a_schedule_in_epochs_says_how_to_count_in_iterations():
    with pytest.raises(ValueError, match='by_epoch .*convert_to_iter_based'):
        simulate(schedule(300, T_max=300)[1:], [1.0], 300, 9)
