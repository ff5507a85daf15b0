"""What a config feeds to its model: images and their annotations."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.structures import BaseDataElement
from torch import Tensor

from anchorformer_mm.utils.errors import UsageError

# In the three libraries, one of these says that the model takes RGB.
RGB_FLAGS = ('bgr_to_rgb', 'to_rgb')

# Image, RGB, uint8, shape (H, W, 3), and what is known about it.
Example = tuple[np.ndarray, BaseDataElement]


def model_inputs(
    cfg: Config, split: str, count: int, *, seed: int = 0
) -> tuple[Iterator[Example], dict]:
    """Read what the model of a config is given in training or evaluation.

    All of a config's transforms are run: those of the data set, the ones that
    a collate function applies to a whole batch, padding, and the mixing of a
    batch in training. The last step, normalisation, is undone.

    Args:
        cfg: Config of a detector, a segmentor or a classifier.
        split: ``'train'``, ``'val'`` or ``'test'``.
        count: How many, >= 1; fewer if an epoch has fewer.
        seed: For the order and the random transforms.

    Returns:
        tuple: The images with their annotations, and ``metainfo`` of the data
        set.

    Raises:
        UsageError: The config has no such split, or what comes out of the
            transforms is not a batch of images.
    """
    loader_cfg = deepcopy(cfg.get(f'{split}_dataloader'))
    if not loader_cfg:
        raise UsageError(f'the config has no {split}_dataloader')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    set_random_seed(seed)
    # No worker reads further ahead than is asked for.
    loader_cfg.update(num_workers=0, persistent_workers=False)
    loader_cfg.pop('prefetch_factor', None)
    if 'batch_size' in loader_cfg:
        loader_cfg.batch_size = min(loader_cfg.batch_size, count)
    loader = Runner.build_dataloader(loader_cfg, seed=seed)
    preprocessor_cfg = _preprocessor(cfg)
    preprocessor = MODELS.build(preprocessor_cfg)
    is_rgb = any(preprocessor_cfg.get(flag) for flag in RGB_FLAGS)

    def examples() -> Iterator[Example]:
        for number, batch in enumerate(loader):
            # Some batch augmentations change with the step of a training.
            MessageHub.get_current_instance().update_info('iter', number)
            batch = preprocessor(batch, training=split == 'train')
            inputs, samples = batch['inputs'], batch['data_samples']
            if not isinstance(inputs, Tensor) or inputs.ndim != 4:
                raise UsageError(
                    f'{split}_dataloader must give one batch of images '
                    f'(N, C, H, W), got {type(inputs).__name__}'
                )
            pixels = _without_normalisation(inputs, preprocessor)
            if not is_rgb:
                pixels = pixels[..., ::-1]
            images = map(np.ascontiguousarray, pixels)
            yield from zip(images, samples, strict=True)

    return islice(examples(), count), loader.dataset.metainfo


def _preprocessor(cfg: Config) -> ConfigDict:
    """Config of the data preprocessor as the model would build it."""
    model = cfg.get('model') or {}
    found = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    found = deepcopy(found or ConfigDict(type='BaseDataPreprocessor'))
    if cfg.get('default_scope') == 'mmpretrain':
        # What mixes a batch stands with the model, and is left out here.
        found.setdefault('type', 'ClsDataPreprocessor')
        found.setdefault('batch_augments', model.get('train_cfg'))
    return found


def _without_normalisation(
    inputs: Tensor, preprocessor: BaseDataPreprocessor
) -> np.ndarray:
    """Turn (N, C, H, W) back into pixels, (N, H, W, 3), uint8."""
    # Buffers of whatever normalises.
    mean = getattr(preprocessor, 'mean', None)
    if mean is not None:
        inputs = inputs * preprocessor.std + mean
    pixels = inputs.round().clamp(0, 255).byte()
    pixels = pixels.permute(0, 2, 3, 1).numpy()
    return pixels if pixels.shape[-1] == 3 else pixels[..., :1].repeat(3, -1)
