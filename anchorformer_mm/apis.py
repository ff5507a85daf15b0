"""Configs, models and images, for tools and for scripts of users.

Example:
    >>> from anchorformer_mm.apis import predict
    >>> sample = predict('picodet_s_coco.py', 'a.jpg', checkpoint='a.pth')
    >>> sample.pred_instances.bboxes
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from traceback import walk_tb
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from PIL import EpsImagePlugin, Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from anchorformer_mm.datasets.custom import apply_custom_data
from anchorformer_mm.utils.checkpoint import require_checkpoint, weights_only
from anchorformer_mm.utils.environment import LIBRARIES, check_environment
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import split_datasets

# What works in every tool, while mmengine takes names of its own list alone.
_OWN_BASE = (
    "write _base_ = __import__('anchorformer_mm').__path__[0] + "
    "'/.mim/configs/NAME.py'"
)
TASK_LIBRARIES = ('mmdet', 'mmpretrain', 'mmseg')

# mmengine looks for mmseg's configs in the distribution of the originals.
with suppress(PackageNotFoundError):
    version(LIBRARIES['mmseg'].fork)
    MODULE2PACKAGE['mmseg'] = LIBRARIES['mmseg'].fork


def config_path(name: str | Path) -> Path:
    """Path of a config, given as such or by its name in a library.

    A name is ``'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'``, or
    ``'anchorformer_mm::picodet_s_coco.py'``; other libraries have none.

    Raises:
        UsageError: There is no such library or config.
    """
    library, mark, file = str(name).partition('::')
    path = Path(name)
    if mark:
        known = ('anchorformer_mm', *TASK_LIBRARIES)
        if library not in known:
            raise UsageError(
                f'the library of a config must be one of {", ".join(known)}, '
                f'got {name}'
            )
        check_environment([library] if library in LIBRARIES else [])
        path = Path(find_spec(library).origin).parent / '.mim/configs' / file
    if not path.is_file():
        raise UsageError(f'config not found: {path}')
    return path


def read_config(
    name: str | Path, cfg_options: Mapping[str, Any] | None = None
) -> Config:
    """Read a config; data and weights that it names need not be there.

    Args:
        name: A path, or a name as of :func:`config_path`. ``_base_`` takes
            names of mmdet, mmpretrain and mmseg too.
        cfg_options: Values for keys with dots, in place of the config's.

    Raises:
        UsageError: There is no such config, it cannot be parsed, or a library
            that it needs is missing, broken or too old.
    """
    # Pillow would start Ghostscript for an image that is EPS by content.
    EpsImagePlugin.gs_binary = False
    path = config_path(name)
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(dict(cfg_options or {}))
    except ModuleNotFoundError as error:
        # mmengine's message starts with the name, and advises the originals.
        check_environment([n for n in LIBRARIES if n in str(error).split()])
        raise UsageError(f'{_place(error) or path}: {error}') from error
    except Exception as error:
        # Whatever the code of a config, or a _base_ that is not there, raises.
        reason = _reason(error)
        if 'anchorformer_mm config' in reason or '_package_and_cfg' in reason:
            reason = f'mmengine does not find a _base_; if ours, {_OWN_BASE}'
        place = _place(error) or path
        raise UsageError(f'{place}: {reason}') from error
    if cfg.get('default_scope') in TASK_LIBRARIES:
        check_environment([cfg.default_scope])
    apply_custom_data(cfg)
    return cfg


def _place(error: Exception) -> str:
    """Find the config, and its line, that an error of reading is about."""
    file, line = '', getattr(error, 'lineno', '')
    for frame, number in walk_tb(error.__traceback__):
        # The innermost file that mmengine reads or runs.
        if os.path.isfile(name := str(frame.f_locals.get('filename'))):
            file = name
        if frame.f_code.co_filename == file:
            line = number
    file = min(file, os.path.relpath(file or '.'), key=len)
    return f'{file}:{line}'.rstrip(':')


def _reason(error: Exception) -> str:
    told = error
    if isinstance(error, SyntaxError):
        told = f'{error.msg}: {error.text}'
    return shorten(f'{type(error).__name__}: {told}', 400)


def build_model(cfg: Config, *, backbone_only: bool = False) -> nn.Module:
    """Build the model of a config; no weights are loaded.

    Args:
        cfg: Config of a detector, a segmentor or a classifier.
        backbone_only: Build its backbone and nothing else.

    Raises:
        UsageError: The config has no such model, or it cannot be built.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    # Building writes into the config.
    model = deepcopy(cfg.get('model')) or {}
    if backbone_only:
        model = model.get('backbone') or {}
    elif cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    if 'type' not in model:
        what = 'model.backbone' if backbone_only else 'model'
        raise UsageError(f'the config has no {what} with a type')
    try:
        return MODELS.build(model)
    except Exception as error:
        reason = _reason(error)
        raise UsageError(f'the model cannot be built: {reason}') from error


