"""Turn weights of the authors' releases, or timm's LCNet, into ours."""

import argparse
from pathlib import Path

from anchorformer_mm.utils.environment import check_environment
from anchorformer_mm.utils.errors import UsageError, run_command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config whose model.backbone is that model')
    files = 'of AnchorDeiT, AnchorViT, ClusTR or lcnet_*; .pth or .safetensors'
    add('checkpoint', help=files)
    add('--out', required=True, type=Path, help='checkpoint to write')
    overwrite = 'replace OUT if it is there'
    add('--overwrite', action='store_true', help=overwrite)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.is_dir():
        raise UsageError(f'--out is a folder: {args.out}')
    if args.out.exists() and not args.overwrite:
        raise UsageError(f'{args.out} is there; --overwrite replaces it')
    check_environment(['torch', 'mmengine', 'mmcv'])
    # Import what was just checked.
    import torch
    from mmengine.registry import MODELS

    from anchorformer_mm.apis import build_model, read_config
    from anchorformer_mm.conversion.release import convert_release
    from anchorformer_mm.conversion.vit import read_checkpoint
    from anchorformer_mm.utils.files import replacing

    checkpoint = read_checkpoint(args.checkpoint)
    cfg = read_config(args.config)
    backbone = build_model(cfg, backbone_only=True)
    # Of a classifier; other models have heads of other names.
    head = MODELS.build(cfg.model.head) if cfg.model.get('head') else None
    state, inventory, source = convert_release(checkpoint, backbone, head)
    print(f'{args.checkpoint}: {source}\n{inventory}')
    meta = dict(release=dict(file=Path(args.checkpoint).name, source=source))
    with replacing(args.out) as temporary:
        torch.save(dict(state_dict=state, meta=meta), temporary)
    print(f'{args.out}: written')


if __name__ == '__main__':
    run_command_line(main)
