"""Registries with scope ``anchorformer_mm``: children of mmengine's.

A type such as ``anchorformer_mm.AnchorESNet`` builds from the registries of
mmdet, mmseg and mmpretrain without ``custom_imports``: mmengine imports
``<scope>.registry``, this file, as soon as a type carries the scope, and
these registries import the module that holds the class when it is asked for.
"""

from importlib import import_module
from importlib.util import find_spec

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from anchorformer_mm.utils.checkpoint import admit_mmengine_checkpoints
from anchorformer_mm.utils.environment import install_command

SCOPE = 'anchorformer_mm'


class PluginRegistry(Registry):
    """A child registry whose optional classes are imported on demand.

    What needs nothing beyond mmengine and mmcv is imported with
    ``locations``, as in every OpenMMLab library. What also needs one of the
    downstream libraries is imported when its name is asked for, so that a
    user of mmseg never pays for, nor needs, mmdet.

    Args:
        name: Registry name.
        optional: Class name to ``(library, module)``: the library that the
            class needs, and the module that registers it.
        **kwargs: As for :class:`mmengine.registry.Registry`.
    """

    def __init__(
        self,
        name: str,
        *,
        optional: dict[str, tuple[str, str]] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(name, scope=SCOPE, **kwargs)
        self.optional = optional or {}

    def get(self, key: str) -> type | None:
        """Return the class registered as ``key``.

        Raises:
            ImportError: ``key`` names one of our classes whose library is
                not installed.
        """
        name = key.removeprefix(f'{SCOPE}.')
        if name in self.optional and name not in self.module_dict:
            library, module = self.optional[name]
            if find_spec(library) is None:
                raise ImportError(
                    f"'{SCOPE}.{name}' needs {library}, which is not "
                    f'installed: {install_command(library)}'
                )
            import_module(module)
        return super().get(key)


HEAD = ('mmdet', f'{SCOPE}.models.dense_heads.pico_head')
ASSIGNERS = ('mmdet', f'{SCOPE}.models.task_modules.pico_assigners')
DISTILLATION = ('mmpretrain', f'{SCOPE}.models.distillation')
TRANSFORMS_FILE = ('mmdet', f'{SCOPE}.datasets.transforms')
TRANSFER = f'{SCOPE}.models.attention_transfer'
SCHEDULE = f'{SCOPE}.engine.picodet_schedule'

MODELS = PluginRegistry(
    'model',
    parent=MMENGINE_MODELS,
    locations=[f'{SCOPE}.models', TRANSFER, SCHEDULE],
    optional=dict(
        PicoHead=HEAD,
        PicoHeadV2=HEAD,
        ActivatedVarifocalLoss=HEAD,
        PicoDet=('mmdet', f'{SCOPE}.models.detectors.picodet'),
        AnchorLeViT=('mmpretrain', f'{SCOPE}.models.backbones.anchor_levit'),
        DistilledImageClassifier=DISTILLATION,
        DistilledDeiTClsHead=DISTILLATION,
        DistilledLeViTClsHead=DISTILLATION,
        TokenPyramid=('mmseg', f'{SCOPE}.models.necks.token_pyramid'),
    ),
)
TASK_UTILS = PluginRegistry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    optional=dict(
        PicoSimOTAAssigner=ASSIGNERS,
        PicoATSSAssigner=ASSIGNERS,
        PicoTaskAlignedAssigner=ASSIGNERS,
    ),
)
TRANSFORMS = PluginRegistry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    optional=dict(
        MaxIoURandomCrop=TRANSFORMS_FILE,
        MultiplicativeColorDistortion=TRANSFORMS_FILE,
    ),
)
FUNCTIONS = PluginRegistry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    optional=dict(random_square_collate=TRANSFORMS_FILE),
)
PARAM_SCHEDULERS = PluginRegistry(
    'parameter scheduler',
    parent=MMENGINE_PARAM_SCHEDULERS,
    locations=[SCHEDULE],
)
HOOKS = PluginRegistry(
    'hook',
    parent=MMENGINE_HOOKS,
    locations=[f'{SCOPE}.engine.hooks', SCHEDULE],
)
METRICS = PluginRegistry(
    'metric',
    parent=MMENGINE_METRICS,
    optional=dict(ClassIoUMetric=('mmseg', f'{SCOPE}.engine.metrics')),
)
OPTIM_WRAPPER_CONSTRUCTORS = PluginRegistry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    locations=[f'{SCOPE}.engine.layer_decay'],
)

admit_mmengine_checkpoints()
