"""Table 3: segmentors on ADE20K."""

from anchorformer_mm.analysis.paper_tables.row import Row, Table, printed

SEMFPN_R50 = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
UPERNET_SWIN = (
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_'
    'ade20k-512x512.py'
)
PVT = dict(
    _delete_=True,
    type='mmdet.PyramidVisionTransformer',
    num_layers=[3, 4, 6, 3],
)
SWIN = dict(
    _delete_=True,
    type='SwinTransformer',
    embed_dims=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
)


def _on(backbone: dict, channels: list[int]) -> dict:
    """Put another backbone under mmseg's Semantic-FPN."""
    return {
        'model.pretrained': None,
        'model.backbone': backbone,
        'model.neck.in_channels': channels,
    }


def _row(
    name: str,
    params_m: float,
    flops_g: float,
    miou: float,
    macc: float | None,
    config: str | None = None,
    **more,
) -> Row:
    claimed = printed(params_m, flops_g, miou=miou, macc=macc)
    return Row(name, claimed, config, **more)


TABLE = Table(
    shape=(512, 2048),
    accuracies=dict(miou='mIoU (%)', macc='mAcc (%)'),
    rows=(
        _row('Semantic-FPN, R50', 28.5, 183.2, 36.75, 43.88, SEMFPN_R50),
        _row(
            *('Semantic-FPN, PVT', 29.5, 221.6, 42.83, 52.15, SEMFPN_R50),
            overrides=_on(PVT, [64, 128, 320, 512]),
            what="with mmdet's PVT-Small",
        ),
        _row(
            *('Semantic-FPN, Swin', 31.9, 182.3, 41.56, 51.42, SEMFPN_R50),
            overrides=_on(SWIN, [96, 192, 384, 768]),
            what='with Swin-T',
        ),
        _row('Semantic-FPN, DAT', 32.3, 198.8, 42.63, 54.72),
        Row(
            'Semantic-FPN, AnchorFormer-T',
            config='configs/semfpn_anchorformer_t_ade20k.py',
        ),
        _row(
            *('Semantic-FPN, AnchorFormer-S', 21.6, 193.7, 43.81, 56.57),
            'configs/semfpn_anchorformer_s_ade20k.py',
            reason='the paper tells neither the size of its AnchorFormer nor '
            'how its maps become a pyramid; the backbone of S alone has '
            '20.2 M, and the FPN and head of mmseg 4.4 M',
        ),
        Row(
            'Semantic-FPN, AnchorFormer-B',
            config='configs/semfpn_anchorformer_b_ade20k.py',
        ),
        _row('UperNet, Swin', 57.3, 945.8, 45.28, 54.32, UPERNET_SWIN),
        _row('UperNet, Focal', 62.3, 998.1, 45.8, 52.62),
        _row('UperNet, RMT', 56.4, 937.4, 49.8, None),
        _row('UperNet, GraftViT', 66.4, 954.6, 45.5, 53.2),
        Row(
            'UperNet, AnchorFormer-T',
            config='configs/upernet_anchorformer_t_ade20k.py',
        ),
        _row(
            *('UperNet, AnchorFormer-S', 49.6, 928.1, 46.28, 56.33),
            'configs/upernet_anchorformer_s_ade20k.py',
        ),
        Row(
            'UperNet, AnchorFormer-B',
            config='configs/upernet_anchorformer_b_ade20k.py',
        ),
    ),
)
