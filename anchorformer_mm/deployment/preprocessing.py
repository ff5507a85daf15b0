"""Preprocessing of images, as a list of plain steps that a file can hold."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor

from anchorformer_mm.deployment.networks import takes_rgb
from anchorformer_mm.utils.errors import UsageError

INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest', 'area')
ALLOWED = (
    'AutoContrast, CenterCrop, LoadImageFromFile, Pad, RandomGrayscale, '
    'Resize, ResizeEdge'
)
# They change no pixel.
_PASSIVE = ('LoadAnnotations', 'PackDetInputs', 'PackSegInputs', 'PackInputs')


@dataclass
class Preprocessing:
    """Steps from an RGB image to the input of a network.

    Attributes:
        steps: Dicts with the key ``op``, in order, for JSON.
        stretch_contrast: Whether the contrast of each channel is stretched
            after all steps, which the network does.
        remarks: In what the steps differ from the config, for the user.
        pad_value: RGB from 0 to 255, what is padded with at the end.
    """

    steps: list[dict] = field(default_factory=list)
    stretch_contrast: bool = False
    remarks: list[str] = field(default_factory=list)
    pad_value: Sequence[float] = (0.0, 0.0, 0.0)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of each image after the steps; None if open."""
        shape = None
        for step in self.steps:
            if step['op'] == 'grey':
                continue
            size, divisor = step.get('size'), step.get('divisor')
            if step['op'] == 'resize_short_edge' or step.get('keep_ratio'):
                shape = None
            elif size is not None:
                shape = tuple(size)
            elif shape is not None and divisor is not None:
                shape = tuple(-(-n // divisor) * divisor for n in shape)
        return shape

    def normalise_as(self, preprocessor: BaseDataPreprocessor) -> None:
        """Add what a preprocessor does with colours, as the last step."""
        colours = dict(mean=[0.0], std=[1.0])
        if hasattr(preprocessor, 'mean'):
            colours = {
                name: getattr(preprocessor, name).flatten().tolist()
                for name in colours
            }
        bgr = not takes_rgb(preprocessor)
        self.steps.append(dict(op='normalise', **colours, bgr=bgr))

    def fixed_to(self, shape: tuple[int, int]) -> 'Preprocessing':
        """Change the steps so that all images get one height and width."""
        if shape == self.shape:
            return self
        fixed = deepcopy(self)
        ops = [step['op'] for step in fixed.steps]
        size = list(shape)
        if 'center_crop' in ops:
            crop = fixed.steps[ops.index('center_crop')]
            if 'resize_short_edge' in ops:
                resize = fixed.steps[ops.index('resize_short_edge')]
                ratio = min(shape) / min(crop['size'])
                resize['size'] = round(resize['size'] * ratio)
            crop['size'] = size
            return fixed
        pads = [step for step in fixed.steps if step['op'] == 'pad']
        fixed.steps = [step for step in fixed.steps if step['op'] != 'pad']
        if 'resize' in ops:
            resize = next(s for s in fixed.steps if s['op'] == 'resize')
            resize['size'] = size
            if resize['keep_ratio']:
                value = pads[-1]['value'] if pads else self.pad_value
                fixed.steps.append(_pad(value, size=size))
        else:
            resize = dict(op='resize', size=size, keep_ratio=False)
            fixed.steps.insert(0, resize | dict(interpolation='bilinear'))
            fixed.remarks.append(
                'the config does not resize images: the file asks for a '
                f'resizing to {shape[0]} x {shape[1]} px'
            )
        return fixed


def preprocessing_of(
    cfg: Config, preprocessor: BaseDataPreprocessor
) -> Preprocessing:
    """Read the steps from a config's test pipeline and the preprocessor.

    Args:
        cfg: Config with ``test_dataloader.dataset.pipeline``.
        preprocessor: Of the model of that config.

    Raises:
        UsageError: There is no pipeline, or a step that cannot be expressed.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    if 'pipeline' not in dataset:
        raise UsageError('the config has no test_dataloader.dataset.pipeline')
    result = Preprocessing(pad_value=_pad_value(preprocessor))
    for transform in dataset['pipeline']:
        kind = transform['type']
        name = getattr(kind, '__name__', str(kind)).split('.')[-1]
        colour = transform.get('color_type', 'color') == 'color'
        if name in _PASSIVE or (name == 'LoadImageFromFile' and colour):
            continue
        if name == 'AutoContrast' and transform.get('prob', 0.5) >= 1:
            result.stretch_contrast = True
            continue
        step = _step_of(name, transform, result.steps)
        if step is None:
            raise UsageError(
                f'the test pipeline has {dict(transform)}, which cannot be '
                f'expressed in the file; allowed are {ALLOWED}'
            )
        if result.stretch_contrast:
            raise UsageError(
                f'the test pipeline has {name} after AutoContrast, which '
                'must come last to be exported'
            )
        result.steps.append(step)
        if transform.get('backend', 'cv2') != 'cv2':
            result.remarks.append(
                'the config resizes by Pillow, which smooths where it '
                "shrinks; the file's preprocessing is OpenCV's, so that "
                'scores differ a little'
            )
    size, divisor = _final_padding(preprocessor)
    if size is None and divisor is None:
        return result
    if result.stretch_contrast:
        raise UsageError(
            'data_preprocessor pads after AutoContrast, which must come last '
            'to be exported'
        )
    result.steps.append(_pad(result.pad_value, size, divisor))
    return result


def _pad(
    value: Sequence[float],
    size: list[int] | None = None,
    divisor: int | None = None,
) -> dict:
    return dict(op='pad', size=size, divisor=divisor, value=list(value))


def _pair(value: int | Sequence[int]) -> list[int]:
    """Turn width and height, or a number for both, into height and width."""
    return [value, value] if isinstance(value, int) else list(value)[::-1]


def _step_of(name: str, transform: dict, before: list[dict]) -> dict | None:
    """Express a transform after other steps; None where it cannot be."""
    get = transform.get
    kind = get('interpolation', 'bilinear')
    resize = dict(interpolation=kind) if kind in INTERPOLATIONS else None
    if name == 'Resize' and resize and get('scale') is not None:
        keep_ratio = bool(get('keep_ratio', False))
        size = _pair(get('scale'))
        return dict(op='resize', size=size, keep_ratio=keep_ratio) | resize
    if name == 'ResizeEdge' and resize and get('edge', 'short') == 'short':
        return dict(op='resize_short_edge', size=get('scale')) | resize
    if name == 'CenterCrop' and not get('auto_pad'):
        return dict(op='center_crop', size=_pair(get('crop_size')))
    if name == 'RandomGrayscale' and get('prob', 0.1) >= 1:
        alike = len(set(get('channel_weights', [1.0]))) == 1
        return dict(op='grey') if alike and get('keep_channels') else None
    if name != 'Pad' or get('padding_mode', 'constant') != 'constant':
        return None
    value = get('pad_val', 0)
    if isinstance(value, dict):
        value = value.get('img', 0)
    # Given as blue, green and red.
    value = 3 * [value] if isinstance(value, int | float) else value[::-1]
    size = None if get('size') is None else _pair(get('size'))
    if get('pad_to_square'):
        size = before[-1].get('size') if before else None
        # Else it would depend on the image.
        if not size or before[-1]['op'] != 'resize' or size[0] != size[1]:
            return None
    return _pad(map(float, value), size, get('size_divisor'))


def _pad_value(preprocessor: BaseDataPreprocessor) -> list[float]:
    """Find what a preprocessor pads with, as RGB before normalisation."""
    value = getattr(preprocessor, 'pad_value', 0)
    if not hasattr(preprocessor, 'mean'):
        return 3 * [float(value)]
    mean, std = preprocessor.mean.flatten(), preprocessor.std.flatten()
    rgb = (mean + value * std).expand(3)
    rgb = rgb if takes_rgb(preprocessor) else rgb.flip(0)
    # Without the digits that single precision adds.
    return [round(float(channel), 4) for channel in rgb]


def _final_padding(
    preprocessor: BaseDataPreprocessor,
) -> tuple[list[int] | None, int | None]:
    """Read to which size or divisor images are padded after the pipeline."""
    divisor, size = getattr(preprocessor, 'pad_size_divisor', 1), None
    # mmseg's pads in training only, unless it is told otherwise.
    if hasattr(preprocessor, 'seg_pad_val') and hasattr(
        preprocessor, 'size_divisor'
    ):
        test_cfg = preprocessor.test_cfg or {}
        divisor = test_cfg.get('size_divisor') or 1
        size = test_cfg.get('size')
    size = None if size is None else list(size)
    return size, divisor if divisor > 1 else None
