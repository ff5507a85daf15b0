"""The model index that mim reads, counted from the configs."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from anchorformer_mm.analysis.complexity import (
    build_from_config,
    count_complexity,
)
from anchorformer_mm.analysis.model_decisions import (
    COLLECTIONS,
    PUBLIC_DATA,
    SMALL_DATA,
    Collection,
    Table,
)
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.tables import markdown_table

HEAD = """\
# Made by tools/misc/make_model_index.py, from the configs. None of these has
# been trained here, so there are no Results and no Weights. MACs are
# multiply-accumulates of convolutions, linear layers and matrix products, for
# one image of the input size; FLOPs are twice the MACs.
"""


def public_configs(folder: Path) -> list[Path]:
    """The configs of models for public data sets, ordered by collection.

    Args:
        folder: With configs of models, and parts of configs in ``_base_``.

    Raises:
        UsageError: The name of a config ends in no data set that is known,
            or it is in no collection, or in several.
    """
    chosen = []
    for path in folder.rglob('*.py'):
        if '_base_' in path.relative_to(folder).parts:
            continue
        data = data_of(path.stem)
        if data not in SMALL_DATA:
            place = COLLECTIONS.index(collection_of(path.stem))
            chosen.append((place, path.stem, path))
    return [path for _, _, path in sorted(chosen)]


def data_of(name: str) -> str:
    """The data set in the name of a config.

    Raises:
        UsageError: There is none that is known.
    """
    data = name.rsplit('_', 1)[-1]
    known = (*PUBLIC_DATA, *SMALL_DATA)
    if data not in known:
        raise UsageError(
            f'the name of a config must end in one of {", ".join(known)}, '
            f'got {name}'
        )
    return data


def collection_of(name: str) -> Collection:
    """The collection of a config.

    Raises:
        UsageError: It is in none, or in several.
    """
    found = [
        collection
        for collection in COLLECTIONS
        if any(fnmatch(name, pattern) for pattern in collection.configs)
    ]
    if len(found) != 1:
        names = ', '.join(collection.name for collection in found) or 'none'
        raise UsageError(
            f'{name} must be in one of the collections of '
            f'anchorformer_mm/analysis/model_decisions.py, is in {names}'
        )
    return found[0]


def input_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of the images that a model is tested on, px.

    Of images that keep their ratio, these are the largest.

    Raises:
        UsageError: The test pipeline does not say.
    """
    pipeline = cfg.test_dataloader.dataset.pipeline
    sizes = [
        step.get('crop_size') or step.get('scale')
        for step in pipeline
        if step.type.rsplit('.')[-1] in ('CenterCrop', 'Resize')
    ]
    if not sizes:
        raise UsageError(
            f'{cfg.filename} has no Resize and no CenterCrop in its test '
            'pipeline, which would tell the size of the images'
        )
    size = sizes[-1]
    width, height = (size, size) if isinstance(size, int) else size
    return height, width


def model_entry(config: Path, root: Path) -> dict[str, Any]:
    """Count the model of a config, and describe it as mim has it.

    Args:
        config: Config for a public data set.
        root: Folder with the model index, to which paths are relative.

    Raises:
        UsageError: It cannot be built or counted.
    """
    cfg = Config.fromfile(config)
    collection = collection_of(config.stem)
    shape = collection.shape or input_shape(cfg)
    model = build_from_config(cfg)
    figures = dict(Parameters=sum(p.numel() for p in model.parameters()))
    # The work of a second stage depends on the proposals of the first.
    if hasattr(model, 'roi_head'):
        macs = count_complexity(model.backbone, shape).macs
        figures['Backbone MACs'] = macs
    else:
        macs = count_complexity(model, shape).macs
        figures |= {'MACs': macs, 'FLOPs': 2 * macs}
    return {
        'Name': config.stem,
        'In Collection': collection.name,
        'Config': config.relative_to(root).as_posix(),
        'Metadata': {
            **figures,
            'Input Size': f'{shape[0]} x {shape[1]}',
            'Training Data': PUBLIC_DATA[data_of(config.stem)],
        },
    }


def metafile(entries: Sequence[Mapping[str, Any]]) -> str:
    """Write entries and their collections as mim reads them.

    Args:
        entries: From :func:`model_entry`.
    """
    collections = [
        {
            'Name': collection.name,
            'Metadata': {'Architecture': list(collection.architecture)},
            'Paper': dict(
                zip(('Title', 'URL'), collection.paper, strict=True)
            ),
        }
        for collection in COLLECTIONS
    ]
    content = {'Collections': collections, 'Models': list(entries)}
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=79)


def model_table(table: Table, entries: Iterable[Mapping[str, Any]]) -> str:
    """A table of the front page, beside what the papers print.

    Args:
        table: Which models, and what is printed of them.
        entries: From :func:`model_entry`, with all of these models.

    Raises:
        UsageError: A model is not among the entries.
    """
    known = {entry['Name']: entry for entry in entries}
    header = ['config', 'Params (M), paper', 'ours', 'FLOPs (G), paper']
    header += [
        'MACs (G), ours',
        f'{table.score}, paper',
        f'{table.score}, ours',
    ]
    lines = []
    for name, claim in table.rows.items():
        if name not in known:
            raise UsageError(f'a table has {name}, which no config is named')
        figures = known[name]['Metadata']
        params, macs = (
            f'{figures[key] / unit:.{digits}f}'
            for key, unit, digits in zip(
                ('Parameters', 'MACs'), (1e6, 1e9), table.digits, strict=True
            )
        )
        link = f'[`{name}`]({known[name]["Config"]})'
        lines.append(
            [link, claim.params, params, claim.operations, macs]
            + [claim.score, 'not trained']
        )
    return markdown_table(header, lines)
