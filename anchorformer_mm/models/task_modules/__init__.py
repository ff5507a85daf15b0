"""What PicoDet adds to mmdet's task modules; importing it needs mmdet."""

from anchorformer_mm.models.task_modules.pico_atss_assigner import (
    PicoATSSAssigner,
)
from anchorformer_mm.models.task_modules.pico_task_aligned_assigner import (
    PicoTaskAlignedAssigner,
)
from anchorformer_mm.models.task_modules.sim_ota_assigner import (
    PicoSimOTAAssigner,
)

__all__ = [
    'PicoATSSAssigner',
    'PicoSimOTAAssigner',
    'PicoTaskAlignedAssigner',
]
