"""Picture what a config gives to its model, after all of its transforms."""

import argparse
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line


def parse_args() -> argparse.Namespace:
    # Imports what was just checked.
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('--out', required=True, type=Path, help='folder for the pictures')
    add('--split', choices=['train', 'val', 'test'], default='train')
    add('--count', type=int, default=16, help='images (default: 16)')
    add('--grid', action='store_true', help='all on one sheet, grid.png')
    add('--seed', type=int, default=0, help='of the order and the transforms')
    add('--cfg-options', nargs='+', action=DictAction, help='key=value pairs')
    args = parser.parse_args()
    if args.count < 1:
        raise UsageError(f'--count must be >= 1, got {args.count}')
    return args


def model_inputs(
    cfg: Any, split: str, count: int, seed: int = 0
) -> tuple[Iterator, dict]:
    """Read images as the model gets them, but for the normalisation.

    All transforms are run: those of the data set, those of a collate function
    on a whole batch, padding, and the mixing of a batch in training.

    Returns:
        tuple: Pairs of an image, RGB, uint8, shape (H, W, 3), and its data
        sample; and ``metainfo`` of the data set.
    """
    from mmengine.logging import MessageHub
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import Runner, set_random_seed
    from torch import Tensor

    scope = cfg.get('default_scope')
    init_default_scope(scope)
    set_random_seed(seed)
    loader_cfg = deepcopy(cfg[f'{split}_dataloader'])
    loader_cfg.update(num_workers=0, persistent_workers=False)
    loader_cfg.pop('prefetch_factor', None)
    if 'batch_size' in loader_cfg:
        loader_cfg.batch_size = min(loader_cfg.batch_size, count)
    loader = Runner.build_dataloader(loader_cfg, seed=seed)
    model = cfg.get('model') or {}
    config = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    config = dict(config or dict(type='BaseDataPreprocessor'))
    if scope == 'mmpretrain':
        # What mixes a batch stands with the model, and is left out here.
        config.setdefault('type', 'ClsDataPreprocessor')
        config.setdefault('batch_augments', model.get('train_cfg'))
    preprocessor = MODELS.build(config)
    is_rgb = config.get('bgr_to_rgb') or config.get('to_rgb')

    def examples() -> Iterator:
        for number, batch in enumerate(loader):
            # Some batch augmentations change with the step of a training.
            MessageHub.get_current_instance().update_info('iter', number)
            batch = preprocessor(batch, training=split == 'train')
            inputs = batch['inputs']
            if not isinstance(inputs, Tensor) or inputs.ndim != 4:
                text = f'{split}_dataloader gives no batch of images'
                raise UsageError(text)
            if getattr(preprocessor, 'mean', None) is not None:
                inputs = inputs * preprocessor.std + preprocessor.mean
            pixels = inputs.round().clamp(0, 255).byte()
            pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
            pixels = pixels if is_rgb else pixels[..., ::-1]
            pixels = np.ascontiguousarray(pixels)
            yield from zip(pixels, batch['data_samples'], strict=True)

    return islice(examples(), count), loader.dataset.metainfo


def draw(image: np.ndarray, sample: Any, meta: dict) -> tuple[np.ndarray, str]:
    """Draw boxes and masks, or a label map, or name the class."""
    if 'gt_label' in sample:
        names = meta.get('classes') or ()
        scores = {int(i): 1.0 for i in sample.gt_label}
        if 'gt_score' in sample:
            scores = {i: s for i, s in enumerate(sample.gt_score) if s >= 0.01}
        return image, ', '.join(
            f'{names[i] if i < len(names) else i} {score:.0%}'
            for i, score in sorted(scores.items(), key=lambda x: -x[1])
        )
    if 'gt_instances' in sample:
        from mmdet.visualization import DetLocalVisualizer as Visualizer

        text = f'{len(sample.gt_instances)} objects'
    else:
        from mmseg.visualization import SegLocalVisualizer as Visualizer

        ids = np.unique(sample.gt_sem_seg.data)
        text = 'ids ' + ', '.join(map(str, ids))
    visualizer = Visualizer(alpha=0.6)
    visualizer.dataset_meta = meta
    visualizer.add_datasample('', image, sample, draw_pred=False)
    height, width = image.shape[:2]
    # The canvas may be a pixel larger.
    return visualizer.get_image()[:height, :width], text


def write_sheet(pictures: list[tuple[np.ndarray, str]], path: Path) -> None:
    """Write pictures with their titles, up to four in a row."""
    from anchorformer_mm.analysis.pictures import Panel, draw_panels, fit

    panels = [Panel(fit(image, 340), title) for image, title in pictures]
    starts = range(0, len(panels), 4)
    draw_panels([panels[i : i + 4] for i in starts], path)
    print(path)


def main() -> None:
    check_environment(['torch', 'mmengine', 'mmcv'])
    args = parse_args()
    # Import what was just checked.
    from anchorformer_mm.apis import read_config
    from anchorformer_mm.utils.files import require_datasets

    cfg = read_config(args.config, args.cfg_options)
    if not cfg.get(f'{args.split}_dataloader'):
        raise UsageError(f'{args.config} has no {args.split}_dataloader')
    require_datasets(cfg, [args.split])
    examples, meta = model_inputs(cfg, args.split, args.count, args.seed)
    pictures = {}
    for number, (image, sample) in enumerate(examples, 1):
        stem = Path(sample.get('img_path') or '').stem
        picture, text = draw(image, sample, meta)
        size = f'{image.shape[0]} x {image.shape[1]} px'
        titled = picture, f'{number} {stem}\n{size}, {text}'
        pictures[f'{number:03d}_{stem}.png'] = titled
    if not pictures:
        raise UsageError(f'{args.split}_dataloader gives no image')
    if args.grid:
        write_sheet(list(pictures.values()), args.out / 'grid.png')
        return
    for name, picture in pictures.items():
        write_sheet([picture], args.out / name)


if __name__ == '__main__':
    run_command_line(main)
