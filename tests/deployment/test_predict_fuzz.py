"""A sample of tools/misc/fuzz_images.py, the same in every run."""

import sys

import fuzz_images
import pytest
from fuzz_images import Picture, judge, load_tool, pictures
from hypothesis import given, settings
from PIL import Image

WHOLE = Picture('detection', (9, 5), 'PNG', 'RGB', '.png', 0, ('', 0.0), 0)


@pytest.fixture(scope='module')
def tool():
    return load_tool()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(picture=pictures())
def test_an_image_is_predicted_or_refused_in_one_line(tool, folder, picture):
    judge(tool, picture, folder)


@pytest.mark.parametrize('model', ['detection', 'open_segmentation'])
@pytest.mark.parametrize('size', [(1, 1), (1, 3000), (3000, 1), (2, 999)])
def test_thin_images_are_predicted(tool, folder, model, size):
    picture = Picture(model, size, 'PNG', 'RGB', '.png', 0, ('', 0.0), 0)
    assert judge(tool, picture, folder) == 'predicted'


@pytest.mark.parametrize('form', ['EPS', 'PPM'])
def test_other_formats_are_not_opened(tool, folder, form):
    picture = Picture('detection', (9, 5), form, 'RGB', '.png', 0, ('', 0), 0)
    assert judge(tool, picture, folder) == 'refused'


def test_a_traceback_is_noticed(tool, folder, monkeypatch):
    monkeypatch.setattr(tool, 'read_image', lambda path: 1 / 0)
    with pytest.raises(AssertionError, match='ZeroDivisionError'):
        judge(tool, WHOLE, folder)


def test_what_is_left_behind_is_noticed(tool, folder, monkeypatch):
    def leave(args):
        args.out.mkdir()
        raise tool.InputError(f'no {args.images[0]}')

    monkeypatch.setattr(tool, 'predict_all', leave)
    with pytest.raises(AssertionError, match=r'left \[\]'):
        judge(tool, WHOLE, folder)


def test_the_command_counts_its_draws(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['fuzz_images.py', '--draws', '12'])
    fuzz_images.main()
    assert capsys.readouterr().out.startswith('12 images: ')


@pytest.mark.parametrize('error', [KeyError('x'), IndexError(), MemoryError()])
def test_whatever_a_decoder_raises_is_told(tool, tmp_path, monkeypatch, error):
    def fail(self, *args, **kwargs):
        raise error

    path = tmp_path / 'a.png'
    WHOLE.write(path)
    monkeypatch.setattr(Image.Image, 'convert', fail)
    with pytest.raises(tool.InputError, match=r'cannot read .*a\.png: \S'):
        tool.read_image(path)


def test_an_image_too_large_for_memory_is_told(tool, folder, monkeypatch):
    def fail(image, steps):
        raise MemoryError

    monkeypatch.setattr(tool, 'preprocess', fail)
    with pytest.raises(AssertionError, match='5 x 9 px do not fit into mem'):
        judge(tool, WHOLE, folder)


def test_what_pillow_logs_is_not_a_second_error(tool, folder):
    damage = ('bytes', 1.0)
    picture = Picture(
        'open_segmentation', (2, 2), 'TIFF', 'RGB', '', 0, damage, 605
    )
    assert judge(tool, picture, folder) == 'refused'
