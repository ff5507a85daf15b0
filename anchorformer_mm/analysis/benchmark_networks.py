"""What of a config is measured, and how it gets there."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from torch import nn

from anchorformer_mm.analysis.benchmark_results import Candidate
from anchorformer_mm.analysis.complexity import build_from_config
from anchorformer_mm.analysis.forward_pass import (
    Conditions,
    RawOutputs,
)
from anchorformer_mm.analysis.inference import load_model
from anchorformer_mm.deployment.networks import deployable
from anchorformer_mm.utils.errors import UsageError

PARTS = ('model', 'backbone')


def candidate_of(
    name: str,
    cfg: Config,
    *,
    part: str = 'model',
    checkpoint: str | Path | None = None,
    with_nms: bool = False,
    progress: Callable[[str], None] = print,
) -> Candidate:
    """Make the network of a config ready to be measured.

    Args:
        name: What it is called.
        cfg: Of a detector, a segmentor or a classifier.
        part: ``'model'``: from pixels to what is read off,
            see :func:`~anchorformer_mm.deployment.networks.deployable`, or,
            of models that cannot be deployed so, to the raw outputs of the
            heads; or ``'backbone'``, on its own.
        checkpoint: Weights; random ones for None.
        with_nms: Whether the ONNX file of a detector ends in its NMS.
        progress: Told where the network ends in raw outputs, and why.

    Raises:
        UsageError: The model cannot be built or loaded.
    """
    build = partial(build_network, cfg, part, checkpoint)
    if part == 'backbone':
        return Candidate(name, build)
    try:
        deployable(build_model(cfg, checkpoint))
    except UsageError as error:
        progress(f'{name} up to its raw outputs: {error}')
    export = partial(_export, cfg, checkpoint, with_nms)
    return Candidate(name, build, export, ', NMS' if with_nms else '')


def candidate_of_file(name: str, path: str | Path) -> Candidate:
    """Make an ONNX file ready to be measured, in ONNX Runtime alone.

    Args:
        name: What it is called.
        path: Of a network whose one input are images.

    Raises:
        UsageError: There is no such file.
    """
    if not Path(path).is_file():
        raise UsageError(f'file not found: {path}')
    return Candidate(
        name,
        export=partial(_copy_file, path),
        read=partial(_file_facts, path),
    )


def _file_facts(path: str | Path) -> tuple[str, int]:
    import onnx

    from anchorformer_mm.deployment.onnx_file import read_onnx

    model = read_onnx(path)
    about = {p.key: p.value for p in model.metadata_props}
    arrays = map(onnx.numpy_helper.to_array, model.graph.initializer)
    return about.get('task', 'network'), sum(a.nbytes for a in arrays)


def _copy_file(
    source: str | Path, target: Path, conditions: Conditions
) -> None:
    """Take a file as it is, if it is for such images.

    Raises:
        UsageError: Its input has another shape, or it has data elsewhere.
    """
    # Needs a library that other runtimes do without.
    from anchorformer_mm.deployment.onnx_file import read_onnx

    model = read_onnx(source)
    wanted = (conditions.batch_size, 3, *conditions.shape)
    (port,) = model.graph.input
    dims = [d.dim_value for d in port.type.tensor_type.shape.dim]
    # Of an open dimension it is 0.
    if any(d not in (0, w) for d, w in zip(dims, wanted, strict=True)):
        raise UsageError(f'{source} is for images {dims}, not {list(wanted)}')
    target.write_bytes(model.SerializeToString())


def build_network(
    cfg: Config, part: str, checkpoint: str | Path | None
) -> nn.Module:
    """Build what is measured; arguments as for :func:`candidate_of`.

    Returns:
        nn.Module: Takes images (B, 3, H, W), RGB from 0 to 255. Its attribute
        ``task`` says what it computes.
    """
    if part == 'backbone':
        if checkpoint is None:
            backbone = build_from_config(cfg, backbone_only=True)
        else:
            backbone = build_model(cfg, checkpoint).backbone
        return RawOutputs(backbone, 'backbone')
    model = build_model(cfg, checkpoint)
    try:
        return deployable(model)
    except UsageError:
        return RawOutputs(model)


def build_model(cfg: Config, checkpoint: str | Path | None) -> BaseModel:
    """Build the model of a config, in evaluation mode.

    Args:
        cfg: As for :func:`candidate_of`.
        checkpoint: Weights; for None random ones, the same each time.
    """
    # It tells of every parameter.
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    torch.manual_seed(0)
    if checkpoint is not None:
        return load_model(cfg, checkpoint)
    cfg = deepcopy(cfg)
    if cfg.get('data_preprocessor') is not None and cfg.get('model'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = build_from_config(cfg)
    # Of some of mmpretrain's models it returns None.
    model.eval()
    return model


def _export(
    cfg: Config,
    checkpoint: str | Path | None,
    with_nms: bool,
    path: Path,
    conditions: Conditions,
) -> None:
    try:
        # Needs a library that other runtimes do without.
        from anchorformer_mm.deployment.export import export_model
    except ImportError as error:
        raise UsageError(
            f'runtime onnx needs the package onnx: {error}; pip install onnx'
        ) from error
    export_model(
        build_model(cfg, checkpoint),
        path,
        shape=conditions.shape,
        batch_size=conditions.batch_size,
        with_nms=with_nms,
    )