def load_model(
    cfg: Config, checkpoint: str | Path, device: str = 'cpu'
) -> nn.Module:
    """Build the model of a config with trained weights, to evaluate.

    The file is loaded with ``weights_only=True``. The model's
    ``dataset_meta`` is that of the checkpoint, or else of the config, and its
    ``cfg`` is the config.

    Raises:
        UsageError: The file has no weights of the model, or the device is
            not there.
    """
    require_checkpoint(checkpoint)
    model = build_model(cfg)
    try:
        with weights_only():
            loaded = load_checkpoint(
                model, str(checkpoint), 'cpu', strict=True, logger='silent'
            )
    except (LookupError, RuntimeError, ValueError) as error:
        # Missing weights would stay random.
        raise UsageError(
            f'{checkpoint} is no checkpoint of the model of the config: '
            f'{_reason(error)}'
        ) from error
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f'device {device!r}: {error}') from error
    meta = loaded.get('meta') or {}
    model.dataset_meta = meta.get('dataset_meta') or dataset_meta(cfg)
    model.cfg = cfg
    return model.eval()


def _test_dataset(cfg: Config) -> Mapping:
    """Config of the first test set, or an empty one."""
    return next(iter(split_datasets(cfg, 'test')), {})


def dataset_meta(cfg: Config) -> dict:
    """Meta information of the test set of a config, such as ``classes``."""
    dataset = _test_dataset(cfg)
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as datasets:
            kind = datasets.get(kind)
    return {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}


# BGR or grey, as mmcv reads images; or of Pillow; or a file.
ImageLike = str | Path | np.ndarray | Image.Image


@dataclass(frozen=True)
class PreparedImage:
    """An image as a model sees it.

    Attributes:
        pixels: After the test pipeline, RGB, uint8, shape (h, w, 3).
        inputs: Normalised, and padded at the right and bottom, (1, 3, H, W).
        data_samples: What the model takes with them.
    """

    pixels: np.ndarray
    inputs: Tensor
    data_samples: list


