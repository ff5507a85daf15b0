"""Operators of mmcv in PyTorch, for an mmcv that was not compiled.

``mmcv.ops`` takes its operators from ``mmcv._ext``, which needs a C++ compiler
and ten minutes to build, and nvcc for a GPU. Here are those that detectors
call, with the arguments that mmcv gives them, for any device: results are
written into tensors that the caller hands over. Python prefers a compiled
``_ext`` in the same folder to this file. An operator that is not here raises
when it is called.
"""

import itertools
import math
from functools import cache, partial

import torch
import torch.nn.functional as F

COMPILE = (
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps '
    '--force-reinstall NAME==VERSION, as pip list has it for mmcv'
)
BLOCK = 128  # boxes that are compared with all others at once


def __getattr__(name: str):
    """Stand in for an operator that is not here: calling it raises."""
    if name.startswith('_'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f'{name} of mmcv.ops is not among the operators written in '
            f'Python; to compile mmcv: {COMPILE}'
        )

    return missing


def get_compiler_version() -> str:
    return 'none (operators in Python)'


get_compiling_cuda_version = get_compiler_version


@cache
def _torchvision(device: str):
    """torchvision.ops, or None where its operators do not run on a device."""
    try:
        from torchvision import ops

        ops.nms(
            torch.ones(1, 4, device=device), torch.ones(1, device=device), 1
        )
    except (ImportError, AttributeError, RuntimeError):
        return None
    return ops


def _write_gradients(form, inputs, grad_output, targets):
    """Write the gradients of ``form(*inputs)``, computed again, to targets."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        grads = torch.autograd.grad(form(*leaves), leaves, grad_output)
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)


# Suppression of boxes (x1, y1, x2, y2)


def _ious(a, b, offset):
    """Overlaps of boxes (N, 4) with boxes (M, 4), rounded as mmcv's."""
    area_a, area_b = (
        (x[:, 2] - x[:, 0] + offset) * (x[:, 3] - x[:, 1] + offset)
        for x in (a, b)
    )
    a, b = a.T[..., None], b.T[:, None]
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0]))
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1]))
    inter = width.add_(offset).clamp_(min=0)
    inter.mul_(height.add_(offset).clamp_(min=0))
    return inter / (area_a[:, None] + area_b).sub_(inter)


def nms(boxes, scores, iou_threshold, offset):
    """Indices that greedy suppression keeps of boxes (N, 4), best first."""
    ops = _torchvision(boxes.device.type)
    if ops is not None:
        shift = boxes.new_tensor([0, 0, offset, offset])
        return ops.nms(boxes + shift, scores, iou_threshold)
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].float()
    kept = [order[:0]]
    while len(order):
        block, rest = boxes[:BLOCK], boxes[BLOCK:]
        # A box stays unless a better one that stays covers it. Repeated from
        # 'all stay', this is right for one more box at least each time.
        covers = (_ious(block, block, offset) > iou_threshold).triu_(1)
        stays, before = ~covers.any(dim=0), None
        while before is None or not stays.equal(before):
            before, stays = stays, ~covers[stays].any(dim=0)
        kept.append(order[:BLOCK][stays])
        covered = _ious(block[stays], rest, offset) > iou_threshold
        left = ~covered.any(dim=0)
        boxes, order = rest[left], order[BLOCK:][left]
    return torch.cat(kept)


def softnms(
    boxes, scores, dets, iou_threshold, sigma, min_score, method, offset
):
    """Indices of boxes (N, 4) by scores that others which overlap lower.

    ``dets`` (N, 5) gets the boxes with their lowered scores. ``method``: 0
    sets them to zero, 1 lowers them linearly, 2 by a Gaussian.
    """
    scores = scores.clone()
    left = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(left):
        place = scores[left].argmax()
        best = left[place]
        dets[len(kept)] = torch.cat([boxes[best], scores[best, None]])
        kept.append(best)
        left = torch.cat([left[:place], left[place + 1 :]])
        ious = _ious(boxes[best, None], boxes[left], offset)[0].nan_to_num_(0)
        if method == 2:
            scores[left] *= torch.exp(-ious * ious / sigma)
        else:
            lowered = 1 - ious if method == 1 else torch.zeros_like(ious)
            scores[left] *= torch.where(ious >= iou_threshold, lowered, 1)
        left = left[~(scores[left] < min_score)]
    return torch.stack(kept) if kept else left


# Pooling of regions (image, x1, y1, x2, y2)


