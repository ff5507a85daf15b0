"""Faults of data sets, found in what the model will see.

The data sets of a config are built as the Runner builds them. The entries
that they give (``get_data_info``), and what their pipelines make of these,
are looked at: any format that mmdet, mmseg, mmpretrain or a class of the
user's loads is checked by the same code.
"""

import json
import logging
import math
import os
import random
import re
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from torch.utils.data import DataLoader

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import config_dicts
from anchorformer_mm.utils.text import listing, printable

ERROR, WARNING = 'error', 'warning'
_COMMAND = 'python -m anchorformer_mm check_dataset CONFIG'
_IMAGES = '.avif .bmp .gif .heic .jfif .jpeg .jpg .png .tif .tiff .webp'
# Parts of models that take classes, by their names in configs.
_HEADS = (
    r'(?!.*(teacher|rpn_head)).*\b(head|\w+_head|data_preprocessor)(\.\d+)?'
)

# What it is, and what to do about it.
# fmt: off
_ERRORS = {
    'set': ('unusable', 'see arguments, ann_file, data_prefix, filter_cfg'),
    'class-text': ('classes is a text', "write a tuple, as ('cat',)"),
    'class-head': ('data and model differ in classes', 'set num_classes'),
    'class-weight': ('class_weight does not fit', 'one weight for each class'),
    'class-unknown': ('classes that the annotations do not know', 'rename'),
    'class-order': ('classes in another order', 'see metainfo.classes'),
    'file': ('files that cannot be read', 'get them, or delist them'),
    'load': ('entries on which the pipeline fails', 'correct or delist them'),
    'label': ('labels that are no class', 'count from 0; see num_classes'),
    'box': ('boxes that are not finite', 'correct or delete them'),
    'ignored': ('all objects are crowd, difficult or ignored', 'unmark them'),
    'mask': ('objects without a mask that can be loaded',
             'give polygons [[x1, y1, x2, y2, x3, y3, ...]] or RLE'),
    'map': ('label maps that are not one id a pixel', 'write grey PNG files'),
    'map-ids': ('ids that are no class', 'correct num_classes or the maps; '
                'for void, set ignore_index of heads and metrics'),
    'padding': ('padding that is no class', 'set seg_pad_val to ignore_index'),
    'metric-id': ('annotation ids that pycocotools cannot take', 'renumber'),
    'metric-crowd': ('annotations without iscrowd', 'set it to 0'),
    'metric-images': ('images that the metric does not know', 'see ann_file'),
}
_WARNINGS = {
    'part': ('only a part was looked at', f'{_COMMAND} looks at all'),
    'root': ('another data_root than in training', 'see the dataloaders'),
    'classes': ('other classes than in training', 'see the dataloaders'),
    'class-empty': ('classes without an example',
                    'correct names or ids, add some, or leave the class out'),
    'left-images': ('images left out', 'see filter_cfg, names and suffixes'),
    'left-objects': ('objects left out', 'see classes, boxes and areas'),
    'size': ('images of another size than annotated', 'correct it; if turned, '
             "load with color_type='color_ignore_orientation'"),
    'in-training': ('images that are in training, too', 'take them out'),
    'box-area': ('boxes without area', 'correct or delete them'),
    'box-outside': ('boxes that reach out of the image', 'correct them'),
    'map-ignored': ('label maps in which all is ignored', 'delist them'),
    'metric-id-0': ('annotations missed for their id', 'count from 1'),
}
# fmt: on


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split.

    Args:
        severity: ``'error'`` for what would stop the run or make its result
            meaningless, else ``'warning'``.
        split: ``'train'``, ``'val'`` or ``'test'``.
        message: What is wrong.
        remedy: What to do about it.
        cases: Files, classes and annotations that it is about.
    """

    severity: str
    split: str
    message: str
    remedy: str
    cases: tuple[str, ...]

    def text(self, limit: int = 5) -> str:
        """Return one line that names the first ``limit`` cases."""
        count = f' ({len(self.cases)})' if len(self.cases) > 1 else ''
        cases = listing(self.cases, limit)
        line = f'{self.split}: {self.message}{count}: {cases}; {self.remedy}'
        # Names of files may hold anything.
        return printable(' '.join(line.splitlines()))

    __str__ = text


def check_runner(
    runner: Runner, splits: Sequence[str], seconds: float = 2.0
) -> list[Finding]:
    """Check the data sets of a Runner, which builds them if it has not yet.

    Of several processes the first one checks; others find nothing.

    Args:
        runner: Before its training or test.
        splits: Of ``'train'``, ``'val'`` and ``'test'``, what will run.
        seconds: Time for all of it, without the building.
    """

    def build(split: str) -> tuple[Any, Sequence]:
        dataset = getattr(runner, f'{split}_dataloader').dataset
        evaluator = split != 'train' and getattr(runner, f'{split}_evaluator')
        return dataset, getattr(evaluator, 'metrics', ())

    return check_splits(runner.cfg, splits, build, seconds / len(splits))


def check_splits(
    cfg: Config,
    splits: Sequence[str],
    build: Callable[[str], tuple[Any, Sequence]],
    seconds: float | None = None,
    workers: int = 0,
    track: Callable = lambda items, total, label: items,
) -> list[Finding]:
    """Check the data sets of splits, and compare them.

    Args:
        cfg: The whole config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.
        build: Gives the data set of a split and its metrics.
        seconds: Time for each split, in which evenly spread entries are
            looked at; None for all entries.
        workers: Processes besides this one.
        track: Gives the items of its first argument and shows progress; it
            also takes their number and a label.
    """
    checks = []
    for split in splits:
        fault, metrics = '', ()
        try:
            dataset, metrics = build(split)
        # Data sets refuse their arguments and files each in its own way.
        except Exception as error:
            fault = f'{type(error).__name__}: {error}'
            dataset = _unfiltered(cfg[f'{split}_dataloader']['dataset'])
        if is_main_process():
            check = _Check(dataset, cfg, split, metrics)
            if fault:
                check.tell('set', fault)
            # Data of an unknown kind shall not keep a training from starting.
            try:
                check.run(seconds, workers, track)
            except Exception as error:
                check.tell('part', f'{type(error).__name__}: {error}')
            checks.append(check)
            if split != 'train' == checks[0].split:
                check.compare(checks[0])
    texts = _ERRORS | _WARNINGS
    return [
        Finding(severity, check.split, *texts[kind], (*dict.fromkeys(cases),))
        for check in checks
        # Errors come first.
        for (severity, kind), cases in sorted(check.cases.items())
    ]


def report_findings(
    findings: Sequence[Finding], logger: logging.Logger
) -> None:
    """Log warnings, and refuse to run on errors.

    Raises:
        UsageError: There are errors; the message has all of them.
    """
    for finding in findings:
        if finding.severity == WARNING:
            logger.warning(str(finding))
    if errors := [str(f) for f in findings if f.severity == ERROR]:
        end = f'More: {_COMMAND}. To run all the same: --skip-data-check'
        raise UsageError('\n'.join(['the data has errors:', *errors, end]))


def _unfiltered(config: Mapping) -> Any:
    """Build a data set that failed, without what may have emptied it."""
    config = deepcopy(config)
    for _, node, _ in config_dicts(config, ''):
        if 'pipeline' in node and 'dataset' not in node:
            # mmengine cannot serialise a data set in which there is nothing.
            node.update(filter_cfg=None, serialize_data=False)
    with suppress(Exception):
        return DATASETS.build(config)


def _leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside of wrappers."""
    if isinstance(getattr(dataset, 'datasets', None), (list, tuple)):
        for inner in dataset.datasets:
            yield from _leaves(inner)
    elif hasattr(getattr(dataset, 'dataset', None), '__getitem__'):
        yield from _leaves(dataset.dataset)
    elif dataset is not None:
        yield dataset


