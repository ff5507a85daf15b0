"""Which label ids the heads of a segmentor, and its metrics, take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmengine.config import ConfigDict

METRIC_IGNORE_INDEX = HEAD_IGNORE_INDEX = 255
# Heads of mmseg that make targets of their own, here boundaries.
OTHER_TARGETS = ('STDCHead',)


@dataclass(frozen=True)
class Target:
    """What takes label maps.

    Args:
        names: Where it stands in the config; of alike ones all.
        num_ids: Ids from 0 to ``num_ids - 1`` are classes to it.
        ignore_index: The id that it leaves out.
        settings: What of the config says so, for messages.
    """

    names: tuple[str, ...]
    num_ids: int
    ignore_index: int | None
    settings: str

    def unknown(self, ids: Sequence[int]) -> list[int]:
        """Which of some ids are neither a class nor ignored."""
        return [
            id_
            for id_ in ids
            if not 0 <= id_ < self.num_ids and id_ != self.ignore_index
        ]

    def __str__(self) -> str:
        return f'{" and ".join(self.names)} ({self.settings})'


def split_targets(cfg: ConfigDict, split: str) -> list[Target]:
    """What takes the label maps of one split.

    Args:
        cfg: A whole config of mmseg's.
        split: ``'train'``, where that is every head, or one of ``'val'`` and
            ``'test'``, where it is the evaluator and the classes that the
            decode head predicts.

    Returns:
        list[Target]: Different ones; none for a model without classes.
    """
    keys = ['decode_head']
    if split == 'train':
        keys.append('auxiliary_head')
    groups = {}
    for key in keys:
        for name, head in _heads(cfg.model.get(key), f'model.{key}'):
            ignored = head.get('ignore_index', HEAD_IGNORE_INDEX)
            if split != 'train':
                ignored = _metric_ignore_index(cfg.get(f'{split}_evaluator'))
            known = (_num_ids(head), ignored, _settings(head, ignored))
            groups.setdefault(known, []).append(name)
    return [Target(tuple(names), *known) for known, names in groups.items()]


def _heads(node: object, name: str) -> Iterator[tuple[str, ConfigDict]]:
    """Heads with classes: one, several of a cascade, or parts of one."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _heads(item, f'{name}[{index}]')
    elif isinstance(node, dict):
        if _type(node) in OTHER_TARGETS:
            return
        if 'num_classes' in node:
            yield name, node
            return
        for key, value in node.items():
            yield from _heads(value, f'{name}.{key}')


def _type(part: ConfigDict) -> str:
    kind = part.get('type', '')
    kind = kind if isinstance(kind, str) else kind.__name__
    return kind.rpartition('.')[2]


def _num_ids(head: ConfigDict) -> int:
    """One channel with a sigmoid tells two classes, otherwise one each."""
    channels = head.get('out_channels') or head['num_classes']
    if channels != 1:
        return head['num_classes']
    losses = head.get('loss_decode') or []
    losses = losses if isinstance(losses, (list, tuple)) else [losses]
    has_sigmoid = bool(losses) and all(
        loss.get('use_sigmoid', _type(loss) != 'CrossEntropyLoss')
        for loss in losses
    )
    return 2 if has_sigmoid else 1


def _settings(head: ConfigDict, ignore_index: int | None) -> str:
    words = [f'num_classes={head["num_classes"]}']
    if head.get('out_channels') is not None:
        words.append(f'out_channels={head["out_channels"]}')
    if _num_ids(head) == 1:
        words.append('no loss_decode with use_sigmoid=True')
    return ', '.join([*words, f'ignore_index={ignore_index}'])


def _metric_ignore_index(evaluator: ConfigDict | Sequence | None) -> int:
    metrics = (
        evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    )
    for metric in metrics:
        if metric and 'ignore_index' in metric:
            return metric['ignore_index']
    return METRIC_IGNORE_INDEX