def _samples(start, size, bins, samples, length):
    """Weights (bins * samples, length) of pixels in samples along an axis.

    A sample that lies more than a pixel outside weighs nothing, one that lies
    less outside is moved to the edge.
    """
    given = samples > 0
    samples = samples if given else max(math.ceil(size / bins), 1)
    places = torch.arange(bins * samples).to(size) + 0.5
    places = start + places * (size / bins / samples)
    # As many samples as pixels: none in a region without any.
    inside = (places >= -1) & (places <= length) & (given | (size > 0))
    pixels = torch.arange(length).to(size)
    places = places.clamp(0, length - 1)[:, None]
    return (1 - (places - pixels).abs()).clamp(min=0) * inside[:, None]


def _roi_align(image, rois, picks, given):
    """RoIAlign (R, C, h, w) of a map (B, C, H, W): bilinear samples in bins.

    The mean of a bin's samples; at ``pool_mode`` 0 one of them, whose number
    ``picks`` (R, C, h, w) has, or gets where it is negative: the largest.
    """
    average, aligned = given['pool_mode'] == 1, given['aligned']
    bins = (given['aligned_height'], given['aligned_width'])
    scale, samples = given['spatial_scale'], given['sampling_ratio']
    ops = _torchvision(image.device.type)
    if average and ops is not None:
        return ops.roi_align(image, rois, bins, scale, samples, aligned)
    dtype = torch.promote_types(image.dtype, torch.float32)
    corners = rois[:, 1:].to(dtype) * scale - 0.5 * aligned
    sizes = corners[:, 2:] - corners[:, :2]
    sizes = sizes if aligned else sizes.clamp(min=1)
    pooled = []
    for number, index in enumerate(rois[:, 0].long()):
        x, y = (
            _samples(
                corners[number, axis],
                sizes[number, axis],
                bins[1 - axis],
                samples,
                image.shape[3 - axis],
            )
            for axis in (0, 1)
        )
        rows, columns = y.any(0), x.any(0)  # pixels that count
        region = image[index][:, rows][:, :, columns].to(dtype)
        values = y[:, rows] @ region @ x[:, columns].T
        values = values.unflatten(2, (bins[1], -1)).unflatten(1, (bins[0], -1))
        values = values.transpose(2, 3).flatten(3)
        if average:
            pooled.append(values.mean(3))
            continue
        pick = picks[number].long()[..., None]
        pick = torch.where(pick < 0, values.argmax(3, keepdim=True), pick)
        picks[number] = pick[..., 0]
        pooled.append(values.gather(3, pick)[..., 0])
    return torch.stack(pooled).to(image.dtype)


def roi_align_forward(x, rois, output, argmax_y, _, **given):
    if len(rois):
        output.copy_(_roi_align(x, rois, argmax_y.fill_(-1), given))


def roi_align_backward(grad, rois, argmax_y, _, to_x, **given):
    # Linear in the map once samples are chosen, so that any map will do.
    if len(rois):
        picks = argmax_y.clone()
        form = partial(_roi_align, rois=rois, picks=picks, given=given)
        _write_gradients(form, [to_x], grad, [to_x])


def roi_pool_forward(x, rois, output, argmax, *, spatial_scale, **_):
    """RoIPool (R, C, h, w): the largest pixel that a bin touches, or 0."""
    argmax.fill_(-1)
    corners = rois[:, 1:] * spatial_scale
    corners[:, 2:] += spatial_scale
    height, width = x.shape[2:]
    for number, (left, top, right, bottom) in enumerate(corners.tolist()):
        w = (right - left) / output.shape[3]
        h = (bottom - top) / output.shape[2]
        for row, column in itertools.product(*map(range, output.shape[2:])):
            y1 = max(math.floor(row * h + top), 0)
            y2 = min(math.ceil((row + 1) * h + top), height)
            x1 = max(math.floor(column * w + left), 0)
            x2 = min(math.ceil((column + 1) * w + left), width)
            if w <= 0 or h <= 0 or y2 <= y1 or x2 <= x1:
                continue
            pixels = x[int(rois[number, 0]), :, y1:y2, x1:x2]
            value, at = pixels.flatten(1).max(dim=1)
            at = (at // (x2 - x1) + y1) * width + at % (x2 - x1) + x1
            output[number, :, row, column] = value
            argmax[number, :, row, column] = at.int()


def roi_pool_backward(grad, rois, argmax, to_x, **_):
    at = (argmax >= 0).nonzero(as_tuple=True)
    place = (rois[at[0], 0].long(), at[1], argmax[at].long())
    to_x.flatten(2).index_put_(place, grad[at], accumulate=True)


# Focal loss


def _sigmoid_focal_loss(logits, target, weight, gamma, alpha):
    """Focal loss (N, C) of logits at classes (N,), where C is background."""
    positive = F.one_hot(target, logits.shape[1] + 1)[:, :-1].bool()
    tiny = torch.finfo(logits.dtype).tiny
    p = logits.sigmoid()
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * p.clamp(min=tiny).log(),
        (alpha - 1) * p**gamma * (1 - p).clamp(min=tiny).log(),
    )
    return loss * weight[target][:, None] if weight.numel() else loss


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    output.copy_(_sigmoid_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input, target, weight, to_input, **given):
    form = partial(_sigmoid_focal_loss, target=target, weight=weight, **given)
    _write_gradients(form, [input], torch.ones_like(input), [to_input])


