"""Hooks of mkdocs: the README as first page, and links that end in the site.

The same files are read on a code host and as a site. There, ``README.md``
lies beside ``docs/``, and pages may point at configs and tests; the site has
none of these, so such links become plain text.
"""

import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r'(?<!!)\[([^\]]+)\]\(([^)\s]+)\)')
IMAGE = re.compile(r'(!\[[^\]]*\])\(([^)\s]+)\)')
ELSEWHERE = ('http://', 'https://', '#', 'mailto:')


def first_page(readme: str) -> str:
    """Return the README as a page of the folder ``docs``.

    Links and pictures under ``docs/`` are seen from there; links to other
    files of the repository become their text.
    """
    readme = IMAGE.sub(
        lambda match: f'{match[1]}({_from_docs(match[2])})', readme
    )
    return _rewrite(
        readme, lambda to: to.startswith('docs/'), change=_from_docs
    )


def page(markdown: str) -> str:
    """Return a page of ``docs`` without links to what lies above it."""
    return _rewrite(markdown, lambda to: not to.startswith('../'))


def _rewrite(
    markdown: str,
    keep: Callable[[str], bool],
    change: Callable[[str], str] = str,
) -> str:
    def replace(match: re.Match) -> str:
        text, to = match.groups()
        if to.startswith(ELSEWHERE):
            return match[0]
        return f'[{text}]({change(to)})' if keep(to) else text

    return LINK.sub(replace, markdown)


def _from_docs(path: str) -> str:
    return path.removeprefix('docs/')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page; called by mkdocs."""
    readme = Path(config.config_file_path).with_name('README.md')
    files.append(
        File.generated(
            config, 'index.md', content=first_page(readme.read_text('utf-8'))
        )
    )
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Take links out that leave the site; called by mkdocs."""
    return page(markdown)
