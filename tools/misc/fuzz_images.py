"""Try predict_onnx.py with images drawn at random, whole and damaged.

Of every file it must make a picture and an entry of predictions.json, or
refuse it in one line and leave nothing behind. Prints how many were what, and
of every kind of failure the first file.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
from fuzz_onnx_models import MODELS, write_model
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from anchorformer_mm.utils.errors import UsageError, run_command_line

TOOL = Path(__file__).parents[1] / 'deployment' / 'predict_onnx.py'
# Modes that Pillow can write to each format.
FORMATS = dict(
    PNG=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
    JPEG=('L', 'RGB', 'CMYK'),
    TIFF=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'I', 'F', 'CMYK'),
    BMP=('1', 'L', 'P', 'RGB'),
    GIF=('L', 'P', 'RGB'),
    WEBP=('RGB', 'RGBA'),
    EPS=('L', 'RGB', 'CMYK'),
    PPM=('1', 'L', 'RGB'),
)
# Pillow knows them; to show the first one it starts Ghostscript.
REFUSED = ('EPS', 'PPM')


@dataclass(frozen=True)
class Picture:
    """An image file and the model that it is given to.

    Attributes:
        model: Of ``MODELS``.
        size: Width and height, px.
        format: Of ``FORMATS``.
        mode: Of the format.
        suffix: Of the file's name, which need not be the format's.
        orientation: Of the EXIF data; 0 without.
        damage: What becomes of the file: how, and where, as a share of it.
        seed: Of the pixels.
    """

    model: str
    size: tuple[int, int]
    format: str
    mode: str
    suffix: str
    orientation: int
    damage: tuple[str, float]
    seed: int

    def write(self, path: Path) -> None:
        """Write the file."""
        rng = np.random.default_rng(self.seed)
        content = io.BytesIO()
        image = self._pixels(rng)
        exif = Image.Exif()
        if self.orientation:
            exif[0x112] = self.orientation
        extra = {} if self.format in REFUSED else dict(exif=exif)
        image.save(content, self.format, **extra)
        path.write_bytes(self._damaged(content.getvalue(), rng))

    def _pixels(self, rng: np.random.Generator) -> Image.Image:
        shape = self.size[::-1]
        if self.mode in ('I;16', 'I', 'F'):
            kind = {'I;16': np.uint16, 'I': np.int32, 'F': np.float32}
            values = rng.integers(0, 65_536, shape).astype(kind[self.mode])
            return Image.fromarray(values)
        values = rng.integers(0, 256, (*shape, 3), np.uint8)
        return Image.fromarray(values).convert(self.mode)

    def _damaged(self, content: bytes, rng: np.random.Generator) -> bytes:
        how, share = self.damage
        at = int(share * len(content))
        if how == 'cut':
            return content[:at]
        if how == 'noise':
            return content[:at] + rng.bytes(len(content) - at)
        if how == 'bytes':
            changed = bytearray(content)
            for i in rng.integers(0, len(content), 1 + at // 50):
                changed[i] = rng.integers(256)
            return bytes(changed)
        if how == 'header':
            changed = bytearray(content)
            changed[at % min(len(content), 64)] ^= 1 << int(rng.integers(8))
            return bytes(changed)
        return content


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """Draw an image, in about one half of the cases a whole one."""
    side = st.integers(1, 4) | st.integers(1, 90)
    thin = st.tuples(st.integers(1, 2), st.integers(100, 3_000))
    size = draw(st.tuples(side, side) | thin | thin.map(lambda p: p[::-1]))
    kind = draw(st.sampled_from(sorted(FORMATS)))
    own = '.' + kind.lower()
    hows = st.sampled_from(['cut', 'noise', 'bytes', 'header'])
    return Picture(
        draw(st.sampled_from(sorted(MODELS))),
        size,
        kind,
        draw(st.sampled_from(FORMATS[kind])),
        draw(st.sampled_from([own, own, '.png', '.jpg', ''])),
        draw(st.just(0) | st.integers(0, 9)),
        draw(st.just(('', 0.0)) | st.tuples(hows, st.floats(0, 1))),
        draw(st.integers(0, 2**16)),
    )


def load_tool() -> ModuleType:
    """The tool, which is no package."""
    spec = spec_from_file_location('predict_onnx', TOOL)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def judge(tool: ModuleType, picture: Picture, folder: Path) -> str:
    """Give an image to the tool.

    Args:
        tool: From :func:`load_tool`.
        picture: The image.
        folder: Where there is room for it, and for the models.

    Returns:
        str: ``'predicted'`` or ``'refused'``.

    Raises:
        AssertionError: It does anything else.
    """
    model = folder / f'{picture.model}.onnx'
    if not model.is_file():
        write_model(model, *MODELS[picture.model])
    path, out = folder / f'image{picture.suffix}', folder / 'out'
    picture.write(path)
    try:
        status, error = _run(tool, model, path, '--out', out, '--threads', 1)
        if status == 0:
            assert picture.format not in REFUSED, f'{picture.format} was read'
            _require_results(path, out)
            return 'predicted'
        lines = error.splitlines()
        assert status == 1 and len(lines) == 1, f'exit {status}: {error}'
        assert lines[0].startswith('error: ') and str(path) in lines[0], error
        assert not out.exists(), f'left {[p.name for p in out.iterdir()]}'
        refused = picture.mode == 'F' or picture.format in REFUSED
        assert picture.damage[0] or refused, (
            f'a whole image was refused: {error}'
        )
        return 'refused'
    finally:
        path.unlink()
        shutil.rmtree(out, ignore_errors=True)


def _run(tool: ModuleType, *args: object) -> tuple[int, str]:
    """Exit status and standard error."""
    before, error = sys.argv, io.StringIO()
    sys.argv = ['predict_onnx.py', *map(str, args)]
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(error),
        ):
            # Pillow's, of damage: what counts is what comes of it.
            warnings.simplefilter('ignore')
            tool.main()
        return 0, error.getvalue()
    except SystemExit as leaving:
        return leaving.code, error.getvalue()
    except Exception as failure:
        raise AssertionError(
            f'{type(failure).__name__}: {failure}'
        ) from failure
    finally:
        sys.argv = before


def _require_results(path: Path, out: Path) -> None:
    text = (out / 'predictions.json').read_text('utf-8')

    def refuse(constant: str) -> None:
        raise AssertionError(f'{constant} in predictions.json')

    (entry,) = json.loads(text, parse_constant=refuse)['images']
    assert entry['file'] == str(path)
    with Image.open(out / entry['picture']) as drawn:
        drawn.load()
        assert drawn.width >= entry['width']
        assert drawn.height >= entry['height']
    names = {'predictions.json', entry['picture'], entry.get('label_map')}
    assert {p.name for p in out.iterdir()} == names - {None}


def draw_and_judge(
    draws: int, number: int
) -> tuple[Counter, dict[str, tuple[str, Picture]]]:
    """Try the tool; counts of outcomes, and the first failure of each kind."""
    tool, outcomes, failures = load_tool(), Counter(), {}
    with tempfile.TemporaryDirectory() as folder:

        @seed(number)
        @settings(
            max_examples=draws,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(pictures())
        def run(picture: Picture) -> None:
            try:
                outcome = judge(tool, picture, Path(folder))
            except AssertionError as error:
                outcome = 'failed'
                failures.setdefault(str(error)[:60], (str(error), picture))
            outcomes[outcome] += 1

        run()
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--draws', type=int, default=1_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.draws < 1:
        raise UsageError(f'--draws must be >= 1, got {args.draws}')
    outcomes, failures = draw_and_judge(args.draws, args.seed)
    counts = ', '.join(f'{n} {k}' for k, n in sorted(outcomes.items()))
    print(f'{outcomes.total()} images: {counts}')
    for message, picture in failures.values():
        print(f'\n{picture}\n  {message}')
    if failures:
        raise UsageError(f'{outcomes["failed"]} images failed')


if __name__ == '__main__':
    run_command_line(main)
