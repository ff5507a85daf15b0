"""What a training step needs: data of one size, model, optimiser."""

from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from anchorformer_mm.analysis.complexity import build_from_config
from anchorformer_mm.analysis.synthetic_coco import (
    ANNOTATIONS,
    IMAGES,
    write_synthetic_coco,
)
from anchorformer_mm.utils.dataset_paths import split_datasets
from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError


def fix_size(cfg: Config, size: int) -> None:
    """Let every training image of a config be a square of one size.

    It replaces the sizes that a collate function chooses from, or the scale
    of a ``Resize`` in the pipeline, and removes what resizes batches in the
    data preprocessor.

    Args:
        cfg: Is changed.
        size: Side of the square, px.

    Raises:
        UsageError: The config has neither.
    """
    choices = cfg.train_dataloader.get('collate_fn') or {}
    resizes = [
        step
        for dataset in split_datasets(cfg, 'train')
        for step in dataset.get('pipeline') or ()
        if step['type'].split('.')[-1] == 'Resize'
    ]
    if 'sizes' in choices:
        choices['sizes'] = [size]
    elif resizes:
        for step in resizes:
            step.update(scale=(size, size), keep_ratio=False)
    else:
        raise UsageError(
            '--size needs a config with train_dataloader.collate_fn.sizes or '
            'with a Resize in the pipeline of its training data'
        )
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if preprocessor.get('batch_augments'):
        preprocessor['batch_augments'] = [
            step
            for step in preprocessor['batch_augments']
            if 'Resize' not in step['type']
        ]


def use_synthetic_coco(cfg: Config, folder: Path) -> None:
    """Write synthetic images for a config, and let it train on them.

    Args:
        cfg: Is changed: paths of its training data.
        folder: Gets the images.

    Raises:
        UsageError: The training data is not in COCO's format.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    datasets = split_datasets(cfg, 'train')
    classes = _coco_classes(datasets[0])
    write_synthetic_coco(folder, classes)
    for dataset in datasets:
        dataset.update(
            data_root=str(folder),
            ann_file=ANNOTATIONS,
            data_prefix=dict(img=IMAGES),
        )


def _coco_classes(dataset: ConfigDict) -> list[str]:
    check_environment(['mmdet'])
    # Imports what was just checked, and other configs do without.
    from mmdet.datasets import CocoDataset

    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = registry.get(dataset['type'])
    if cls is None or not issubclass(cls, CocoDataset):
        raise UsageError(
            '--synthetic needs training data in the format of COCO, got '
            f'{dataset["type"]}'
        )
    metainfo = cls.METAINFO | (dataset.get('metainfo') or {})
    return list(metainfo['classes'])


def build_loader(cfg: Config, batch_size: int, num_workers: int) -> DataLoader:
    """Build the training loader of a config such that it never ends.

    Args:
        cfg: With ``train_dataloader``.
        batch_size: Images of a batch.
        num_workers: Processes that load; 0 for none of its own.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    loader = deepcopy(cfg.train_dataloader)
    loader.pop('num_batch_per_epoch', None)
    if num_workers == 0:
        loader.pop('prefetch_factor', None)
    loader.update(
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        sampler=dict(type='mmengine.InfiniteSampler', shuffle=True),
    )
    return Runner.build_dataloader(loader, seed=0)


def build_model(cfg: Config, device: str) -> BaseModel:
    """Build the model of a config with random weights.

    Args:
        cfg: Pretrained weights that it names are not loaded. Of its hooks,
            ``ChannelsLastHook`` is heeded: it changes what a step costs.
        device: Where the model shall be.
    """
    cfg = deepcopy(cfg)
    cfg.model = _without_pretrained(cfg.model)
    model = build_from_config(cfg)
    model.init_weights()
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or ()]
    if 'anchorformer_mm.ChannelsLastHook' in hooks:
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def _without_pretrained(node: object) -> object:
    """A part of a config in which no ``Pretrained`` is left."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained':
            return None
        return {k: _without_pretrained(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        items = [(item, _without_pretrained(item)) for item in node]
        return [new for old, new in items if new is not None or old is None]
    return node


def build_optimiser(
    cfg: Config, model: BaseModel, batch_size: int
) -> OptimWrapper:
    """Build the optimiser of a config.

    Args:
        cfg: With ``optim_wrapper``.
        model: Its parameters are optimised.
        batch_size: Images of a step, to which the rate is scaled if the
            config says for which batch it is.

    Raises:
        UsageError: It cannot be built here, such as that of mixed precision
            without an accelerator.
    """
    try:
        wrapper = build_optim_wrapper(model, deepcopy(cfg.optim_wrapper))
    except AssertionError as error:
        raise UsageError(f'the optimiser cannot be built: {error}') from error
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    for group in wrapper.param_groups if base else ():
        group['lr'] *= batch_size / base
    return wrapper