def _px(shape: Sequence[int]) -> str:
    return f'{shape[1]}x{shape[0]} px'


def _box_fault(box: Any, width: Any, height: Any) -> str:
    """Return the kind of fault of an ``xyxy`` box in px, if it has one."""
    try:
        values = np.array(box, float).ravel()
    except (TypeError, ValueError, OverflowError):
        return 'box'
    if not values.size or not np.isfinite(values).all():
        return 'box'
    if values.size != 4:
        return ''  # rotated boxes and the like
    x1, y1, x2, y2 = values
    if x2 <= x1 or y2 <= y1:
        return 'box-area'
    # Rounding, and counting pixels from 1, let boxes reach out by 1 px.
    far = max(-x1, -y1, x2 - (width or math.inf), y2 - (height or math.inf))
    return 'box-outside' if far > 1 else ''


def _file_fault(path: str) -> str:
    if os.path.isfile(path):
        return '' if os.path.getsize(path) else 'has 0 bytes'
    near = glob(f'{escape(os.path.splitext(path)[0])}.*')[:1]
    hint = ['write / for \\'] if '\\' in path else [f'{n} is' for n in near]
    return '; '.join(['is not there', *hint])


def _is_mask(mask: Any) -> bool:
    """Tell RLE and polygons of three points from what cannot be loaded."""
    if isinstance(mask, Mapping):
        return {'counts', 'size'} <= mask.keys()
    return bool(mask) and all(
        isinstance(p, (list, np.ndarray)) and len(p) >= 6 and len(p) % 2 == 0
        for p in mask
    )