# Deformable convolution and attention


def _deform_conv(
    image,
    offset,
    weight,
    mask=None,
    bias=None,
    *,
    stride,
    pad,
    dilation,
    groups,
):
    """Convolution (B, O, H', W') whose tap k reads at p + p_k + offset_k.

    image (B, C, H, W); offset (B, G k 2, H', W'), y before x; weight (O, C /
    groups, kh, kw); mask (B, G k, H', W') multiplies what is read, 0 outside.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    batch, channels, *size = image.shape
    taps, out = weight.shape[2:], offset.shape[2:]
    count = taps[0] * taps[1]
    shift = offset.to(dtype).reshape(-1, *taps, 2, *out)
    grid = []
    for axis in (1, 0):  # x before y, from -1 to 1 over the pixels' edges
        steps = torch.arange(out[axis], device=image.device) * stride[axis]
        tap = torch.arange(taps[axis], device=image.device) * dilation[axis]
        at = shift[:, :, :, axis] - pad[axis]
        at = at + tap.view((-1, 1, 1, 1) if axis == 0 else (-1, 1, 1))
        at = at + steps.view((-1, 1) if axis == 0 else (-1,))
        grid.append((2 * at + 1) / size[axis] - 1)
    grid = torch.stack(grid, dim=-1).flatten(1, 3)
    # Deformation groups, each with its share of the channels, are a batch.
    maps = image.to(dtype).reshape(len(grid), -1, *size)
    read = F.grid_sample(maps, grid, align_corners=False)
    if mask is not None:
        read = read * mask.to(dtype).reshape(len(grid), 1, -1, out[1])
    read = read.reshape(batch, groups, channels // groups * count, -1)
    weight = weight.to(dtype).reshape(groups, len(weight) // groups, -1)
    result = (weight @ read).reshape(batch, -1, *out)
    return result if bias is None else result + bias.to(dtype)[:, None, None]


def _v1(given):
    """Settings of :func:`_deform_conv` from mmcv's for version 1."""
    names = dict(stride='d', pad='pad', dilation='dilation')
    pairs = {k: (given[f'{v}H'], given[f'{v}W']) for k, v in names.items()}
    return dict(pairs, groups=given['group'])


def _v2(given):
    """Settings of :func:`_deform_conv` from mmcv's for version 2."""
    names = ('stride', 'pad', 'dilation')
    pairs = {k: (given[f'{k}_h'], given[f'{k}_w']) for k in names}
    return dict(pairs, groups=given['group'])


def deform_conv_forward(x, weight, offset, output, *_, **given):
    output.copy_(_deform_conv(x, offset, weight, **_v1(given)))


def deform_conv_backward_input(
    x, offset, grad, to_x, to_offset, weight, _, **given
):
    form = partial(_deform_conv, weight=weight, **_v1(given))
    _write_gradients(form, [x, offset], grad, [to_x, to_offset])


def deform_conv_backward_parameters(x, offset, grad, to_weight, *_, **given):
    form = partial(_deform_conv, x, offset, **_v1(given))
    _write_gradients(form, [to_weight], grad * given['scale'], [to_weight])


def modulated_deform_conv_forward(
    x, weight, bias, _, offset, mask, output, *__, **given
):
    bias = bias if given['with_bias'] else None
    output.copy_(_deform_conv(x, offset, weight, mask, bias, **_v2(given)))


def modulated_deform_conv_backward(
    x, weight, bias, _, offset, mask, *rest, **given
):
    _, to_x, to_weight, to_bias, to_offset, to_mask, grad = rest
    inputs = [x, offset, weight, mask, bias]
    targets = [to_x, to_offset, to_weight, to_mask, to_bias]
    count = 5 if given['with_bias'] else 4
    form = partial(_deform_conv, **_v2(given))
    _write_gradients(form, inputs[:count], grad, targets[:count])


def _ms_deform_attn(value, locations, weights, shapes):
    from mmcv.ops import multi_scale_deform_attn as module

    form = module.multi_scale_deformable_attn_pytorch
    return form(value, shapes.tolist(), locations, weights)


def ms_deform_attn_forward(value, shapes, _, locations, weights, **__):
    return _ms_deform_attn(value, locations, weights, shapes)


def ms_deform_attn_backward(
    value, shapes, _, locations, weights, grad, *targets, **__
):
    form = partial(_ms_deform_attn, shapes=shapes)
    _write_gradients(form, [value, locations, weights], grad, targets)
