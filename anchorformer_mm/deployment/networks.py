"""Networks as they are deployed: pixels in, readable predictions out."""

import torch
from mmengine.model import (
    BaseDataPreprocessor,
    BaseModel,
    revert_sync_batchnorm,
)
from mmengine.utils import get_object_from_string
from torch import Tensor, nn

from anchorformer_mm.models.fusing import fuse
from anchorformer_mm.utils.errors import UsageError


def deployable(model: BaseModel) -> nn.Module:
    """Make a network with pixels as its input of a model of OpenMMLab.

    Args:
        model: A single-stage detector of mmdet, an encoder-decoder of mmseg
            or an image classifier of mmpretrain. It stays as it is.

    Returns:
        nn.Module: In evaluation mode, with weights of its own, fused
        (:func:`.fuse`). It takes
        images (N, 3, H, W), RGB, float32 from 0 to 255, and returns a tuple
        of tensors, named by its attribute ``output_names``:

        - detection: ``boxes`` (N, A, 4), xyxy in px of the input, and
          ``scores`` (N, A, C), from 0 to 1, of all A priors;
        - segmentation: ``logits`` (N, C, H, W), of the whole image at once;
        - classification: ``scores`` (N, C), which sum to 1.

        The attribute ``task`` is one of these three words.

    Raises:
        UsageError: It is another kind of model, or has a head that predicts
            in another way.
    """
    kinds = {
        'mmdet': ('models.detectors.SingleStageDetector', DetectionNetwork),
        'mmseg': ('models.segmentors.EncoderDecoder', SegmentationNetwork),
        'mmpretrain': ('models.ImageClassifier', ClassificationNetwork),
    }
    libraries = {cls.__module__.split('.')[0] for cls in type(model).__mro__}
    for library, (name, network_type) in kinds.items():
        if library not in libraries:
            continue
        if not isinstance(model, get_object_from_string(f'{library}.{name}')):
            raise UsageError(
                f'{type(model).__name__} is no {name.split(".")[-1]}; of the '
                f'models of {library} only these can be exported'
            )
        # Norms that are synchronised between GPUs become plain ones.
        network = revert_sync_batchnorm(network_type(fuse(model)))
        # The forks' version of some backbones returns None from `eval`.
        network.eval()
        return network.requires_grad_(False)
    raise UsageError(
        'model must be a detector of mmdet, a segmentor of mmseg or a '
        f'classifier of mmpretrain, got {type(model).__name__}'
    )


class PixelNormalisation(nn.Module):
    """From RGB pixels to what the network of a model was trained on.

    Args:
        preprocessor: The model's. Images are expected to be read as blue,
            green and red, as mmcv does.

    Raises:
        UsageError: Its normalisation is not known.

    Shape:
        - Input and output: (N, 3, H, W).
    """

    def __init__(self, preprocessor: BaseDataPreprocessor) -> None:
        super().__init__()
        if not hasattr(preprocessor, '_enable_normalize'):
            raise UsageError(
                f'data_preprocessor {type(preprocessor).__name__} is not '
                'known to be exported; allowed are those of images of mmdet, '
                'mmseg and mmpretrain'
            )
        self.reverse = not takes_rgb(preprocessor)
        self.normalise = preprocessor._enable_normalize
        for name in ('mean', 'std') if self.normalise else ():
            value = getattr(preprocessor, name).detach().clone()
            self.register_buffer(name, value.float())

    def forward(self, images: Tensor) -> Tensor:
        if self.reverse:
            images = images[:, [2, 1, 0]]
        if self.normalise:
            images = (images - self.mean) / self.std
        return images


