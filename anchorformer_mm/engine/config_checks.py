"""Mistakes in configs of which nothing else tells, or not before training."""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches

from mmengine import registry
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import config_dicts
from anchorformer_mm.utils.text import listing

# Registries that the parts of a config are built from.
_PARTS = {
    r'model|data_preprocessor': (
        'MODELS',
        'TASK_UTILS',
        'WEIGHT_INITIALIZERS',
    ),
    r'\w+_dataloader': ('DATASETS', 'TRANSFORMS', 'DATA_SAMPLERS'),
    r'\w+_evaluator': ('METRICS', 'EVALUATOR'),
    r'(train|val|test)_cfg': ('LOOPS',),
    r'(default|custom)_hooks': ('HOOKS', 'TRANSFORMS'),
    r'optim_wrapper': ('OPTIM_WRAPPERS', 'OPTIMIZERS'),
    r'param_scheduler': ('PARAM_SCHEDULERS',),
    r'visualizer': ('VISUALIZERS', 'VISBACKENDS'),
    r'log_processor': ('LOG_PROCESSORS',),
    r'randomness': (),
}
# Where a type need not be given.
_TYPES = dict(
    train_dataloader=DataLoader,
    val_dataloader=DataLoader,
    test_dataloader=DataLoader,
    val_cfg=ValLoop,
    test_cfg=TestLoop,
    optim_wrapper=OptimWrapper,
    log_processor=LogProcessor,
    visualizer=Visualizer,
    randomness=Runner.set_randomness,
)
# fmt: off
# Packages whose classes hand their **kwargs on as they are.
_KNOWN = (
    'anchorformer_mm', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg',
    'torch')
# Arguments that builders take out.
_BUILDERS = (
    'type', '_scope_', 'by_epoch', 'priority', 'convert_to_iter_based',
    'constructor', 'paramwise_cfg', 'num_batch_per_epoch',
    'disable_subprocess_warning', 'magnitude_key')
# Read besides the arguments of the Runner.
_READ = (
    'custom_imports', 'compile', 'sync_bn', 'find_unused_parameters',
    'model_wrapper_cfg', 'activation_checkpointing', 'efficient_conv_bn_eval',
    'runner_type', 'strategy', 'tta_model', 'tta_pipeline', 'train_pipeline',
    'test_pipeline')
# fmt: on


def check_keys(cfg: Config, split: str) -> None:
    """Refuse keys that are missing, and arguments that no class takes.

    Models hand arguments on: of these, what nearly is another is refused.

    Args:
        cfg: A whole config.
        split: ``'train'`` or ``'test'``, what will run.

    Raises:
        UsageError: Each fault has a line of the message.
    """
    faults = [*_missing(cfg, split)]
    for part in cfg:
        names = [n for p, n in _PARTS.items() if re.fullmatch(p, part)]
        registries = [getattr(registry, name) for name in sum(names, ())]
        default = cfg.get('default_scope')
        for place, node, scope in config_dicts(cfg[part], part, default):
            for key, fault in names and _faults(
                place, node, scope, registries
            ):
                value = node[key]
                where = _where(cfg, value if key == 'type' else key)
                faults.append(f'{where}{place}.{key}={value!r}: {fault}')
    if faults:
        raise UsageError('\n'.join(faults))


def unread_keys(cfg: Config) -> list[str]:
    """Top-level keys that nearly are what a Runner reads, with their places.

    Others are taken for variables, and so is what another value is made of.
    """
    read = [*inspect.signature(Runner).parameters, *_READ]
    used = [
        value
        for part in read
        for _, node, _ in config_dicts(cfg.get(part), part)
        for value in node.values()
    ]
    return [
        f'{_where(cfg, key)}nothing reads {key}: is it {near[0]}?'
        for key in cfg
        if key not in read
        and (near := get_close_matches(key, read, 1, 0.88))
        and cfg[key] not in used
    ]


def explain(error: Exception, cfg: Config) -> str | None:
    """Say where the key or type is that a class or registry does not take."""
    told = re.search(
        r"unexpected keyword argument '(\w+)'|(\w+) is not in the .* registry",
        str(error),
    )
    where = told and _where(cfg, told[1] or told[2])
    text = str(error.args[0]).split('. ')[0]
    return f'{where}{type(error).__name__}: {text}' if where else None


