"""Image files that are broken or odd, one small file each."""

import os
import struct
import zlib

import cv2
import mmcv
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from anchorformer_mm.datasets.checks.image_files import (
    OPENCV_LIMIT,
    OPENCV_SIDE,
    Loader,
    read_image,
)
from anchorformer_mm.datasets.checks.images import (
    ImageRecord,
    check_images,
    even_sample,
)

SIZE = (40, 24)


def pixels(channels=3, dtype=np.uint8):
    rng = np.random.default_rng(0)
    shape = (SIZE[1], SIZE[0], channels)[: 2 + (channels > 1)]
    return rng.integers(0, 255, shape).astype(dtype)


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / 'sound.jpg'
    Image.fromarray(pixels()).save(path)
    return path


@pytest.fixture
def kinds(sound):
    """The kinds of findings about a file, beside one that is sound."""

    def kinds(path, size=None, loader=None, **options):
        loader = loader or Loader()
        records = [ImageRecord(str(path), size), ImageRecord(str(sound))]
        findings = check_images(records, loader, has_places=True, **options)
        assert all(finding.file == str(path) for finding in findings)
        return [finding.kind for finding in findings]

    return kinds


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels()).save(path, exif=exif)


def empty_png(path, width, height):
    """A file that has a header and no pixels."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return (
            struct.pack('>I', len(data))
            + name
            + data
            + struct.pack('>I', check)
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'')
    )


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'webp', 'tif'])
def test_sound_images_of_any_format_give_nothing(tmp_path, kinds, suffix):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(pixels()).save(path)
    assert kinds(path, SIZE) == []
    assert kinds(path, SIZE, fast=True) == []


def test_a_file_that_is_not_there_is_missing(tmp_path, kinds):
    assert kinds(tmp_path / 'no.jpg') == ['image-missing']


@pytest.mark.parametrize('content', [b'', b'none', b'\xff\xd8\xff\xe0nothing'])
def test_a_file_that_is_no_image_is_unreadable(tmp_path, kinds, content):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    assert kinds(path) == ['image-unreadable']
    assert kinds(path, fast=True) == ['image-unreadable']


@pytest.mark.parametrize('name', ['a\0b.jpg', '\ud800.jpg', 'a' * 999, '.'])
def test_names_that_no_image_can_have_are_told(tmp_path, name):
    (finding,) = check_images(
        [ImageRecord(f'{tmp_path}/{name}')], Loader(), has_places=True
    )
    assert finding.kind == 'image-unreadable'
    # Can be printed.
    assert str(finding).isascii()


def test_a_name_below_a_file_is_missing(sound, kinds):
    assert kinds(sound / 'a.jpg') == ['image-missing']


def test_a_pipe_is_told_and_not_opened(tmp_path, kinds, monkeypatch, sound):
    path = tmp_path / 'a.jpg'
    os.mkfifo(path)
    opened = Image.open

    def spy(file, **options):
        # Opening the pipe would wait for ever.
        assert file == str(sound)
        return opened(file, **options)

    monkeypatch.setattr(Image, 'open', spy)
    monkeypatch.setattr(np, 'fromfile', None)
    assert kinds(path) == kinds(path, fast=True) == ['image-unreadable']


def test_no_image_starts_a_program(tmp_path, kinds, monkeypatch):
    # Pillow reads EPS, whatever its name, by starting Ghostscript.
    program = tmp_path / 'gs'
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/marker\nexec cat\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    path = tmp_path / 'a.jpg'
    path.write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n'
        b'%%EndComments\nshowpage\n%%EOF\n'
    )
    for backend in ('cv2', 'pillow'):
        assert kinds(path, SIZE, Loader(backend=backend)) == [
            'image-unreadable'
        ]
    assert not (tmp_path / 'marker').exists()
    with Image.open(path) as image, pytest.raises(OSError):
        image.load()
    assert (tmp_path / 'marker').exists()


def test_damage_that_pillow_passes_over_and_the_loader_does_not_is_told(
    tmp_path, kinds
):
    path = tmp_path / 'a.png'
    Image.fromarray(pixels()).save(path)
    content = bytearray(path.read_bytes())
    # The sum at the end of the pixels, 12 bytes before that of the file.
    content[-13] ^= 1
    path.write_bytes(content)
    Image.open(path).load()
    assert cv2.imread(str(path)) is None
    assert kinds(path, SIZE) == ['image-unreadable']
    assert kinds(path, SIZE, Loader(backend='pillow')) == []


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'webp', 'tif'])
def test_whatever_the_loader_refuses_is_told(tmp_path, suffix):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(pixels()).save(path)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = np.frombuffer(sound, np.uint8).copy()
        content[rng.integers(8, len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            is_loaded = mmcv.imfrombytes(content.tobytes()) is not None
        except cv2.error:
            is_loaded = False
        problem = read_image(str(path), Loader(), decode=True).problem
        assert is_loaded or problem


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_a_file_that_ends_early_is_told_unless_only_headers_are_read(
    tmp_path, kinds, suffix
):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(pixels()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    assert kinds(path, SIZE) == ['image-truncated']
    assert kinds(path, SIZE, fast=True) == []


def test_opencv_itself_passes_over_a_jpeg_that_ends_early(sound):
    # Why the files are decoded by Pillow.
    content = sound.read_bytes()
    sound.write_bytes(content[: len(content) * 3 // 4])
    assert cv2.imread(str(sound)) is not None


def test_what_pillow_decodes_and_the_loader_does_not_is_unreadable(
    tmp_path, kinds
):
    path = tmp_path / 'a.ico'
    Image.fromarray(pixels()).resize((32, 32)).save(path)
    assert cv2.imread(str(path)) is None
    assert kinds(path) == ['image-unreadable']
    assert kinds(path, loader=Loader(backend='pillow')) == []


@pytest.mark.parametrize('size', [(1, 1), (30, 1)])
def test_an_image_of_one_pixel_is_told(tmp_path, kinds, size):
    path = tmp_path / 'a.png'
    Image.new('RGB', size).save(path)
    assert kinds(path) == ['image-one-pixel']


def test_huge_images_are_told_and_not_decoded(tmp_path, kinds):
    path = tmp_path / 'a.png'
    empty_png(path, 10_000, 10_000)
    assert kinds(path) == ['image-huge']
    empty_png(path, 9_999, 10_000)
    assert kinds(path) == ['image-truncated']
    empty_png(path, OPENCV_LIMIT // 1024, 1025)
    assert kinds(path) == ['image-unreadable']


def test_headers_are_read_without_decoding(tmp_path, kinds, monkeypatch):
    path = tmp_path / 'a.png'
    Image.fromarray(pixels()).save(path)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', None)
    assert kinds(path, fast=True) == []
    empty_png(path, 10_000, 10_000)
    assert kinds(path) == ['image-huge']


@pytest.mark.parametrize('fast', [False, True])
def test_images_wider_than_opencv_takes_are_told(tmp_path, kinds, fast):
    path = tmp_path / 'a.png'
    Image.new('L', (OPENCV_SIDE + 1, 2)).save(path)
    assert kinds(path, fast=fast) == ['image-unreadable']


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_sixteen_bits_are_told(tmp_path, kinds, channels, suffix):
    path = tmp_path / f'a.{suffix}'
    cv2.imwrite(str(path), pixels(channels, np.uint16))
    expected = ['image-16-bit'] + ['image-grey'] * (channels == 1)
    assert kinds(path) == expected


@pytest.mark.parametrize(
    ('mode', 'suffix', 'kind'),
    [
        ('L', 'jpg', 'image-grey'),
        ('1', 'png', 'image-grey'),
        ('RGBA', 'png', 'image-alpha'),
        ('LA', 'png', 'image-alpha'),
        ('CMYK', 'jpg', 'image-cmyk'),
    ],
)
def test_unusual_pixels_are_told(tmp_path, kinds, mode, suffix, kind):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(pixels()).convert(mode).save(path)
    assert kinds(path) == [kind]
    assert kinds(path, fast=True) == [kind]


def test_a_set_of_grey_images_alone_is_sound(tmp_path):
    records = []
    for name in 'ab':
        path = tmp_path / f'{name}.png'
        Image.fromarray(pixels(1)).save(path)
        records.append(ImageRecord(str(path)))
    assert check_images(records, Loader(), has_places=True) == []


def test_numbers_of_channels_may_not_differ_where_they_are_kept(
    tmp_path, kinds
):
    path = tmp_path / 'a.png'
    Image.fromarray(pixels(1)).save(path)
    # Of two the first is the usual one.
    found = check_images(
        [ImageRecord(str(tmp_path / 'sound.jpg')), ImageRecord(str(path))],
        Loader('unchanged'),
        has_places=False,
    )
    assert [(f.kind, f.level, f.file) for f in found] == [
        ('image-channels', 'error', str(path))
    ]
    assert kinds(path, loader=Loader('grayscale')) == []


def test_a_size_that_the_annotation_has_otherwise_is_told(sound):
    record = ImageRecord(str(sound), (SIZE[0] + 1, SIZE[1]))
    (finding,) = check_images([record], Loader(), has_places=True)
    assert finding.kind == 'image-size'
    assert 'is 40x24 px, but annotated as 41x24 px' in str(finding)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_the_size_is_the_one_that_the_loader_gives(
    tmp_path, suffix, orientation
):
    path = tmp_path / f'a.{suffix}'
    turned(path, orientation)
    facts = read_image(str(path), Loader(), decode=True)
    assert facts.loaded == mmcv.imread(path).shape[1::-1]
    assert facts.orientation == orientation


def test_a_turned_image_must_be_annotated_as_turned(tmp_path, kinds):
    path = tmp_path / 'a.jpg'
    turned(path, 6)
    assert kinds(path, SIZE) == ['image-turned-size']
    assert kinds(path, SIZE[::-1]) == []
    assert kinds(path, (5, 5)) == ['image-size']
    as_stored = Loader('color_ignore_orientation')
    assert kinds(path, SIZE, as_stored) == []
    assert kinds(path, SIZE, Loader(backend='turbojpeg')) == []


def test_a_turn_that_keeps_the_size_is_a_warning(tmp_path, sound):
    path = tmp_path / 'a.jpg'
    turned(path, 3)
    record = ImageRecord(str(path), SIZE)
    (finding,) = check_images([record], Loader(), has_places=True)
    assert (finding.kind, finding.level) == ('image-turned', 'warning')
    assert check_images([record], Loader(), has_places=False) == []


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_turn_that_no_size_shows_is_a_warning(tmp_path, kinds, orientation):
    path = tmp_path / 'a.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels()[:, : SIZE[1]]).save(path, exif=exif)
    expected = ['image-turned'] * (orientation != 1)
    # Square, and of label maps and VOC without a size.
    assert kinds(path, (SIZE[1], SIZE[1])) == expected
    assert kinds(path) == expected
    turned(path, orientation)
    assert kinds(path) == expected


def test_several_processes_find_the_same(tmp_path, sound, capsys):
    paths = [sound, tmp_path / 'no.jpg', sound, tmp_path / 'none.jpg']
    records = [ImageRecord(str(path)) for path in paths]
    findings = check_images(records, Loader(), has_places=True, workers=2)
    assert findings == check_images(
        records, Loader(), has_places=True, workers=1
    )
    assert [f.file for f in findings] == [str(paths[1]), str(paths[3])]


def test_a_sample_is_evenly_spread():
    assert even_sample(10, 5) == [0, 2, 4, 6, 8]
    assert even_sample(3, None) == even_sample(3, 7) == [0, 1, 2]
    assert even_sample(0, 4) == []
