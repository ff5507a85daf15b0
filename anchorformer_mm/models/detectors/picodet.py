"""PicoDet: the detector class."""

from mmdet.models.detectors import SingleStageDetector

from anchorformer_mm.registry import MODELS


@MODELS.register_module()
class PicoDet(SingleStageDetector):
    """PP-PicoDet, a real-time detector for mobile devices.

    `PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices
    <https://arxiv.org/abs/2111.00902>`_. A single-stage detector in every
    respect; the parts that make it PicoDet are its backbone (``ESNet``,
    ``AnchorESNet`` or ``LCNet``), its neck and its head (``CSPPAN`` and
    ``PicoHead`` in v1, ``LCPAN`` and ``PicoHeadV2`` in v2).

    The arguments, the inputs ``(B, 3, H, W)`` and the outputs are those of
    mmdet's ``SingleStageDetector``. ``train_cfg`` and ``test_cfg`` may be
    left out: the head then uses the paper's.
    """