class ContrastStretch(nn.Module):
    """mmpretrain's ``AutoContrast``: every channel from 0 to 255.

    A channel of one value stays as it is. Of an image that was stretched
    before, nothing changes.

    Shape:
        - Input and output: (N, 3, H, W), whole numbers from 0 to 255.
    """

    def forward(self, images: Tensor) -> Tensor:
        low = images.amin(dim=(2, 3), keepdim=True)
        span = images.amax(dim=(2, 3), keepdim=True) - low
        # As for pixels of 8 bits, whose fractions are cut off.
        stretched = ((images - low) * 255 / span.clamp(min=1)).floor()
        return torch.where(span > 0, stretched, images)


def takes_rgb(preprocessor: BaseDataPreprocessor) -> bool:
    """Whether a preprocessor reverses the blue, green and red of mmcv."""
    # As mmpretrain, the original mmseg, and all others name it.
    for name in ('to_rgb', 'channel_conversion'):
        if hasattr(preprocessor, name):
            return getattr(preprocessor, name)
    return preprocessor._channel_conversion


class DetectionNetwork(nn.Module):
    """A single-stage detector up to the boxes and scores of all priors.

    Boxes are clipped to the input where the head clips them to the image.

    Args:
        model: The detector, which becomes a part of this.

    Raises:
        UsageError: Its head predicts in a way that is not known.

    Shape:
        - Input: (N, 3, H, W); outputs: (N, A, 4) and (N, A, C).
    """

    task = 'detection'
    output_names = ('boxes', 'scores')

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        # Imports mmdet, which other tasks do without.
        from anchorformer_mm.deployment.box_decoding import (
            clips_boxes,
            decoder_of,
        )

        self.decode = decoder_of(model.bbox_head)
        self.clip = clips_boxes(model.bbox_head)
        self.normalisation = PixelNormalisation(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.bbox_head
        feats = self.model.extract_feat(self.normalisation(images))
        boxes, scores = self.decode(head, head(feats))
        if self.clip:
            boxes = _clip(boxes, images)
        return boxes, scores


def _clip(boxes: Tensor, images: Tensor) -> Tensor:
    """Boxes (..., 4) within images (N, 3, H, W)."""
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    # Tensors, since bounds that are numbers would be fixed in a file.
    height, width = (
        torch.as_tensor(side).to(boxes) for side in images.shape[2:]
    )
    x = torch.minimum(x.clamp(min=0), width)
    y = torch.minimum(y.clamp(min=0), height)
    return torch.stack((x, y), dim=-1).flatten(-2)


class SegmentationNetwork(nn.Module):
    """An encoder-decoder up to the logits at the size of the input.

    Args:
        model: The segmentor, which becomes a part of this.

    Raises:
        UsageError: It has one output for two classes.

    Shape:
        - Input: (N, 3, H, W); output: (N, C, H, W).
    """

    task = 'segmentation'
    output_names = ('logits',)

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        if model.out_channels == 1:
            raise UsageError(
                'decode_head.out_channels must be 2 or more to be exported, '
                'got 1: one map with a threshold'
            )
        self.normalisation = PixelNormalisation(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        metas = [dict(img_shape=images.shape[2:])]
        logits = self.model.encode_decode(self.normalisation(images), metas)
        return (logits,)


class ClassificationNetwork(nn.Module):
    """An image classifier up to the probabilities of the classes.

    Args:
        model: The classifier, which becomes a part of this.

    Raises:
        UsageError: Its head does not end in a softmax.

    Shape:
        - Input: (N, 3, H, W); output: (N, C).
    """

    task = 'classification'
    output_names = ('scores',)

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        from mmpretrain.models.heads import ClsHead

        kind = type(model.head)
        for name in ('predict', '_get_predictions'):
            if getattr(kind, name, None) is not getattr(ClsHead, name):
                raise UsageError(
                    f'head {kind.__name__} predicts in a way of its own, '
                    'which cannot be exported; allowed are heads that end '
                    'in the softmax of ClsHead'
                )
        self.normalisation = PixelNormalisation(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        feats = self.model.extract_feat(self.normalisation(images))
        return (self.model.head(feats).softmax(dim=1),)
