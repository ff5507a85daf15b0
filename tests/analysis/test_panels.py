import cv2
import numpy as np
import pytest

from anchorformer_mm.analysis.panels import Panel, cell_size, draw_panels, fit


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
