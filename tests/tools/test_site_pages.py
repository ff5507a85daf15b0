import re
from pathlib import Path

import pytest

pytest.importorskip('mkdocs', reason='the site needs mkdocs')

from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('site')
    config = load_config(
        str(ROOT / 'mkdocs.yml'), site_dir=str(folder), strict=True
    )
    # Strict: a warning is an error.
    build(config)
    return folder


def test_every_page_of_the_folder_is_in_the_site(site: Path) -> None:
    for page in (ROOT / 'docs').glob('*.md'):
        assert (site / page.stem / 'index.html').is_file()


def test_the_first_page_is_the_readme_with_its_pictures(site: Path) -> None:
    html = (site / 'index.html').read_text()

    pictures = re.findall(r'<img [^>]*src="([^"]+)"', html)
    assert len(pictures) == (ROOT / 'README.md').read_text().count('![')
    assert all((site / picture).is_file() for picture in pictures)


def test_no_link_leaves_the_site_but_to_the_web(site: Path) -> None:
    for page in site.rglob('index.html'):
        for to in re.findall(r'href="([^"#]+)', page.read_text()):
            if not to.startswith(('http', 'mailto')):
                target = (page.parent / to).resolve()
                assert target.is_relative_to(site.resolve()), (page, to)
                assert target.exists(), (page, to)


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob('index.html'):
        loaded = re.findall(
            r'<(?:script|img)[^>]* src="([^"]+)', page.read_text()
        )
        assert not [to for to in loaded if to.startswith(('http', '//'))]
