"""An ONNX file in the place of the model of a config, to be evaluated."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ALL_MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from anchorformer_mm.deployment.networks import PixelNormalisation, takes_rgb
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.errors import UsageError

# By task, what a file gives for an image.
OUTPUTS = dict(
    detection=('boxes', 'scores', 'labels', 'image_ids'),
    segmentation=('logits',),
    classification=('scores',),
)


def open_session(
    path: str | Path, threads: int = 0
) -> onnxruntime.InferenceSession:
    """Open an ONNX file that has all its data inside, on the CPU.

    Args:
        path: The file.
        threads: 0 means one for each core.

    Raises:
        UsageError: It is not there, has data in other files, or ONNX Runtime
            refuses it.
    """
    if not Path(path).is_file():
        raise UsageError(f'ONNX file not found: {path}')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its errors are raised as well.
    options.log_severity_level = 4
    # It would take some files for those of a format of its own, and look for
    # tensors in other files, which no file has in this folder.
    for key, value in (
        ('session.load_model_format', 'ONNX'),
        ('session.model_external_initializers_file_folder_path', os.devnull),
    ):
        options.add_session_config_entry(key, value)
    try:
        content = Path(path).read_bytes()
        # Before 1.24 ONNX Runtime opens any file that a model names.
        version = tuple(map(int, onnxruntime.__version__.split('.')[:2]))
        if version < (1, 24) and b'location' in content:
            raise ValueError('it may have data in other files')
        session = onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider']
        )
        # Decodes them, which fails where they are no text.
        _ = session.get_modelmeta().custom_metadata_map
        return session
    except Exception as error:  # its errors have no common class
        reason = str(error).splitlines()[0]
        raise UsageError(f'{path} is no usable ONNX file: {reason}') from error


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file that :func:`open_session` accepts.

    Raises:
        UsageError: As :func:`open_session`.
    """
    open_session(path)
    return onnx.load_model_from_string(Path(path).read_bytes())


