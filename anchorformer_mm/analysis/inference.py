"""A trained model and an image as it is given to it, for any library."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from anchorformer_mm.utils.checkpoint import (
    require_checkpoint,
    weights_only,
)
from anchorformer_mm.utils.errors import UsageError


def load_model(
    cfg: Config, checkpoint: str | Path, device: str = 'cpu'
) -> nn.Module:
    """Build the model of a config with trained weights, to evaluate.

    Args:
        cfg: Config of a detector, a segmentor or a classifier.
        checkpoint: Its weights; loaded with ``weights_only=True``.
        device: Where the model goes.

    Returns:
        nn.Module: In evaluation mode; its ``dataset_meta`` is what the
        checkpoint tells of the data set, or else the config.

    Raises:
        UsageError: The file cannot be read, has no weights or those of
            another model, or there is no such device.
    """
    require_checkpoint(checkpoint)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    # Building may add to it.
    model_cfg = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    try:
        with weights_only():
            loaded = load_checkpoint(
                model, str(checkpoint), map_location='cpu', strict=True
            )
    except (
        EOFError,
        LookupError,
        RuntimeError,
        UnpicklingError,
        ValueError,
    ) as error:
        # Whatever misses would be drawn with random weights.
        reason = shorten(f'{type(error).__name__}: {error}', 400)
        raise UsageError(
            f'{checkpoint} is no checkpoint of the model of the config: '
            f'{reason}'
        ) from error
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f'device {device!r}: {error}') from error
    meta = loaded.get('meta') or {}
    model.dataset_meta = meta.get('dataset_meta') or dataset_meta(cfg)
    return model.eval()


def dataset_meta(cfg: Config) -> dict:
    """Such as the names of the classes, as far as the config tells.

    Args:
        cfg: Config whose ``test_dataloader`` names the data set.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    with DATASETS.switch_scope_and_registry(None) as datasets:
        kind = datasets.get(str(dataset.get('type')))
    return {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}


@dataclass(frozen=True)
class PreparedImage:
    """An image as a model sees it.

    Attributes:
        pixels: After the test pipeline, RGB, uint8, shape (h, w, 3).
        inputs: The network's input, (1, 3, H, W): normalised, and padded at
            the right and bottom.
        data_samples: What goes with it.
    """

    pixels: np.ndarray
    inputs: Tensor
    data_samples: list

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input, px."""
        return tuple(self.inputs.shape[2:])


def require_image(path: str | Path) -> None:
    """Check that a file is an image that OpenCV can decode.

    Raises:
        UsageError: It is not, or is not there.
    """
    if not Path(path).is_file():
        raise UsageError(f'image not found: {path}')
    if cv2.imread(str(path)) is None:
        raise UsageError(f'not an image that OpenCV can read: {path}')


def image_pipeline(cfg: Config) -> Compose:
    """Build the test pipeline of a config for images given by their paths.

    Args:
        cfg: Config with ``test_dataloader.dataset.pipeline``.

    Raises:
        UsageError: It has none.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if 'pipeline' not in dataset:
        raise UsageError('the config has no test_dataloader.dataset.pipeline')
    # There are none for an image that is given by its path.
    return Compose(
        [t for t in dataset['pipeline'] if not _loads_annotations(t)]
    )


def prepare_with(
    pipeline: Compose, data_preprocessor: nn.Module, path: str | Path
) -> PreparedImage:
    """Take an image through a pipeline and a data preprocessor.

    Args:
        pipeline: From :func:`image_pipeline`.
        data_preprocessor: Of a model.
        path: The image.

    Raises:
        UsageError: The image cannot be read.
    """
    require_image(path)
    data = pipeline(dict(img_path=str(path), img_id=0))
    batch = data_preprocessor(pseudo_collate([data]), False)
    return PreparedImage(
        to_rgb(data['inputs']), batch['inputs'], batch['data_samples']
    )


def prepare_image(
    cfg: Config, model: nn.Module, path: str | Path
) -> PreparedImage:
    """Take an image through the test pipeline and the data preprocessor.

    Args:
        cfg: Config with ``test_dataloader.dataset.pipeline``.
        model: From :func:`load_model` with this config.
        path: The image.

    Raises:
        UsageError: The image cannot be read, or the config has no pipeline.
    """
    return prepare_with(image_pipeline(cfg), model.data_preprocessor, path)


def _loads_annotations(transform: dict) -> bool:
    kind = transform['type']
    return getattr(kind, '__name__', str(kind)).endswith('LoadAnnotations')


def to_rgb(inputs: Tensor) -> np.ndarray:
    """Picture of what a pipeline packed.

    Args:
        inputs: Blue, green and red, as mmcv reads images, shape (3, h, w);
            or grey, shape (1, h, w). Values that are not uint8 may be
            normalised: they are stretched to the whole range.

    Returns:
        np.ndarray: RGB, uint8, shape (h, w, 3).
    """
    if inputs.dtype != torch.uint8:
        inputs = inputs.float() - inputs.min()
        inputs = (255 * inputs / inputs.max().clamp(min=1e-6)).byte()
    image = inputs.flip(0).expand(3, -1, -1).permute(1, 2, 0)
    return np.ascontiguousarray(image.cpu().numpy())
