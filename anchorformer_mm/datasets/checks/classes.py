"""Whether the classes of data, metainfo and model are the same."""

from collections.abc import Iterator, Mapping, Sequence

from mmengine.config import ConfigDict

from anchorformer_mm.datasets.checks.findings import (
    WARNING,
    Finding,
    found,
    shown,
)
from anchorformer_mm.utils.listing import listing

# Parts of models that have an output a class.
_HEADS = ('head', 'bbox_head', 'mask_head')
_OF_OTHERS = ('teacher', 'rpn_head')


def head_sizes(cfg: ConfigDict) -> dict[str, int]:
    """For how many classes the parts of a model are.

    Args:
        cfg: A whole config of a detector or a classifier.

    Returns:
        dict[str, int]: ``num_classes`` by its place in the config.
    """
    model = cfg.get('model') or {}
    sizes = dict(_sizes(model, 'model'))
    for name, part in (('', cfg), ('model.', model)):
        preprocessor = part.get('data_preprocessor') or {}
        if preprocessor.get('num_classes') is not None:
            sizes[f'{name}data_preprocessor'] = preprocessor['num_classes']
    return sizes


def _sizes(node: object, name: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _sizes(item, f'{name}[{index}]')
    elif isinstance(node, dict):
        part = name.rpartition('.')[2].partition('[')[0]
        if part in _HEADS and isinstance(node.get('num_classes'), int):
            yield name, node['num_classes']
            return
        for key, value in node.items():
            if key not in _OF_OTHERS:
                yield from _sizes(value, f'{name}.{key}')


def head_findings(
    cfg: ConfigDict, classes: Sequence[str] | None, file: str
) -> list[Finding]:
    """Compare how many classes a data set has to what the model takes.

    Args:
        cfg: A whole config of a detector or a classifier.
        classes: Those of the data set; None if it does not name any.
        file: What to call the data set.
    """
    if classes is None:
        return []
    return [
        found(
            'classes-head',
            file,
            f'is used with {len(classes)} classes, but {name} has '
            f'num_classes={number}',
        )
        for name, number in head_sizes(cfg).items()
        if number != len(classes)
    ]


def name_findings(
    classes: Sequence[str],
    counts: Mapping[str, int],
    file: str,
    *,
    is_training: bool,
) -> Iterator[Finding]:
    """Compare the names of classes to those of the objects.

    Args:
        classes: ``metainfo.classes``.
        counts: How many objects each class of the annotations has.
        file: The annotations.
        is_training: Whether every class needs objects.
    """
    unused = [
        f'{shown(name)} ({counts[name]} objects)'
        for name in counts
        if name not in classes and counts[name]
    ]
    if unused:
        yield found(
            'category-unused',
            file,
            f'has objects of classes that metainfo leaves out: '
            f'{listing(unused)}',
        )
    empty = [repr(name) for name in classes if counts.get(name) == 0]
    if is_training and empty:
        yield found(
            'class-empty',
            file,
            f'has no object of {listing(empty)}',
            WARNING,
        )
