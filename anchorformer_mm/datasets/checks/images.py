"""Findings about the images of one data set."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from anchorformer_mm.datasets.checks.findings import ERROR, Finding, found
from anchorformer_mm.datasets.checks.image_files import (
    HUGE,
    ImageFacts,
    Loader,
    read_image,
)
from anchorformer_mm.datasets.digits_workers import processes

# A process takes as long to start as that many images take to read.
IMAGES_PER_PROCESS = 250
MANY_IMAGES = 1000
SECONDS_BETWEEN_NOTES = 10.0
_GREY = ('1', 'L', 'I', 'F')
_ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')


@dataclass(frozen=True)
class ImageRecord:
    """An image that a data set lists.

    Args:
        path: Its file.
        size: Width and height in the annotation, px; None if it has none.
    """

    path: str
    size: tuple[int, int] | None = None


@dataclass
class Contents:
    """What a data set lists, and what is wrong with the lists.

    Args:
        images: In the order of the data set, each file once.
        findings: All but those about image files.
    """

    images: list[ImageRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def even_sample(count: int, sample: int | None) -> list[int]:
    """Indices of ``sample`` things out of ``count``, evenly spread.

    Args:
        count: How many there are.
        sample: How many to take; None or more than ``count`` for all.
    """
    if sample is None or sample >= count:
        return list(range(count))
    return [index * count // sample for index in range(sample)]


def check_images(
    records: Sequence[ImageRecord],
    loader: Loader,
    *,
    has_places: bool,
    title: str = 'images',
    workers: int | None = None,
    fast: bool = False,
) -> list[Finding]:
    """Read images, and tell what is wrong with them.

    Args:
        records: What to read.
        loader: What will read them in a run.
        has_places: Whether the annotations say where in the image something
            is, so that it matters if the image is turned.
        title: What the notes of progress call them.
        workers: Processes; None for one a core where there is enough to do.
        fast: Read headers only.
    """
    if workers is None:
        most = 1 + len(records) // IMAGES_PER_PROCESS
        workers = min(os.cpu_count() or 1, most)
    if len(records) >= MANY_IMAGES:
        _note(f'{title}: {len(records)} images, {workers} processes')
    read = partial(read_image, loader=loader, decode=not fast)
    paths = [record.path for record in records]
    with processes(workers) as run:
        facts = list(_noted(run(read, paths), len(paths), title))
    findings = []
    for record, fact in zip(records, facts, strict=True):
        findings += _image_findings(record, fact, has_places)
    return findings + _colour_findings(records, facts, loader)


def _noted(facts: Iterable, count: int, title: str) -> Iterator:
    """Tell now and then on stderr how far it is."""
    start = last = time.monotonic()
    for done, fact in enumerate(facts, 1):
        yield fact
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_NOTES:
            last = now
            speed = f'{done / (now - start):.0f} a second'
            _note(f'{title}: {done} of {count} images, {speed}')


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _image_findings(
    record: ImageRecord, facts: ImageFacts, has_places: bool
) -> Iterator[Finding]:
    """What can be said of one image by itself."""
    tell = partial(found, file=record.path)
    if facts.problem:
        yield tell(facts.problem, text=facts.detail)
        return
    width, height = facts.size
    if min(width, height) == 1:
        yield tell('image-one-pixel', text=f'is only {_px(facts.size)}')
    if width * height >= HUGE:
        yield tell(
            'image-huge',
            text=f'has {width * height / 1e6:.0f} megapixels, and was not '
            'decoded',
        )
    if facts.is_deep:
        yield tell(
            'image-16-bit',
            text='has more than 8 bits a channel, of which loaders keep the '
            'upper 8',
        )
    if facts.mode in _ALPHA:
        yield tell(
            'image-alpha',
            text='has an alpha channel, without which hidden colours show',
        )
    if facts.mode == 'CMYK':
        yield tell('image-cmyk', text='has the colours of print (CMYK)')
    yield from _size_findings(record, facts, has_places)


def _size_findings(
    record: ImageRecord, facts: ImageFacts, has_places: bool
) -> Iterator[Finding]:
    told, loaded = record.size, facts.loaded
    if told is None or told == loaded:
        if has_places and _may_be_turned(told, facts):
            yield found(
                'image-turned',
                record.path,
                f'is mirrored or turned by its EXIF tag {facts.orientation}, '
                'which its annotations may not know',
            )
    elif told == facts.size:
        yield found(
            'image-turned-size',
            record.path,
            f'is turned by its EXIF tag {facts.orientation} when it is '
            f'loaded, to {_px(loaded)}, but annotated as {_px(told)}',
        )
    else:
        yield found(
            'image-size',
            record.path,
            f'is {_px(loaded)}, but annotated as {_px(told)}',
        )


def _may_be_turned(told: tuple[int, int] | None, facts: ImageFacts) -> bool:
    """Whether annotations may be of the image before or after a turn.

    A quarter turn shows in the size, if that is annotated and not square.
    """
    shows = told is not None and told[0] != told[1]
    return facts.orientation != 1 and not (facts.orientation >= 5 and shows)


def _colour_findings(
    records: Sequence[ImageRecord],
    facts: Sequence[ImageFacts],
    loader: Loader,
) -> list[Finding]:
    """What is odd about images beside the others."""
    known = [
        (record.path, _channels(fact.mode))
        for record, fact in zip(records, facts, strict=True)
        if fact.mode
    ]
    counts = Counter(channels for _, channels in known)
    if len(counts) < 2:
        return []
    if loader.color_type == 'unchanged':
        usual = counts.most_common(1)[0][0]
        return [
            found(
                'image-channels',
                path,
                f'has {channels} channels where others have {usual}, and '
                "color_type='unchanged' keeps them",
                ERROR,
            )
            for path, channels in known
            if channels != usual
        ]
    if loader.color_type.startswith('grayscale'):
        return []
    return [
        found('image-grey', path, 'is grey, where others have colours')
        for path, channels in known
        if channels == 1
    ]


def _channels(mode: str) -> int:
    """Of an image as OpenCV reads it unchanged."""
    if mode.partition(';')[0] in _GREY:
        return 1
    return 4 if mode in _ALPHA else 3


def _px(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]} px'
