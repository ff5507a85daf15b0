import cv2
import numpy as np
import pytest

from anchorformer_mm.analysis.panels import (
    SWATCH,
    Panel,
    cell_size,
    draw_panels,
    fit,
)


def picture(h, w):
    return np.random.default_rng(h).integers(0, 256, (h, w, 3), np.uint8)


def contains(sheet, image):
    """Whether ``image`` (RGB) is in ``sheet`` (BGR) to the pixel."""
    image = image[..., ::-1].copy()
    found = cv2.matchTemplate(sheet, image, cv2.TM_SQDIFF)
    y, x = np.unravel_index(found.argmin(), found.shape)
    h, w = image.shape[:2]
    return np.array_equal(sheet[y : y + h, x : x + w], image)


def test_pictures_are_on_the_sheet_pixel_for_pixel(tmp_path):
    images = [picture(40, 60), picture(61, 60), picture(33, 50)]
    panels = [Panel(image, f'number {i}') for i, image in enumerate(images)]
    draw_panels([panels[:2], panels[2:]], tmp_path / 'new' / 'sheet.png')
    sheet = cv2.imread(str(tmp_path / 'new' / 'sheet.png'))
    for image in images:
        assert contains(sheet, image)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['sheet.png']


def test_long_titles_are_broken_above_the_picture(tmp_path):
    image = np.full((90, 150, 3), 200, np.uint8)
    path = tmp_path / 'sheet.png'
    heights = []
    for title in ('short', 'words that take several lines of a picture'):
        draw_panels([[Panel(image, title)]], path)
        sheet = cv2.imread(str(path))
        assert contains(sheet, image)
        assert sheet.shape[1] == 150 + 16
        heights.append(len(sheet))
    assert heights[1] > heights[0] + 30
    # Something is written, and nothing over the margins.
    assert (sheet[:40] < 100).any()
    assert (sheet[:, :4] == 255).all()
    assert (sheet[:, -4:] == 255).all()


def test_narrow_pictures_have_room_for_their_titles(tmp_path):
    image = picture(90, 10)
    draw_panels([[Panel(image, 'three words here')]], tmp_path / 'sheet.png')
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    # One line.
    assert len(sheet) == 8 + 16 + 90 + 8
    assert contains(sheet, image)


def test_text_is_not_taken_for_formulas(tmp_path):
    image = picture(90, 90)
    draw_panels([[Panel(image, r'a $\bad b$ é')]], tmp_path / 'sheet.png')
    assert (tmp_path / 'sheet.png').is_file()


def test_frames_and_legends_have_their_colours(tmp_path):
    image = np.full((90, 150, 3), 128, np.uint8)
    legend = [(str(i), (0, 40 * i, 255)) for i in range(4)]
    panels = [Panel(image, 'a', legend=legend), Panel(image, 'b')]
    draw_panels([panels], tmp_path / 'plain.png')
    plain = cv2.imread(str(tmp_path / 'plain.png'))
    for _, (red, green, blue) in legend:
        swatch = (plain == (blue, green, red)).all(axis=2)
        assert swatch.sum() == 100
    framed = Panel(image, 'b', colour='red', framed=True)
    draw_panels([[panels[0], framed]], tmp_path / 'framed.png')
    differs = cv2.imread(str(tmp_path / 'framed.png')) != plain
    # Title and frame of the second picture, nothing of the first.
    assert differs[:, :150].sum() == 0
    red = cv2.imread(str(tmp_path / 'framed.png'))[..., 2] > 200
    assert red[24 + 45, 160:180].any()
    assert not red[24 + 45, 180:300].any()


def columns_of(sheet, colour):
    """The first pixel column of each run of a colour (RGB), and the end."""
    there = (sheet[..., ::-1] == colour).all(axis=2).any(axis=0)
    return np.flatnonzero(np.diff(there.astype(int), prepend=0, append=0))


@pytest.mark.parametrize(
    ('name', 'columns'), [('i', 6), ('zero', 6), ('MWMWMWMW', 3)]
)
def test_labels_of_a_legend_do_not_meet(name, columns, tmp_path):
    image = np.full((90, 400, 3), 255, np.uint8)
    path = tmp_path / 'sheet.png'
    draw_panels([[Panel(image, legend=[(name, (9, 99, 199))] * 6)]], path)
    below = cv2.imread(str(path))[8 + 90 :]
    starts = columns_of(below, (9, 99, 199))[::2]
    assert len(starts) == columns
    # White before every swatch and its border, on all lines.
    for start in starts[1:]:
        assert (below[:, start - 6 : start - 1] == 255).all()
    # Nothing is written over the margin.
    assert (below[:, -8:] == 255).all()


def test_labels_that_are_too_long_are_cut(tmp_path):
    image = np.full((90, 150, 3), 255, np.uint8)
    path = tmp_path / 'sheet.png'
    legend = [('the quick brown fox jumps over the dog', (9, 99, 199))]
    draw_panels([[Panel(image, legend=legend), Panel(image)]], path)
    below = cv2.imread(str(path))[8 + 90 :]
    assert (below[:, 60:150] < 128).any()
    assert (below[:, 8 + 150 :] == 255).all()


def test_a_legend_of_the_sheet_stands_below_all_rows(tmp_path):
    image = np.full((90, 150, 3), 255, np.uint8)
    rows = [[Panel(image, 'a'), Panel(image, 'b')], [Panel(image, 'c')]]
    heights = []
    stripes = picture(SWATCH, SWATCH)
    entries = [('white', (255, 255, 255)), ('some', stripes), ('more', None)]
    for legend in ([], entries, [('a rather long name', (1, 2, 3))] * 3):
        draw_panels(rows, tmp_path / 'sheet.png', legend=legend)
        sheet = cv2.imread(str(tmp_path / 'sheet.png'))
        heights.append(len(sheet))
        if legend is entries:
            assert contains(sheet[heights[0] :], stripes)
            # Two swatches have a border, also the white one.
            below = sheet[heights[0] - 8 :]
            border = (below == 160).all(axis=2)
            assert border.sum() >= 2 * 4 * (SWATCH + 1)
            assert sheet.shape[1] == 8 + 2 * 158
    # Three long names take two lines.
    assert heights[1:] == [heights[0] + 24, heights[0] + 40]


@pytest.mark.parametrize('shape', [(64, 64), (30, 90), (900, 400), (1, 500)])
@pytest.mark.parametrize('smooth', [True, False])
def test_pictures_are_scaled_to_their_longer_side(shape, smooth):
    scaled = fit(picture(*shape), 224, smooth=smooth)
    assert max(scaled.shape[:2]) == 224
    expected = max(224 * min(shape) / max(shape), 1)
    assert min(scaled.shape[:2]) == pytest.approx(expected, abs=0.5)


def test_cells_shrink_on_large_sheets():
    assert cell_size(3, 7) == 224
    assert cell_size(72, 7) * 72 <= 12_000
    assert cell_size(72, 7) > 150
    assert 100 * 20 * cell_size(100, 20) ** 2 <= 20_000_000
    assert cell_size(1000, 7) == 96
