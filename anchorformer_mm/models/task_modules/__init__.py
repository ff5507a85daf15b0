"""What PicoDet adds to mmdet's task modules; importing it needs mmdet."""

from anchorformer_mm.models.task_modules.sim_ota_assigner import (
    PicoSimOTAAssigner,
)

__all__ = ['PicoSimOTAAssigner']
