"""Nothing of ours downloads or installs when it is used."""

import ast
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


@pytest.fixture
def offline(monkeypatch):
    """Neither connections nor other programs."""

    def refuse(*args, **kwargs):
        raise AssertionError(f'reached out: {args}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket.socket, 'connect_ex', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(subprocess, 'Popen', refuse)


@pytest.mark.parametrize('name', CONFIGS)
def test_models_are_built_without_a_network(name, offline):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    # Without memory, which is quicker.
    with torch.device('meta'):
        MODELS.build(cfg.model)


def test_the_guard_against_networks_works(offline):
    with pytest.raises(AssertionError, match='reached out'):
        socket.create_connection(('example.org', 80))


NETWORKS = {
    *('socket', 'ssl', 'urllib', 'http', 'ftplib', 'smtplib', 'requests'),
    *('urllib3', 'httpx', 'aiohttp', 'pip', 'mim', 'huggingface_hub'),
}


@pytest.mark.parametrize('folder', ['anchorformer_mm', 'tools'])
def test_nothing_of_ours_imports_what_downloads_or_installs(folder):
    for path in (ROOT / folder).rglob('*.py'):
        # The set-up, which is there to install.
        if path.name.startswith('bootstrap'):
            continue
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or '']
            found = {name.split('.')[0] for name in names} & NETWORKS
            assert not found, f'{path} imports {found}'