def check_schedule(runner: Runner) -> None:
    """Compare the length of a training with its data and rate schedule.

    Raises:
        UsageError: An epoch has no batch, or no iteration is after a warm-up.
    """
    loop, cfg = runner.train_loop, runner.cfg
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if by_epoch and not len(loop.dataloader):
        raise UsageError(
            f'train_dataloader.batch_size={cfg.train_dataloader.batch_size} '
            f'is more than the {len(loop.dataloader.dataset)} images of the '
            'training (of each process), and drop_last leaves them out'
        )
    for place, node, _ in config_dicts(cfg.param_scheduler, 'param_scheduler'):
        if 'type' not in node:
            continue
        epochs = by_epoch and node.get('by_epoch', True)
        total = loop.max_epochs if epochs else loop.max_iters
        unit = 'epochs' if epochs else 'iterations'
        told = f'but the training has {total} {unit}'
        if node.get('warmup_iters', 0) >= loop.max_iters:
            raise UsageError(
                f'{place}.warmup_iters={node.warmup_iters}, but the training '
                f'has {loop.max_iters} iterations: warm up for fewer'
            )
        if node.get('end', 0) > total and (by_epoch or not node.by_epoch):
            runner.logger.warning(
                f'{place}.end={node.end}, {told}: its schedule is cut off'
            )


def _missing(cfg: Config, run: str) -> Iterator[str]:
    if not cfg.get('model'):
        yield 'the config has no model'
    for split in ('train', 'val', 'test'):
        last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
        group = (f'{split}_dataloader', f'{split}_cfg', last)
        absent = [key for key in group if cfg.get(key) is None]
        # A training may do without evaluation.
        if absent and (split == run or len(absent) < len(group)):
            others = [key for key in cfg if key not in absent]
            near = [
                near
                for key in absent
                for near in get_close_matches(key, others, 1, 0.88)
            ]
            hint = f': is it {listing(near)}?' if near else ''
            yield f'the config has no {" and no ".join(absent)}{hint}'


def _where(cfg: Config, name: str) -> str:
    """Find the line of a key or type, in the file or in one it inherits."""
    found, file, number = '', str(cfg.filename), 0
    for line in cfg.text.splitlines():
        number += 1
        # The text of each file begins with its name.
        if line.endswith('.py') and os.path.isfile(line):
            file, number = min(line, os.path.relpath(line), key=len), 0
        elif re.search(rf'\b{re.escape(str(name))}(\s*=|[\'"])', line):
            found = f'{file}:{number}: '
    return found


def _faults(
    place: str,
    node: Mapping,
    scope: str | None,
    registries: Sequence[Registry],
) -> Iterator[tuple[str, str]]:
    """Yield the keys of a dictionary that are at fault, and why."""
    in_model = place.startswith('model.')
    kind = node.get('type') or _TYPES.get(place)
    if place == 'train_cfg' and kind is None and 'by_epoch' in node:
        kind = EpochBasedTrainLoop if node.by_epoch else IterBasedTrainLoop
    if isinstance(kind, str):
        name, kind, known = kind, None, set()
        for root in registries:
            with root.switch_scope_and_registry(scope) as there:
                kind = kind or there.get(name)
                known |= {*there.module_dict, *root.module_dict}
        near = get_close_matches(name, known, 1, 0.8)
        if kind is None and near and not in_model:
            yield 'type', f'it is not registered; write {near[0]}'
    taken, closed = _arguments(kind) if kind else ([], False)
    for key in node if taken else ():
        if key in taken or key in _BUILDERS:
            continue
        if near := get_close_matches(key, taken, 1, 0.88 if in_model else 0.8):
            yield key, f'{kind.__name__} takes no {key}; write {near[0]}'
        elif closed and not in_model:
            told = listing(taken, 99)
            yield key, f'{kind.__name__} takes no {key}, but {told}'


def _arguments(kind: Callable) -> tuple[list[str], bool]:
    """Names of the arguments of a class, and whether it takes no others."""
    names: list[str] = []
    functions = [kind]
    if inspect.isclass(kind):
        owners = [vars(owner) for owner in kind.__mro__[:-1]]
        functions = [o['__init__'] for o in owners if '__init__' in o]
    for function in functions:
        if hasattr(function, '__wrapped__'):
            # It may take old names, too.
            return [], False
        parameters = inspect.signature(function).parameters.values()
        names += [
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in ('self', *names)
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, True
        if function.__module__.split('.')[0] not in _KNOWN:
            # It may take more out of its **kwargs.
            return [], False
    return names, False