def _open_runtime(
    runtime: str,
    session: onnxruntime.InferenceSession,
    path: str,
    threads: int,
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Give what computes the outputs of a file that a session has opened."""
    if runtime == 'onnx':
        (port,) = session.get_inputs()
        return lambda batch: session.run(None, {port.name: batch})
    precisions = {'openvino': 'f32', 'openvino-bf16': 'bf16'}
    if runtime not in precisions:
        allowed = ', '.join(['onnx', *precisions])
        raise UsageError(f'runtime must be one of {allowed}, got {runtime!r}')
    import openvino

    options = dict(
        INFERENCE_PRECISION_HINT=precisions[runtime],
        INFERENCE_NUM_THREADS=threads,
    )
    core = openvino.Core()
    network = core.read_model(Path(path).read_bytes())
    compiled = core.compile_model(network, 'CPU', options)
    names = [port.name for port in session.get_outputs()]
    return lambda batch: [*map(compiled(batch).__getitem__, names)]


@MODELS.register_module()
class OnnxModel(BaseModel):
    """Predict with ONNX Runtime or OpenVINO, in the test loop of mmengine.

    The file takes pixels, and most normalise them. Here they come from the
    data preprocessor of the model that it was made of, whose normalisation is
    undone first, so that an image is padded and batched as in any other test.

    Args:
        path: ONNX file with the metadata of :func:`export_model`. Its batch
            and its size may be fixed or free.
        model: Config of the model that it was made of. Of this, weights are
            not needed.
        data_preprocessor: Where the config of the model has none.
        threads: Of the runtime; 0 means one for each core.
        runtime: ``'onnx'``, ``'openvino'`` (float32) or ``'openvino-bf16'``.

    Raises:
        UsageError: The file is not there, not of ``export_model``, or lacks
            an output; or the model predicts in a way of its own; or there is
            no such runtime.
    """

    def __init__(
        self,
        path: str,
        model: dict,
        data_preprocessor: dict | None = None,
        threads: int = 0,
        runtime: str = 'onnx',
    ) -> None:
        model = deepcopy(model)
        if data_preprocessor is not None:
            model.setdefault('data_preprocessor', data_preprocessor)
        origin = ALL_MODELS.build(model)
        super().__init__(origin.data_preprocessor)
        self.path = path
        self.session = open_session(path, threads)
        self.task, steps = _check_ports(path, self.session)
        self.compute = _open_runtime(runtime, self.session, path, threads)
        pads = [step['value'] for step in steps if step['op'] == 'pad']
        self.normalisation = nn.Identity()
        if any(step['op'] == 'normalise' for step in steps):
            preprocessor = origin.data_preprocessor
            self.normalisation = PixelNormalisation(preprocessor)
        self.pad_value = pads[-1] if pads else None
        self._predict = getattr(self, f'_predict_{self.task}')
        if self.task == 'segmentation':
            mode = origin.test_cfg.get('mode', 'whole')
            if mode != 'whole':
                raise UsageError(
                    'an ONNX file predicts whole images, but test_cfg.mode '
                    f'of the config is {mode!r}: --cfg-options '
                    'model.test_cfg.mode=whole'
                )
            # Bound, so that the weights do not become a part of this.
            self._label_pixels = origin.postprocess_result
        elif self.task == 'detection':
            from anchorformer_mm.deployment.detection import clips_boxes

            self._clips = clips_boxes(origin.bbox_head)

    def forward(
        self, inputs: Tensor, data_samples: list, mode: str = 'predict'
    ) -> list:
        """Predict for a batch (N, 3, H, W) of the data preprocessor.

        Returns the N data samples with predictions in the size of the
        original images. A file that takes images of another size is a
        UsageError; ``mode`` can be ``'predict'`` only.
        """
        if mode != 'predict':
            raise ValueError(f"mode must be 'predict', got {mode!r}")
        preprocessor = self.data_preprocessor
        # RGB from 0 to 255 again.
        if hasattr(preprocessor, 'mean'):
            inputs = inputs * preprocessor.std + preprocessor.mean
        if not takes_rgb(preprocessor):
            inputs = inputs[:, [2, 1, 0]]
        return self._predict(self._run(inputs), data_samples)

    def _run(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Give the outputs by name for each of the images (N, 3, H, W)."""
        port = self.session.get_inputs()[0]
        size = images.shape[2:]
        images = self._fill_up(images, port.shape[2:])
        images = self.normalisation(images).cpu().float()
        batch_size = port.shape[0]
        if not isinstance(batch_size, int):
            batch_size = len(images)
        results = []
        for batch in images.split(batch_size):
            # The last batch of a file of fixed batches is filled with copies.
            lacking = batch_size - len(batch)
            full = torch.cat([batch, batch[-1:].repeat(lacking, 1, 1, 1)])
            outputs = self.compute(full.numpy())
            tensors = {
                port.name: torch.from_numpy(output)
                for port, output in zip(
                    self.session.get_outputs(), outputs, strict=True
                )
            }
            # Boxes of all images follow one another; these are whose.
            ids = tensors.pop('image_ids', None)
            results += [
                {
                    name: tensor[i if ids is None else ids == i]
                    for name, tensor in tensors.items()
                }
                for i in range(len(batch))
            ]
        if self.task == 'segmentation':
            for result in results:
                result['logits'] = result['logits'][..., : size[0], : size[1]]
        return results

    def _fill_up(self, images: Tensor, size: list) -> Tensor:
        """Pad images to the size of the file, if that is fixed."""
        have = images.shape[2:]
        lacking = [
            want - got if isinstance(want, int) else 0
            for want, got in zip(size, have, strict=True)
        ]
        if not any(lacking):
            return images
        if self.pad_value is None or min(lacking) < 0:
            raise UsageError(
                f'{self.path} takes images of {size[0]} x {size[1]} px, but '
                f'the config makes some of {have[0]} x {have[1]} px'
            )
        mean = images.new_tensor(self.pad_value).view(3, 1, 1)
        padding = (0, lacking[1], 0, lacking[0])
        return F.pad(images - mean, padding) + mean

    def _predict_detection(self, results: list, data_samples: list) -> list:
        for result, sample in zip(results, data_samples, strict=True):
            boxes = result['boxes']
            if self._clips:
                # The file clips to its input, which includes the padding.
                height, width = sample.img_shape[:2]
                boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
                boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
            scale = boxes.new_tensor(sample.scale_factor).repeat(2)
            sample.pred_instances = InstanceData(
                bboxes=boxes / scale,
                scores=result['scores'],
                labels=result['labels'],
            )
        return data_samples

    def _predict_segmentation(self, results: list, samples: list) -> list:
        logits = torch.stack([result['logits'] for result in results])
        return self._label_pixels(logits, samples)

    def _predict_classification(self, results: list, samples: list) -> list:
        for result, sample in zip(results, samples, strict=True):
            scores = result['scores']
            sample.set_pred_score(scores).set_pred_label(scores.argmax())
        return samples


def _check_ports(
    path: str | Path, session: onnxruntime.InferenceSession
) -> tuple[str, list[dict]]:
    """Give the task and the steps that a file names, if it fits them."""
    metadata = session.get_modelmeta().custom_metadata_map
    task = metadata.get('task')
    kinds = [port.type for port in session.get_inputs()]
    if (
        task not in OUTPUTS
        or 'preprocess' not in metadata
        or kinds != ['tensor(float)']
    ):
        raise UsageError(
            f'{path} has no task, preprocess or single input that is known: '
            'export it with tools/deployment/export_onnx.py'
        )
    names = [output.name for output in session.get_outputs()]
    if not set(OUTPUTS[task]) <= set(names):
        advice = ': export it with --with-nms' if task == 'detection' else ''
        raise UsageError(
            f'{path} must have the outputs {", ".join(OUTPUTS[task])}, got '
            f'{", ".join(names)}{advice}'
        )
    return task, json.loads(metadata['preprocess'])
