"""Table 2: detectors on COCO, and some that the paper does not print."""

from anchorformer_mm.analysis.paper_tables.reasons import DETECTOR
from anchorformer_mm.analysis.paper_tables.row import (
    TWICE,
    Row,
    Table,
    printed,
)

OURS = 'configs/picodet_anchorformer_{}_coco.py'
YOLOX = 'mmdet::yolox/yolox_{}_8xb8-300e_coco.py'
SSDLITE = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
PROJECT = "not in these libraries (in mmdet's projects only)"
# Its authors print the same pair, for 640 px.
YOLOV5 = 'not in these libraries; its authors print 2 x MACs at 640 px'


def _row(
    name: str,
    params_m: float | None,
    flops_g: float | None,
    map: float,
    ap50: float | None = None,
    ap75: float | None = None,
    **more,
) -> Row:
    return Row(
        name, printed(params_m, flops_g, map=map, ap50=ap50, ap75=ap75), **more
    )


def _picodet(size: str, params_m: float, flops_g: float, map: float) -> Row:
    return Row(
        f'PicoDet-{size}',
        printed(params_m, flops_g, map=map),
        f'configs/picodet_{size.lower()}_coco.py',
        claimed_by="PicoDet's authors",
        flops_are=TWICE,
    )


TABLE = Table(
    shape=(416, 416),
    accuracies=dict(map='mAP', ap50='AP50', ap75='AP75'),
    rows=(
        _row(
            *('YOLOv5-N', 1.9, 4.5, 28.38, 45.21),
            flops_are=TWICE,
            reason=YOLOV5,
        ),
        _row(
            *('YOLOv5-S', 7.2, 16.5, 35.18, 52.55),
            flops_are=TWICE,
            reason=YOLOV5,
        ),
        _row('YOLOX-Nano', 0.91, 0.54, 25.23, config=YOLOX.format('nano')),
        _row('YOLOX-Tiny', 5.06, 3.23, 32.37, config=YOLOX.format('tiny')),
        _row(
            *('EfficientDet-512', 3.9, 2.5, 33.81, 52.24, 35.82),
            reason=PROJECT,
        ),
        _row(
            *('EfficientDet-640', 6.6, 6.1, 39.58, 58.59, 42.28),
            reason=PROJECT,
        ),
        _row(
            *('EfficientDet-768', 8.1, 10.8, 43.25, 62.31, 46.18),
            reason=PROJECT,
        ),
        _row(
            *('MobileNetV2', 4.3, 1.2, 22.13),
            config=SSDLITE,
            reason="the paper names neither head nor input: mmdet's SSDLite, "
            'made for 320 px, is counted at 416; at 320 it takes 0.75 G',
        ),
        _row('MobileNetV3', 3.3, 1.5, 23.48),
        _row('FBNetV5-A', None, 1.4, 27.35),
        _row('FBNetV5-AC', None, 1.4, 28.98),
        _row('FBNetV5-AR', None, 1.8, 30.52),
        _row('CastlingViT-S', 3.3, 1.1, 31.34, 46.69, 32.52),
        _row('CastlingViT-M', 6.0, 2.0, 34.07, 49.63, 35.83),
        _row('CastlingViT-L', 13.1, 5.3, 34.42, 53.59, 39.58),
        _row(
            *('AnchorFormer-T', 2.9, 1.1, 41.23, 60.57, 45.46),
            config=OURS.format('t'),
            reason=DETECTOR,
        ),
        _row(
            *('AnchorFormer-S', 5.5, 1.7, 43.61, 62.83, 48.29),
            config=OURS.format('s'),
            reason=DETECTOR,
        ),
        _row(
            *('AnchorFormer-B', 8.6, 2.8, 45.75, 65.35, 51.81),
            config=OURS.format('b'),
        ),
        _picodet('S', 0.99, 1.24, 30.7),
        _picodet('M', 2.15, 2.50, 34.8),
        _picodet('L', 3.30, 3.76, 36.6),
        Row(
            'RTMDet-tiny',
            printed(4.8, 8.1, map=41.1),
            'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
            shape=(640, 640),
            claimed_by='mmdet',
        ),
    ),
)
