"""Count all models for public data sets: model index and tables of them.

Writes configs/metafile.yml, which model-index.yml imports and mim reads, the
sizes in docs/models.md, and the claims in README.md. Groups of models and what
their papers print stand in benchmarks/data/model_index.yml. Takes minutes, and
no data.
"""

import argparse
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, progress, read_text, replace_blocks, update_files
from mmengine.config import Config
from mmengine.logging import MMLogger

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.apis import build_model
from anchorformer_mm.utils.errors import UsageError, run_command_line
from anchorformer_mm.utils.text import markdown_table

DATA = Path(__file__).with_name('data') / 'model_index.yml'
HEAD = """\
# Made by benchmarks/model_index.py, from the configs. None of these has been
# trained here, so there are no Results and no Weights. MACs are
# multiply-accumulates of convolutions, linear layers and matrix products, for
# one image of the input size; FLOPs are twice the MACs.
"""


def load_decisions() -> dict[str, Any]:
    """Read groups, data sets and tables."""
    return yaml.safe_load(read_text(DATA))


def public_configs(
    folder: Path, decisions: Mapping[str, Any]
) -> dict[Path, Mapping[str, Any]]:
    """The configs for public data sets in order, and the collection of each.

    Raises:
        UsageError: The name of a config ends in no data set that is known,
            or it is in no collection, or in several.
    """
    known = [*decisions['public_data'], *decisions['small_data']]
    collections = decisions['collections']
    chosen = []
    for path in folder.glob('*.py'):
        data = path.stem.rsplit('_', 1)[-1]
        if data not in known:
            raise UsageError(
                f'the name of a config must end in one of {", ".join(known)}, '
                f'got {path.stem}'
            )
        if data in decisions['small_data']:
            continue
        places = [
            place
            for place, collection in enumerate(collections)
            if any(fnmatch(path.stem, p) for p in collection['configs'])
        ]
        if len(places) != 1:
            names = ', '.join(collections[place]['name'] for place in places)
            raise UsageError(
                f'{path.stem} must be in one of the collections of {DATA}, '
                f'is in {names or "none"}'
            )
        chosen.append((places[0], path.stem, path))
    return {path: collections[place] for place, _, path in sorted(chosen)}


def input_shape(cfg: Config) -> tuple[int, int]:
    """Largest height and width of the images that a model is tested on, px.

    Raises:
        UsageError: The test pipeline does not say.
    """
    sizes = [
        step.get('crop_size') or step.get('scale')
        for step in cfg.test_dataloader.dataset.pipeline
        if step.type.rsplit('.')[-1] in ('CenterCrop', 'Resize')
    ]
    if not sizes:
        raise UsageError(f'{cfg.filename} tests without Resize, CenterCrop')
    size = sizes[-1]
    width, height = (size, size) if isinstance(size, int) else size
    return height, width


def model_entry(
    path: Path, collection: Mapping[str, Any], decisions: Mapping[str, Any]
) -> dict[str, Any]:
    """Count the model of a config, and describe it as mim has it.

    Raises:
        UsageError: It cannot be built or counted.
    """
    cfg = Config.fromfile(path)
    shape = collection.get('shape') or input_shape(cfg)
    model = build_model(cfg)
    figures = dict(Parameters=sum(p.numel() for p in model.parameters()))
    # The work of a second stage depends on the proposals of the first.
    if hasattr(model, 'roi_head'):
        macs = count_complexity(model.backbone, shape).macs
        figures['Backbone MACs'] = macs
    else:
        macs = count_complexity(model, shape).macs
        figures |= {'MACs': macs, 'FLOPs': 2 * macs}
    data = path.stem.rsplit('_', 1)[-1]
    return {
        'Name': path.stem,
        'In Collection': collection['name'],
        'Config': f'configs/{path.name}',
        'Metadata': {
            **figures,
            'Input Size': f'{shape[0]} x {shape[1]}',
            'Training Data': decisions['public_data'][data],
        },
    }


def metafile(
    entries: Sequence[Mapping[str, Any]], decisions: Mapping[str, Any]
) -> str:
    """Write entries and their collections as mim reads them."""
    collections = [
        {
            'Name': collection['name'],
            'Metadata': {'Architecture': collection['architecture']},
            'Paper': dict(decisions['papers'][collection['paper']]),
        }
        for collection in decisions['collections']
    ]
    content = {'Collections': collections, 'Models': list(entries)}
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=79)


def tables_of(
    entries: Sequence[Mapping[str, Any]], decisions: Mapping[str, Any]
) -> tuple[str, str]:
    """Tables of what we count, and of what the papers print.

    Raises:
        UsageError: A model of a table is not among the entries.
    """
    known = {entry['Name']: entry for entry in entries}
    groups = decisions['sizes']
    names = [name for group in groups for name in group['configs']]
    if missing := {*names, *decisions['claims']} - known.keys():
        raise UsageError(f'{DATA} has {min(missing)}, which is no config')
    sizes = []
    for group in groups:
        params, macs = group['digits']
        for name in group['configs']:
            figures = known[name]['Metadata']
            line = [f'`{name}`', figures['Input Size']]
            line.append(f'{figures["Parameters"] / 1e6:.{params}f}')
            line.append(f'{figures["MACs"] / 1e9:.{macs}f}')
            sizes.append(line)
    claims = [
        [f'`{name}`', *printed]
        for name, printed in decisions['claims'].items()
    ]
    of_sizes = ['config', 'input', 'Params (M)', 'MACs (G)']
    of_claims = ['config', 'Params (M)', 'FLOPs (G)', 'accuracy']
    return markdown_table(of_sizes, sizes), markdown_table(of_claims, claims)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    text = 'count nothing; fail if configs, model index and tables disagree'
    parser.add_argument('--check', action='store_true', help=text)
    parser.add_argument('--root', type=Path, default=ROOT)
    args = parser.parse_args(argv)
    MMLogger.get_instance('mmengine', log_level='WARNING')
    decisions = load_decisions()
    configs = public_configs(args.root / 'configs', decisions)
    index = args.root / 'configs/metafile.yml'
    if args.check:
        stored = {
            entry['Name']: entry
            for entry in yaml.safe_load(read_text(index))['Models']
        }
        names = [path.stem for path in configs]
        if list(stored) != names:
            differ = stored.keys() ^ set(names) or ['the order of the models']
            raise UsageError(
                f'{index} and the configs differ in {", ".join(differ)}; '
                'python benchmarks/model_index.py makes it'
            )
        entries = list(stored.values())
    else:
        entries = []
        for path, collection in configs.items():
            progress(path.stem)
            entries.append(model_entry(path, collection, decisions))
    sizes, claims = tables_of(entries, decisions)
    files = {index: metafile(entries, decisions)}
    for name, table in {
        'docs/models.md': dict(sizes=sizes),
        'README.md': dict(claims=claims),
    }.items():
        page = args.root / name
        files[page] = replace_blocks(read_text(page), table)
    update_files(files, args.check, 'model_index.py')


if __name__ == '__main__':
    run_command_line(main)
