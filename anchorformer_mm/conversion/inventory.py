"""What a warm start carried, made and dropped."""

import math

from torch import Tensor

ACTIONS = ('carried', 'made', 'dropped')


class Inventory:
    """Counts of tensors and parameters by what became of them, and by kind.

    What is carried or dropped is counted as it is in the source, what is made
    as it is in the target. A slice of a tensor counts as a tensor.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict] = {}

    def add(
        self, action: str, kind: str, *tensors: Tensor, note: str = ''
    ) -> None:
        """Count tensors, together with those of the same action and kind.

        Args:
            action: Of ``ACTIONS``.
            kind: What the tensors are, e.g. ``'norms'``.
            *tensors: Of any shape.
            note: Why or how; each wording is kept once.
        """
        if action not in ACTIONS:
            raise ValueError(f'action must be of {ACTIONS}, got {action!r}')
        row = self._rows.setdefault(
            (action, kind),
            dict(action=action, kind=kind, tensors=0, parameters=0, note=''),
        )
        row['tensors'] += len(tensors)
        row['parameters'] += sum(math.prod(t.shape) for t in tensors)
        if note and note not in row['note'].split('; '):
            row['note'] = f'{row["note"]}; {note}'.removeprefix('; ')

    def add_if_any(
        self, action: str, kind: str, *tensors: Tensor, note: str = ''
    ) -> None:
        """As :meth:`add`, but without tensors there is no row either."""
        if tensors:
            self.add(action, kind, *tensors, note=note)

    def rows(self) -> list[dict]:
        """The rows in the order of ``ACTIONS``, as plain data."""
        return [
            dict(row)
            for action in ACTIONS
            for row in self._rows.values()
            if row['action'] == action
        ]

    def total(self, action: str) -> int:
        """Parameters of one action."""
        return sum(
            row['parameters']
            for row in self._rows.values()
            if row['action'] == action
        )

    def __str__(self) -> str:
        rows = self.rows()
        width = max((len(row['kind']) for row in rows), default=0)
        lines = [f'{"":{width + 2}}  {"tensors":>7}  {"parameters":>11}']
        for action in ACTIONS:
            group = [row for row in rows if row['action'] == action]
            lines.append(action if group else f'{action}: nothing')
            lines += [
                f'  {row["kind"]:{width}}  {row["tensors"]:>7}  '
                f'{row["parameters"]:>11,}  {row["note"]}'.rstrip()
                for row in group
            ]
        return '\n'.join(lines)
