"""What was changed in a config since a checkpoint was written."""

import ast
from collections.abc import Iterator

# Of a run, not of what it trains.
_IGNORED = {
    'work_dir',
    'resume',
    'load_from',
    'begin_from',
    'launcher',
    'randomness',
    'model_wrapper_cfg',
}


def config_changes(before: str, now: str) -> list[str]:
    """List the settings that differ, as ``name: before -> now``.

    The texts are parsed and never run: one of them is out of a checkpoint.

    Args:
        before: ``Config.pretty_text`` of the checkpoint.
        now: Likewise, of this run.

    Returns:
        list[str]: Empty if a text is not one of a config.
    """
    try:
        old, new = dict(_settings(before)), dict(_settings(now))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [
        f'{name}: {old.get(name, "(none)")} -> {new.get(name, "(none)")}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign):
            name = ast.unparse(statement.targets[0])
            if name not in _IGNORED:
                yield from _leaves(name, statement.value)


def _leaves(name: str, node: ast.expr) -> Iterator[tuple[str, str]]:
    parts: list[tuple[object, ast.expr]] = []
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict':
        for keyword in node.keywords:
            if keyword.arg is None:
                # dict(**{'a.b': 1}), where a key is no name.
                yield from _leaves(name, keyword.value)
            else:
                parts.append((keyword.arg, keyword.value))
    elif isinstance(node, ast.Dict):
        keys = (ast.unparse(key) for key in node.keys if key is not None)
        parts = list(zip(keys, node.values, strict=False))
    elif isinstance(node, (ast.List, ast.Tuple)):
        parts = list(enumerate(node.elts))
    if not parts:
        yield name, ast.unparse(node)
    for key, value in parts:
        yield from _leaves(f'{name}.{key}', value)
