import cv2
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from anchorformer_mm.analysis.paper_tables import plot
from anchorformer_mm.analysis.paper_tables.measure import (
    AS_BUILT,
    TABLES,
    record,
)
from anchorformer_mm.analysis.paper_tables.plot import (
    Point,
    digest,
    draw,
    drawn_digest,
    points,
)
from anchorformer_mm.analysis.paper_tables.row import TWICE, Row, printed

CLAIMED = Point('AnchorFormer-T', 0.7, 1.0, 81.1, None, True)
TRAINED = Point('B', None, 2.0, None, 75.0, True)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []

    def figure(*args, **kwargs):
        drawn.append(Figure(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(plot, 'Figure', figure)
    return drawn


def marks(figure):
    """Marker, whether it is filled, and place of each mark."""
    return [
        (line.get_marker(), line.get_fillstyle(), *line.get_xydata()[0])
        for line in figure.axes[0].get_lines()
        if line.get_marker() != 'None'
    ]


def test_claims_are_hollow_and_what_was_trained_is_filled(figures, tmp_path):
    path = tmp_path / 'new' / 'plot.png'
    draw('table1', [CLAIMED, TRAINED], path)
    assert marks(figures[0]) == [
        ('o', 'none', 0.7, 81.1),
        # The MACs were counted, the accuracy is still a claim.
        ('D', 'none', 1.0, 81.1),
        ('D', 'full', 2.0, 75.0),
    ]
    words = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert 'accuracy and MACs measured here' in words
    assert [p.name for p in path.parent.iterdir()] == ['plot.png']
    assert cv2.imread(str(path)).std() > 10


def test_nothing_is_filled_where_nothing_was_trained(figures, tmp_path):
    draw('table1', [CLAIMED], tmp_path / 'plot.png')
    assert {fill for _, fill, *_ in marks(figures[0])} == {'none'}
    words = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert 'accuracy and MACs measured here' not in words


def test_names_are_inside_and_not_over_one_another(figures, tmp_path):
    crowd = [
        Point(f'a model {i}', 1 + i / 50, None, 80 + i / 10, None, True)
        for i in range(8)
    ]
    draw('table1', crowd, tmp_path / 'plot.png')
    axes = figures[0].axes[0]
    texts = [t for t in axes.get_children() if isinstance(t, Annotation)]
    assert sorted(t.get_text() for t in texts) == [p.name for p in crowd]
    boxes = []
    for text in texts:
        # Saving left it where it is at another resolution.
        text.update_positions(figures[0].canvas.get_renderer())
        boxes.append(Text.get_window_extent(text))
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:i]) == 0
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1


def test_a_picture_tells_which_points_it_shows(tmp_path):
    path = tmp_path / 'plot.png'
    assert drawn_digest(path) is None
    draw('table1', [CLAIMED], path)
    assert drawn_digest(path) == digest([CLAIMED]) != digest([TRAINED])


def test_printed_figures_become_multiply_accumulates():
    table = TABLES['table2']
    measured = dict(
        params=1, trainable=1, auxiliary=0, macs={AS_BUILT: 600_000_000}
    )
    rows = [
        Row('A', printed(1.0, 1.2, map=30.0, ap50=50.0), flops_are=TWICE),
        Row('B', printed(1.0, 1.2, map=20.0)),
        Row('no accuracy', printed(1.0, 1.2)),
    ]
    found = points(
        'table2', dict(rows=[record(row, table, measured) for row in rows])
    )
    assert found == [
        Point('A', 0.6, 0.6, 30.0, None, True),
        Point('B', 1.2, 0.6, 20.0, None, True),
    ]
