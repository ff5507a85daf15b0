"""Images of a folder as the model of a config sees them."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from anchorformer_mm.apis import (
    image_pipeline,
    prepare_with,
)
from anchorformer_mm.utils.errors import UsageError

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(folder: str | Path, count: int, seed: int = 0) -> list[Path]:
    """Choose images below a folder at random.

    Args:
        folder: Searched with all folders in it.
        count: Images wanted; all of them where there are fewer.
        seed: Of the choice.

    Raises:
        UsageError: There is no image.
    """
    files = sorted(
        path
        for path in Path(folder).rglob('*')
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    )
    if not files:
        raise UsageError(
            f'no image ({", ".join(_SUFFIXES)}) found in the folder {folder}'
        )
    return sorted(random.Random(seed).sample(files, min(count, len(files))))


def image_batches(cfg: Config, paths: Iterable[Path]) -> Iterator[Tensor]:
    """Images as the model of a config is given them when it is tested.

    Args:
        cfg: Its ``test_dataloader.dataset.pipeline`` and its data
            preprocessor are used, and no more of its model.
        paths: Image files.

    Returns:
        Iterator[Tensor]: One image at a time, shape (1, C, H, W); sizes may
        differ.

    Raises:
        UsageError: The config has no test pipeline or no data preprocessor;
            or, while iterating, a file holds no image that can be read.
    """
    init_default_scope(cfg.get('default_scope') or 'anchorformer_mm')
    settings = cfg.model.get('data_preprocessor') or cfg.get(
        'data_preprocessor'
    )
    if settings is None:
        raise UsageError(
            'the config has no data_preprocessor, which tells how images are '
            'normalised'
        )
    # The one that mmpretrain's classifiers have where none is named.
    settings = dict(type='mmpretrain.ClsDataPreprocessor') | settings
    data_preprocessor = MODELS.build(settings)
    pipeline = image_pipeline(cfg)
    return (
        prepare_with(pipeline, data_preprocessor, path).inputs
        for path in paths
    )
