"""What an ONNX file says of itself."""

import json

from mmengine.config import Config
from mmengine.model import BaseModel

from anchorformer_mm.apis import (
    dataset_meta,
)
from anchorformer_mm.deployment.networks import deployable
from anchorformer_mm.deployment.preprocessing import Preprocessing
from anchorformer_mm.utils.errors import UsageError


def properties_of(
    cfg: Config, model: BaseModel, preprocessing: Preprocessing
) -> dict[str, str]:
    """Properties for :func:`export_model`.

    Args:
        cfg: Config of the model.
        model: With ``dataset_meta`` where a checkpoint had it.
        preprocessing: Of the images.

    Returns:
        ``task`` (detection, segmentation or classification), ``classes`` (a
        JSON list of names) and ``preprocess`` (a JSON list of steps).

    Raises:
        UsageError: There are names, but not one for each class.
    """
    task = deployable(model).task
    return dict(
        task=task,
        classes=json.dumps(_class_names(cfg, model, task)),
        preprocess=json.dumps(preprocessing.steps),
    )


def _class_names(cfg: Config, model: BaseModel, task: str) -> list[str]:
    """Names of the checkpoint, else of the data set, else numbers."""
    count = _number_of_classes(model, task)
    meta = getattr(model, 'dataset_meta', None) or {}
    names = meta.get('classes') or dataset_meta(cfg).get('classes')
    if names is None:
        return [str(i) for i in range(count)]
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != count:
        raise UsageError(
            f'the model has {count} classes, but the data set of the config '
            f'or the checkpoint names {len(names)}: {names[:3]} ...'
        )
    return names


def _number_of_classes(model: BaseModel, task: str) -> int:
    if task == 'detection':
        return model.bbox_head.num_classes
    if task == 'segmentation':
        return model.out_channels
    return model.head.num_classes