def require_image(path: str | Path) -> None:
    """Raise a UsageError unless a file is a whole image for OpenCV."""
    if not Path(path).is_file():
        raise UsageError(f'image not found: {path}')
    try:
        # What is missing of a file OpenCV fills in, or tells on its own.
        with Image.open(path, formats=['JPEG', 'PNG']) as image:
            image.load()
    except (UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        pass
    except (OSError, SyntaxError) as error:
        raise UsageError(f'image is damaged: {path}: {error}') from error
    if cv2.imread(str(path)) is None:
        raise UsageError(f'not an image that OpenCV can read: {path}')


def image_pipeline(cfg: Config) -> Compose:
    """Build the test pipeline of a config, to be called with image_data(...).

    Raises:
        UsageError: The config has no ``test_dataloader.dataset.pipeline``.
    """
    dataset = _test_dataset(cfg)
    if 'pipeline' not in dataset:
        raise UsageError('the config has no test_dataloader.dataset.pipeline')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    transforms = []
    for transform in dataset['pipeline']:
        kind = transform['type']
        name = getattr(kind, '__name__', str(kind))
        if name.endswith('LoadImageFromFile'):
            load = TRANSFORMS.build(transform)
            transforms.append(lambda x, f=load: x if 'img' in x else f(x))
        elif not re.search(r'\bLoad\w*Annotations?$', name):
            transforms.append(transform)
    return Compose(transforms)


def image_data(image: ImageLike) -> dict:
    """Start of a pipeline for one image.

    Args:
        image: A path; an image of Pillow; or a uint8 array of shape (h, w),
            (h, w, 1), (h, w, 3) or (h, w, 4): grey, BGR or BGRA, in the order
            of mmcv and OpenCV. Alpha is left out.

    Raises:
        UsageError: The file cannot be read, or the array is no such image.
    """
    if isinstance(image, (str, Path)):
        require_image(image)
        return dict(img_path=str(image), img_id=0)
    if isinstance(image, Image.Image):
        # Turned by its EXIF orientation, as mmcv turns what it reads.
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I;16'):
            # Pillow would cut off what is above 255.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = np.asarray(image.convert('RGB'))[..., ::-1]
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = pixels.shape[2] if pixels.ndim == 3 and pixels.size else 0
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4):
        raise UsageError(
            'an image must be a path, an image of Pillow, or a uint8 array '
            'of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); got a '
            f'{type(image).__name__} of {pixels.dtype}, {pixels.shape}'
        )
    if channels == 1:
        pixels = pixels.repeat(3, axis=2)
    pixels = np.ascontiguousarray(pixels[..., :3])
    size = pixels.shape[:2]
    return dict(
        img=pixels, img_path=None, img_id=0, img_shape=size, ori_shape=size
    )


def prepare_with(
    pipeline: Compose, data_preprocessor: nn.Module, image: ImageLike
) -> PreparedImage:
    """Take an image, as of :func:`image_data`, through both."""
    data = pipeline(image_data(image))
    batch = data_preprocessor(pseudo_collate([data]), False)
    return PreparedImage(
        to_rgb(data['inputs']), batch['inputs'], batch['data_samples']
    )


def prepare_image(
    cfg: Config, model: nn.Module, image: ImageLike
) -> PreparedImage:
    """As :func:`prepare_with`, with the test pipeline of a config."""
    return prepare_with(image_pipeline(cfg), model.data_preprocessor, image)


def to_rgb(inputs: Tensor) -> np.ndarray:
    """Picture, RGB, uint8, shape (h, w, 3), of what a pipeline packed.

    Args:
        inputs: BGR, as mmcv reads images, shape (3, h, w), or grey, shape
            (1, h, w). What is not uint8 is stretched to the whole range.
    """
    if inputs.dtype != torch.uint8:
        inputs = inputs.float() - inputs.min()
        inputs = (255 * inputs / inputs.max().clamp(min=1e-6)).byte()
    image = inputs.flip(0).expand(3, -1, -1).permute(1, 2, 0)
    return np.ascontiguousarray(image.cpu().numpy())


def predict(
    model: nn.Module | Config | str | Path,
    images: ImageLike | Sequence[ImageLike],
    *,
    checkpoint: str | Path | None = None,
    device: str = 'cpu',
) -> BaseDataElement | list[BaseDataElement]:
    """Predict with a model, one image after the other.

    Args:
        model: From :func:`load_model`; or a config, or its name as of
            :func:`read_config`, with ``checkpoint``.
        images: One image or a list of them, each as of :func:`image_data`.
        checkpoint: Weights, when ``model`` is a config.
        device: Where a model of a config goes.

    Returns:
        A data sample of the model's library for each image, on the CPU, with
        ``pred_instances``, ``pred_sem_seg`` or ``pred_score``; a list when
        ``images`` is one.

    Raises:
        UsageError: The config, the checkpoint or an image cannot be used.
    """
    if not isinstance(model, nn.Module):
        if checkpoint is None:
            raise UsageError('predict needs a checkpoint for a config')
        cfg = model if isinstance(model, Config) else read_config(model)
        model = load_model(cfg, checkpoint, device)
    if isinstance(images, (list, tuple)):
        return [predict(model, image) for image in images]
    data = image_pipeline(model.cfg)(image_data(images))
    with torch.no_grad():
        return model.test_step(pseudo_collate([data]))[0].cpu()