def _look(place: tuple[Any, int, Sequence]) -> dict:
    """Run an entry of a data set through the steps of its pipeline.

    Gives ``name``, ``cases`` of faults, and if there are, ``ids`` of its
    label map as loaded, ``after`` all steps, and ``size`` for the model.
    """
    dataset, index, steps = place
    seen, step = dict(name=f'entry {index}', cases=[]), 'its data set'
    try:
        # A class of the user's may do all of it by itself.
        results = dataset.get_data_info(index) if steps else dataset[index]
        info = dict(results) if isinstance(results, dict) else {}
        seen['name'] = str(info.get('img_path') or seen['name'])
        told = info.get('height'), info.get('width')
        path = info.get('seg_map_path') or seen['name']
        for transform in steps:
            step = type(transform).__name__
            results = transform(results)
            if results is None:
                return seen
            if not step.startswith('Load'):
                continue
            size = tuple(results.get('ori_shape', ()))[:2]
            if size and None not in told and told != size:
                text = f'{seen["name"]} ({_px(size)}, not {_px(told)})'
                seen['cases'].append(('size', text))
            ids = results.get('gt_seg_map')
            # Panoptic maps of mmdet hold ids of segments.
            if not isinstance(ids, np.ndarray) or 'instances' in info:
                continue
            if ids.shape != size:
                text = f'{path} of {ids.shape} on an image of {size}'
                seen['cases'].append(('map', text))
            with suppress(OSError), Image.open(path) as image:
                if image.mode[0] == 'I' and image.getextrema()[1] > 255:
                    seen['cases'].append(('map', f'{path}: ids beyond 255'))
            if ids.ndim == 2:
                seen['ids'] = {*np.unique(ids).tolist()}
        sample = results.get('data_samples') if info else None
        if isinstance(sample, BaseDataElement) and 'ids' in seen:
            seen['after'] = {*sample.gt_sem_seg.data.unique().tolist()}
            seen['size'] = results['inputs'].shape[-2:]
    # Loaders and transforms raise what they like.
    except Exception as error:
        text = f'{type(error).__name__}: {error}'.splitlines()[0]
        seen['cases'].append(('load', f'{seen["name"]} ({step}: {text})'))
    return seen


