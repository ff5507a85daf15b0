"""Data of the user's own: what two lines of a config decide."""

import json
import os

from mmengine.config import Config

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import config_leaves, split_datasets

SPLITS = ('train', 'val', 'test')
SUFFIXES = ('img_suffix', 'seg_map_suffix')


def apply_custom_data(cfg: Config) -> None:
    """Hand ``data_root`` and ``classes`` of a config to what needs them.

    Data sets get both, and the suffixes of the config; COCO's metrics get the
    file of their data set, and heads the number of classes. Classes that are
    None are read from the annotations of the training, or from
    ``classes.txt``; without these files they stay None.

    Args:
        cfg: A whole config; one without ``custom_data = True`` stays as it is.

    Raises:
        UsageError: The classes are not a list of different names.
    """
    if not cfg.get('custom_data'):
        return
    root = str(cfg.get('data_root') or '')
    classes = cfg.get('classes')
    if classes is None:
        classes = read_classes(cfg, root)
    if isinstance(classes, str):
        raise UsageError(
            f'classes is a text; write ({classes!r},), or after --cfg-options '
            f"classes='[{classes}]'"
        )
    values = dict(data_root=root) | {k: cfg[k] for k in SUFFIXES if k in cfg}
    if classes is not None:
        cfg.classes = classes = [str(name) for name in classes]
        repeated = {name for name in classes if classes.count(name) > 1}
        least = 2 if cfg.get('default_scope') == 'mmseg' else 1
        if repeated or len(classes) < least:
            raise UsageError(
                f'classes must be {least} or more different names'
                + (', with that of the background' if least == 2 else '')
                + f', got {classes}'
            )
        values['metainfo'] = dict(classes=classes)
        heads = (name for name, _ in config_leaves(cfg.get('model'), 'model'))
        heads = [name for name in heads if name.endswith('.num_classes')]
        cfg.merge_from_dict(dict.fromkeys(heads, len(classes)))
    for split in SPLITS:
        for dataset in split_datasets(cfg, split):
            dataset.update(values)
            metric = cfg.get(f'{split}_evaluator') or {}
            if 'ann_file' in metric and 'ann_file' in dataset:
                metric['ann_file'] = os.path.join(root, dataset['ann_file'])


def read_classes(cfg: Config, root: str) -> list | None:
    """Names of the classes in the files of a training, if these are there."""
    file = split_datasets(cfg, 'train')[0].get('ann_file')
    path = os.path.join(root, file or 'classes.txt')
    if not os.path.isfile(path):
        if not file and os.path.isdir(root):
            raise UsageError(
                f'classes is None, and there is no {path}: name the classes '
                'in the order of their numbers in the label maps'
            )
        return None
    try:
        with open(path, encoding='utf-8-sig') as stream:
            if not file:
                return [line.strip() for line in stream if line.strip()]
            return [kind['name'] for kind in json.load(stream)['categories']]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f'{path} has no classes: {type(error).__name__}: {error}'
        ) from error
