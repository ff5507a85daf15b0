import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from anchorformer_mm.analysis import curve
from anchorformer_mm.analysis.curve import draw_curve, in_words
from anchorformer_mm.analysis.run_log import RunLog
from anchorformer_mm.utils.errors import UsageError


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []

    def figure(*args, **kwargs):
        drawn.append(Figure(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(curve, 'Figure', figure)
    return drawn


def segmentor(**more):
    train = {
        i: {'loss': 2 / i, 'decode.loss_ce': 2 / i, 'decode.acc_seg': 90.0}
        for i in (1, 10, 20, 30)
    }
    train[20] |= more
    return RunLog(
        train=train,
        val={
            15: dict(aAcc=90.0, mIoU=41.5, mAcc=50.0),
            30: dict(aAcc=91.0, mIoU=38.25, mAcc=51.0),
        },
    )


def test_the_run_of_a_segmentor_over_its_iterations(figures, tmp_path):
    path = tmp_path / 'new' / 'curve.png'
    draw_curve(segmentor(), path)
    assert [p.name for p in path.parent.iterdir()] == ['curve.png']
    assert cv2.imread(str(path)).std() > 10
    losses, metric = figures[0].axes
    whole, part = losses.get_lines()
    # What is part of the loss lies on it, and not below.
    assert (whole.get_label(), part.get_label()) == ('loss', 'decode.loss_ce')
    assert whole.get_linewidth() > part.get_linewidth()
    np.testing.assert_allclose(whole.get_xydata()[2], (20, 0.1))
    (line,) = metric.get_lines()
    assert line.get_xydata().tolist() == [[15, 41.5], [30, 38.25]]
    assert metric.get_ylabel() == 'mIoU (%)'
    # The best, not the last.
    (best,) = metric.texts
    assert (best.get_text(), best.xy) == ('41.50%', (15, 41.5))
    assert metric.get_ylim()[1] > 41.5


def test_many_losses_have_a_legend_that_is_not_cut(figures, tmp_path):
    more = {f'd{i}.loss_mask_of_a_layer': 0.1 for i in range(14)}
    draw_curve(segmentor(**more), tmp_path / 'curve.png')
    (legend,) = figures[0].legends
    assert len(legend.get_texts()) == 17
    box = legend.get_window_extent()
    width, height = figures[0].canvas.get_width_height()
    assert 0 <= box.x0 < box.x1 <= width
    assert 0 <= box.y0 < box.y1 <= height


def test_figures_that_are_no_percentages_are_written_as_they_are(
    figures, tmp_path
):
    run = RunLog(train={5: dict(loss=1.0)}, val={5: {'coco/bbox_mAP': 0.745}})
    draw_curve(run, tmp_path / 'curve.png')
    metric = figures[0].axes[1]
    assert metric.get_ylabel() == 'coco/bbox_mAP'
    assert metric.texts[0].get_text() == '0.745'
    assert in_words('accuracy/top1', 62.5) == '62.50%'


def test_a_run_without_evaluation_is_told(tmp_path):
    with pytest.raises(UsageError, match='no evaluation'):
        draw_curve(RunLog(train={5: dict(loss=1.0)}), tmp_path / 'curve.png')
    assert list(tmp_path.iterdir()) == []