class _Check:
    """The check of one split."""

    def __init__(
        self, dataset: Any, cfg: Config, split: str, metrics: Sequence
    ) -> None:
        self.cfg, self.split, self.metrics = cfg, split, metrics
        self.leaves = list(_leaves(dataset))
        places = []
        for leaf in self.leaves:
            pipeline = getattr(leaf, 'pipeline', None)
            # Some transforms remember images.
            steps = deepcopy(getattr(pipeline, 'transforms', ()))
            places += [(leaf, index, steps) for index in range(len(leaf))]
        # Steps of the golden ratio: each first part is evenly spread.
        order = np.argsort(np.arange(len(places)) * 0.6180339887498949 % 1)
        self.places = [places[i] for i in order]
        self.cases: dict[tuple[str, str], list[str]] = defaultdict(list)
        # How often there is a label, and an id in maps; objects of each data
        # set, and ignored ones.
        self.labels, self.maps, self.objects = Counter(), Counter(), Counter()
        self.annotated = False
        self.image_ids: set[int] = set()
        self.paths: set[str] = set()
        # Folders with suffixes that are read there.
        self.read: set[tuple[str, str]] = set()
        # Names of the classes that annotations have.
        self.names: set[str] = set()
        metainfo = [getattr(d, 'metainfo', {}) for d in self.leaves[:1]]
        self.classes = dict(*metainfo).get('classes') or ()
        if isinstance(self.classes, str):
            self.tell('class-text', repr(self.classes))
            self.classes = ()
        self.heads = {
            name: node
            for top in ('model', 'data_preprocessor')
            for name, node, _ in config_dicts(cfg.get(top), top)
            if re.fullmatch(_HEADS, name)
            and isinstance(node.get('num_classes'), int)
            # Takes boundaries for classes.
            and 'STDCHead' not in str(node.get('type'))
        }
        sizes = [head['num_classes'] for head in self.heads.values()]
        self.num = len(self.classes) or min(sizes, default=0)
        takers = [vars(metric).get('ignore_index') for metric in metrics]
        if split == 'train':
            takers = [h.get('ignore_index', 255) for h in self.heads.values()]
        # An id that one of them takes for a class is not ignored.
        ignored = {*takers} - {None} or {255}
        self.ignored = ignored if len(ignored) == 1 else set()

    def tell(self, kind: str, case: str, severity: str | None = None) -> None:
        severity = severity or (ERROR if kind in _ERRORS else WARNING)
        self.cases[severity, kind].append(case)

    def run(
        self, seconds: float | None, workers: int, track: Callable
    ) -> None:
        start = time.monotonic()
        end = start + (math.inf if seconds is None else seconds)
        total, looked, loaded, sound = len(self.places), 0, 0, []
        if not total:
            self.tell('set', 'it has no entry')
            return
        self._compare_heads()
        for place in track(self.places, total, f'{self.split}: annotations'):
            if looked and time.monotonic() > (start + end) / 2:
                break
            looked += 1
            if self._entry(*place):
                sound.append(place)
        loader = DataLoader(
            sound, batch_size=None, num_workers=workers, collate_fn=_look
        )
        # Random transforms leave no trace in a training.
        state, numpy_state = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            for seen in track(loader, len(sound), f'{self.split}: images'):
                loaded += 1
                for kind, case in seen['cases']:
                    self.tell(kind, case)
                if self.num and 'ids' in seen:
                    self._map(seen)
                if time.monotonic() > end:
                    break
        random.setstate(state)
        np.random.set_state(numpy_state)
        for metric in self.metrics:
            # That of COCO holds what it read, under a private name.
            for coco in vars(metric).values():
                if hasattr(coco, 'anns') and hasattr(coco, 'dataset'):
                    self._look_at_metric(metric, coco.dataset)
        whole = looked == total
        complete = whole and loaded == len(sound)
        if not complete:
            text = f'{looked} of {total} entries, {loaded} with their images'
            self.tell('part', text)
        self._look_for_others(whole)
        if self.maps:
            self._look_at_classes(self.maps, loaded, complete)
        elif self.annotated:
            self._look_at_classes(self.labels, looked, whole)

    def _compare_heads(self) -> None:
        for name, head in self.heads.items():
            number = head['num_classes']
            if self.classes and number != self.num:
                text = f'num_classes={number}, the data has {self.num} classes'
                self.tell('class-head', f'{name} has {text}')
            # That of boxes may have one more, for the background.
            fitting = {number, number + ('bbox_head' in name)}
            for place, node, _ in config_dicts(head, name):
                weight = node.get('class_weight')
                if isinstance(weight, list) and len(weight) not in fitting:
                    text = f'{len(weight)} for num_classes={number}'
                    self.tell('class-weight', f'{place} has {text}')

    def _entry(self, dataset: Any, index: int, steps: Sequence) -> bool:
        """Look at an entry; tell if its files are there."""
        if not hasattr(dataset, 'get_data_info'):
            return True
        info = dataset.get_data_info(index)
        path = info.get('img_path')
        name = path if isinstance(path, str) else f'entry {index}'
        self.paths.add(name)
        if 'img_id' in info:
            self.image_ids.add(info['img_id'])
        sound = True
        files = [path]
        if any('Annotations' in type(step).__name__ for step in steps):
            files.append(info.get('seg_map_path'))
        is_remote = getattr(dataset, 'backend_args', None)
        for file in files:
            if isinstance(file, str) and '://' not in file:
                self.read.add((os.path.dirname(file), Path(file).suffix))
                if not is_remote and (fault := _file_fault(file)):
                    self.tell('file', f'{file} {fault}')
                    sound = False
        self.annotated |= 'instances' in info or 'gt_label' in info
        for label in np.ravel(info.get('gt_label', ())).tolist():
            self._label(label, name)
        masks = any(getattr(step, 'with_mask', False) for step in steps)
        size = info.get('width'), info.get('height')
        for number, item in enumerate(info.get('instances') or ()):
            box = item.get('bbox')
            where = f'{name}, object {number} {box}'
            self._label(item.get('bbox_label'), where)
            self.objects[id(dataset)] += 1
            self.objects['ignored'] += bool(item.get('ignore_flag'))
            if box is not None and (kind := _box_fault(box, *size)):
                self.tell(kind, where)
            if masks and not _is_mask(item.get('mask')):
                self.tell('mask', where)
        return sound

    def _label(self, label: Any, where: str) -> None:
        self.labels[label] += 1
        is_whole = isinstance(label, (int, np.integer))
        known = is_whole and 0 <= label < self.num
        if self.num and not known:
            self.tell('label', f'{where}: {label} of {self.num}')

    def _map(self, seen: dict) -> None:
        name, ids, size = seen['name'], seen['ids'], seen.get('size')
        self.maps.update(ids)
        known = self.ignored | {*range(self.num)}
        if unknown := (ids | seen.get('after', set())) - known:
            text = f'{name} has {listing(map(str, sorted(unknown)))}'
            # In an evaluation they are of no class.
            is_train = self.split == 'train'
            self.tell('map-ids', text, ERROR if is_train else WARNING)
        if ids <= self.ignored:
            self.tell('map-ignored', name)
        padding = (self.cfg.get('model') or {}).get('data_preprocessor') or {}
        value = padding.get('seg_pad_val', 255)
        wanted = self.split == 'train' and size and padding.get('size')
        if wanted and np.less(size, wanted).any() and value not in known:
            text = f'{_px(size)}, padded to {_px(wanted)} with {value}'
            self.tell('padding', f'{name}, of {text}')

    def _look_at_metric(self, metric: Any, coco: dict) -> None:
        """Look at annotations that pycocotools is to compare with."""
        self._categories(coco)
        images = {image['id']: image for image in coco.get('images', ())}
        if unknown := self.image_ids - images.keys():
            text = f'{len(unknown)}, of the ids {listing(map(str, unknown))}'
            self.tell('metric-images', text)
        masks = 'segm' in getattr(metric, 'metrics', ())
        for entry in coco.get('annotations', ()):
            image = images.get(entry['image_id'], {}).get('file_name')
            where = f'annotation {entry["id"]!r} of {image}'
            if not isinstance(entry['id'], (int, float)):
                self.tell('metric-id', where)
            elif entry['id'] == 0:
                self.tell('metric-id-0', where)
            if 'iscrowd' not in entry:
                self.tell('metric-crowd', where)
            if masks and not _is_mask(entry.get('segmentation')):
                self.tell('mask', where)

    def _categories(self, coco: dict) -> None:
        names = [entry['name'] for entry in coco.get('categories', ())]
        self.names.update(names)
        ours = [name for name in names if name in self.classes]
        for name in self.classes:
            if name not in ours:
                self.tell('class-unknown', self._named(name))
        if sorted(ours) == sorted(self.classes) and ours != [*self.classes]:
            text = f'{listing(ours)}, not {listing(self.classes)}'
            self.tell('class-order', text)

    def _look_for_others(self, whole: bool) -> None:
        """Tell what of the files does not come to the model."""
        for dataset in self.leaves:
            file = str(getattr(dataset, 'ann_file', None) or '')
            if file.endswith('.txt') and os.path.isfile(file):
                lines = Path(file).read_text(encoding='utf-8').split('\n')
                count = sum(bool(line.strip()) for line in lines)
                if count > len(dataset):
                    text = f'{count - len(dataset)} of {count} in {file}'
                    self.tell('left-images', text)
            # CocoDataset of mmdet remembers categories, and images of each.
            ids = getattr(dataset, 'cat_ids', None)
            images = getattr(dataset, 'cat_img_map', {})
            if ids is not None and len(ids) < len(self.classes):
                with open(file, encoding='utf-8') as stream:
                    self._categories(json.load(stream))
            count = sum(map(len, images.values()))
            left = count - self.objects[id(dataset)]
            if whole and left > 0:
                self.tell('left-objects', f'{left} of {count} in {file}')
        folders = sorted({os.path.dirname(path) for path in self.paths})[:50]
        for folder in filter(os.path.isdir, folders):
            suffixes = Counter(Path(n).suffix for n in os.listdir(folder))
            for suffix, count in suffixes.items():
                is_image = suffix.lower() in _IMAGES.split()
                if is_image and (folder, suffix) not in self.read:
                    text = f'{count} in {suffix} of {folder}'
                    self.tell('left-images', text)

    def _look_at_classes(
        self, counts: Counter, seen: int, whole: bool
    ) -> None:
        there = [label for label in range(self.num) if counts[label]]
        objects = sum(self.labels.values())
        is_test = self.split == 'test'
        if self.objects['ignored'] == objects > 0:
            text = f'{objects} objects'
            self.tell('ignored', text, WARNING if is_test else ERROR)
        # A few entries may well lack a rare class.
        if not self.classes or not (whole or seen >= 10 * self.num):
            return
        # One class of several is nothing to learn but for a detector.
        least = 2 if self.split == 'train' and not self.objects else 1
        is_error = whole and not is_test and len(there) < min(least, self.num)
        hint = ''
        if counts is self.maps:
            ids = [f'{i}{" (ignored)" * (i in self.ignored)}' for i in counts]
            hint = f'; maps have the ids {listing(sorted(ids))}'
        if getattr(self.leaves[0], 'reduce_zero_label', False):
            hint += ' after reduce_zero_label'
        for label in sorted({*range(self.num)} - {*there}):
            text = self._named(self.classes[label]) + hint
            self.tell('class-empty', text, ERROR if is_error else WARNING)

    def _named(self, name: str) -> str:
        """Return a class with what may be its name in the annotations."""
        for dataset, index, _ in self.places[: 0 if self.names else 200]:
            path = dataset.get_data_info(index).get('xml_path')
            if path and os.path.isfile(path):
                names = ET.parse(path).iterfind('object/name')
                self.names.update(str(element.text) for element in names)
        others = {n.lower(): n for n in self.names if n not in self.classes}
        near = get_close_matches(name.lower(), others, 1)
        there = [repr(others[key]) for key in near or others]
        return f'{name!r}' + (f' (there is {listing(there)})' if there else '')

    def compare(self, train: '_Check') -> None:
        """Compare the data of an evaluation with that of the training."""
        for path in sorted(self.paths & train.paths):
            self.tell('in-training', path)
        if self.classes and train.classes and self.classes != train.classes:
            text = f'{listing(self.classes)}, not {listing(train.classes)}'
            self.tell('classes', text)
        ours, theirs = (
            {
                # Without a folder for the split.
                re.sub(r'/(train|val|test)[^/]*$', '', os.path.abspath(root))
                for dataset in check.leaves
                if (root := getattr(dataset, 'data_root', None))
            }
            for check in (self, train)
        )
        pairs = [(a, b) for a in ours for b in theirs]
        if pairs and not any(os.path.commonpath(p) in p for p in pairs):
            self.tell('root', f'{listing(ours)}, not {listing(theirs)}')
