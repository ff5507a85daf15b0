"""README.md and docs name what is there; examples of configs can be read."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from anchorformer_mm.apis import read_config

slugify = pytest.importorskip('markdown.extensions.toc').slugify

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXTS = {page.name: page.read_text() for page in PAGES}
DATA = 'ade20k|bccd|coco|custom|digits|in1k|voc'
# Of examples for the reader, and in folders of other projects.
ELSEWHERE = ('configs/mine.py', 'main.py')


def expand(name: str) -> list[str]:
    """Names that a shell makes of braces."""
    if not (braces := re.search(r'{([^{}]*)}', name)):
        return [name]
    before, after = name[: braces.start()], name[braces.end() :]
    parts = braces[1].split(',')
    return [n for part in parts for n in expand(before + part + after)]


def without_blocks(text: str) -> str:
    return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def code_of(text: str) -> list[str]:
    """Lines of blocks without their continuations, and code in sentences."""
    text = text.replace('\\\n', ' ')
    blocks = re.findall(r'^```(\w*)\n(.*?)^```', text, re.M | re.S)
    rest = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    lines = [
        line
        for language, block in blocks
        if language in ('', 'bash', 'text')
        for line in block.splitlines()
    ]
    return lines + [
        ' '.join(c.split()) for c in re.findall(r'`([^`]+)`', rest)
    ]


def commands_of(text: str) -> list[tuple[str, set[str]]]:
    """Tools that are called, and their options."""
    calls = []
    for line in code_of(text):
        words = shlex.split(line.replace("'", ' ').partition('  #')[0])
        files = [
            w for w in words if re.match(r'(tools|benchmarks)/.*\.py$', w)
        ]
        if files and words[0] == 'python':
            options = {w for w in words if w.startswith('--')}
            calls.append((files[0], options))
    return calls


COMMANDS = {name: commands_of(text) for name, text in TEXTS.items()}
TOOLS = sorted({tool for calls in COMMANDS.values() for tool, _ in calls})


@pytest.mark.parametrize('name', TEXTS)
def test_files_that_are_named_exist(name):
    text = TEXTS[name]
    paths = re.findall(
        r'(?<![\w/.])(?:configs|tools|benchmarks|docs|requirements)'
        r'/[\w{},/*.-]+\.(?:py|md|sh|yml|txt|json)',
        text,
    )
    configs = [
        f'configs/{code}.py'
        for code in re.findall(r'`([^`\s]+)`', text)
        if re.fullmatch(rf'[\w{{}},*-]+_(?:{DATA})', code)
    ]
    assert [
        file
        for path in [*paths, *configs]
        for file in expand(path)
        if file not in ELSEWHERE and not [*ROOT.glob(file)]
    ] == []


def test_links_of_the_readme_resolve():
    broken = []
    for target in re.findall(r'\]\(([^)]+)\)', TEXTS['README.md']):
        path, _, anchor = target.partition('#')
        if path.startswith('https://'):
            continue
        if not (ROOT / path).is_file():
            broken.append(target)
        elif anchor:
            text = without_blocks((ROOT / path).read_text())
            titles = re.findall(r'^#+ (.*)$', text, re.M)
            if anchor not in [slugify(title, '-') for title in titles]:
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize('tool', TOOLS)
def test_options_that_are_named_are_known(tool, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / tool.split('/')[0]))

    def help_of(*words):
        monkeypatch.setattr(sys, 'argv', [tool, *words, '--help'])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / tool), run_name='__main__')
        return capsys.readouterr().out

    told = help_of()
    for names in re.findall(r'\{([\w,]+)\} \.\.\.', told):
        told += ''.join(help_of(name) for name in names.split(','))
    known = set(re.findall(r'--[\w-]+', told))
    usage = re.sub(r'\[.*?\]', '', told.partition('\n\n')[0], flags=re.S)
    required = set(re.findall(r'--[\w-]+', usage))
    assert known
    for calls in COMMANDS.values():
        for called, options in calls:
            if called == tool:
                assert required <= options <= known


EXAMPLES = [
    pytest.param(block, id=f'{name}-{number}')
    for name, text in TEXTS.items()
    for number, block in enumerate(
        re.findall(r'^```python\n(_base_ = .*?)^```', text, re.M | re.S)
    )
]


@pytest.mark.parametrize('block', EXAMPLES)
def test_examples_of_configs_build(block, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(block.replace("= './", f"= '{ROOT}/configs/"))
    cfg = read_config(file)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        MODELS.build(cfg.model)
