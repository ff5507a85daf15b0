"""The forward pass of any network, without what it needs annotations for."""

from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


def raw_outputs(model: nn.Module, images: Tensor) -> object:
    """Run a network to the end of its forward pass.

    That of a model of OpenMMLab ends with the raw outputs of its heads: no
    decoding of boxes, no suppression, no resizing to the image.

    Args:
        model: A detector, a segmentor or a classifier; or any network that
            is called with images, such as a backbone.
        images: Normalised, shape (B, 3, H, W).
    """
    if not isinstance(model, BaseModel):
        return model(images)
    # Detectors with a transformer ask for what was padded: nothing.
    size = tuple(images.shape[2:])
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    meta = dict.fromkeys(names, size) | dict(scale_factor=(1.0, 1.0))
    if hasattr(model, 'encode_decode'):
        # Not all segmentors of mmseg know the mode.
        return model.encode_decode(images, [meta] * len(images))
    samples = [BaseDataElement(metainfo=meta) for _ in images]
    return model(images, samples, mode='tensor')
