"""The distribution ``anchorformer-mm``, with its configs where mim looks."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'anchorformer_mm'
# What `python -m anchorformer_mm`, mim and a set-up without compiler need.
MIM_FILES = ('configs', 'tools', 'mmcv_ops', 'model-index.yml')


def _pinned(stack: str) -> list[str]:
    """The OpenMMLab libraries of a family, as the requirements pin them.

    Extras for one family or the other, never both: they provide the same
    import names.
    """
    text = (ROOT / 'requirements' / f'{stack}.txt').read_text()
    return re.findall(r'^(?:onedl-)?mm[\w-]+==.*$', text, re.MULTILINE)


class BuildWithConfigs(build_py):
    """Lay ``configs/``, ``tools/`` and the model index under ``.mim``.

    A wheel gets copies, an editable install links to the working tree. The
    folder is made under another name and then renamed, so an install that is
    interrupted leaves the previous one or none.
    """

    def run(self) -> None:
        super().run()
        base = ROOT if self.editable_mode else Path(self.build_lib)
        mim = base / PACKAGE / '.mim'
        partial = mim.with_name(f'.mim-{os.getpid()}')
        partial.mkdir()
        try:
            for name in MIM_FILES:
                if self.editable_mode:
                    (partial / name).symlink_to(Path('..', '..', name))
                else:
                    _copy(ROOT / name, partial / name)
            _remove(mim)
            partial.rename(mim)
        except BaseException:
            _remove(partial)
            raise


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        # tools/misc is for a clone.
        left = ('__pycache__', '*.py[cod]', 'build', '*.egg-info', 'misc')
        ignore = shutil.ignore_patterns(*left)
        shutil.copytree(source, target, ignore=ignore)
    else:
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _version() -> str:
    text = (ROOT / PACKAGE / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text).group(1)


def _long_description() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setup(
    name='anchorformer-mm',
    version=_version(),
    description='Efficient transformer backbones for OpenMMLab',
    long_description=_long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[f'{PACKAGE}*']),
    include_package_data=False,
    # Nothing of either family here: pip would lay one over the other.
    install_requires=['torch>=2.1', 'numpy', 'packaging', 'scikit-learn'],
    extras_require={
        'onedl': _pinned('onedl'),
        'openmmlab': _pinned('openmmlab'),
        'explain': ['grad-cam<1.5.7'],
        'deploy': [
            'onnx',
            'onnxruntime>=1.23',
            'onnxscript',
            'onnxslim>=0.1.98',
        ],
        # What else runs exported files.
        'runtimes': ['ncnn', 'openvino', 'pnnx'],
        'docs': ['mkdocs'],
        'dev': [
            'hypothesis',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'onnxslim',
            'pre-commit',
            'pre-commit-hooks',
            'pytest',
            'ruff',
        ],
    },
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,
)
