"""Files that lie in the folders of a data set, and are not of it."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from mmengine.dataset import BaseDataset
from mmengine.fileio import list_dir_or_file

from anchorformer_mm.datasets.checks.findings import Finding, found
from anchorformer_mm.utils.listing import listing

# By which people, if not loaders, know images.
_SUFFIXES = (
    *('.avif', '.bmp', '.gif', '.heic', '.jfif', '.jp2', '.jpe', '.jpeg'),
    *('.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'),
)


def files_below(folder: str) -> list[str]:
    """Names, relative to a folder, of all that mmengine lists below it."""
    names = list_dir_or_file(folder, list_dir=False, recursive=True)
    return sorted(map(os.path.normpath, names))


def passed_over(folder: str, names: Iterable[str]) -> Iterator[Finding]:
    """Tell of images that are not used, all of a suffix together.

    Args:
        folder: Where they lie.
        names: Of files that the data set leaves out; what is no image by its
            name is none of its.
    """
    by_suffix = defaultdict(list)
    for name in names:
        suffix = os.path.splitext(name)[1]
        if suffix.lower() in _SUFFIXES:
            by_suffix[suffix].append(name)
    for suffix, files in sorted(by_suffix.items()):
        yield found(
            'image-passed-over',
            folder,
            f'has {len(files)} images in {suffix}, which are passed over: '
            f'{listing(files)}',
        )


def unpaired_findings(dataset: BaseDataset) -> Iterator[Finding]:
    """Tell of images and label maps that mmseg passes over.

    Args:
        dataset: A ``BaseSegDataset``. One with a list of its images, or a
            way of its own to find them, leaves out what it likes.
    """
    folder = dataset.data_prefix.get('img_path')
    finds = next(c for c in type(dataset).__mro__ if _lists(c))
    has_list = dataset.ann_file and not os.path.isdir(dataset.ann_file)
    if finds.__name__ != 'BaseSegDataset' or has_list:
        return
    if not folder or not os.path.isdir(folder):
        return
    suffix = dataset.img_suffix
    names = files_below(folder)
    taken = {name for name in names if name.endswith(suffix)}
    maps = set(_maps(dataset))
    yield from passed_over(
        folder,
        [
            name
            for name in names
            if name not in taken
            and os.path.join(folder, name) not in maps
            # Longer endings are there to choose some of the images.
            and (suffix.startswith('.') or _ends_like(name, suffix))
        ],
    )
    if not taken:
        return
    map_folder = dataset.data_prefix.get('seg_map_path')
    images = {os.path.join(folder, name) for name in taken}
    for path in sorted(maps - images):
        stem = os.path.relpath(path, map_folder)
        image = stem[: -len(dataset.seg_map_suffix)] + suffix
        if image not in taken:
            yield found(
                'label-map-alone',
                path,
                f'is passed over, as there is no {image} in {folder}',
            )


def _lists(kind: type) -> bool:
    return 'load_data_list' in vars(kind)


def _ends_like(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix.lower())


def _maps(dataset: BaseDataset) -> Iterator[str]:
    """Paths of all label maps, with an image or without."""
    folder = dataset.data_prefix.get('seg_map_path')
    if folder and os.path.isdir(folder):
        for name in files_below(folder):
            if name.endswith(dataset.seg_map_suffix):
                yield os.path.join(folder, name)
