"""The kernels of ``mmcv._ext``, by torchvision and torch.

Names, arguments and the in-place outputs are those that ``mmcv.ops`` calls with; only
what is listed in ``__all__`` exists. Half precision on CPU is computed in float32.
Where the compiled kernels leave a case undefined, the choice made here is stated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]

_MAX_POOL, _AVG_POOL = 0, 1
_OUTSIDE = -2.0  # a sample below -1 lies outside the map and takes no gradient


def missing_op(name: str) -> Callable:
    """A function in place of op ``name`` that says, when called, what to install."""

    def op(*args, **kwargs) -> NoReturn:
        raise NotImplementedError(
            f'mmcv op {name!r} has no substitute in torch or torchvision; it needs '
            'compiled mmcv: pip uninstall -y mmcv-lite, then '
            'pip install mmcv==2.1.0 --no-build-isolation '
            "(needs a compiler, ninja and 'setuptools<81')"
        )

    op.__name__ = op.__qualname__ = name
    return op


def get_compiler_version() -> str:
    """Shown by ``mmcv.utils.collect_env``."""
    return 'none (kernels by torchvision, through mmpetl)'


def get_compiling_cuda_version() -> str:
    """Shown by ``mmcv.utils.collect_env``."""
    return torch.version.cuda or 'not available'


def _wide(tensor: Tensor) -> Tensor:
    """float32 for half precision on CPU, where torchvision has no half kernels."""
    if tensor.device.type == 'cpu' and tensor.dtype in (torch.half, torch.bfloat16):
        return tensor.float()
    return tensor


# -- boxes ------------------------------------------------------------------------


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of kept boxes, best score first.

    Args:
        bboxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: Boxes that overlap a better one by more than this go.
        offset: 0, or 1 for boxes whose width is x2 - x1 + 1.
    """
    if bboxes.numel() == 0:
        return bboxes.new_zeros(0, dtype=torch.long)
    boxes = _wide(bboxes.detach())
    if offset:
        # x2 + 1 - x1 for every x2: the same widths, areas and intersections.
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    scores = scores.detach().to(boxes.dtype)
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


# -- RoIAlign -----------------------------------------------------------------------


def _taps(y: Tensor, x: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """The four neighbours of each point, as (flat index, weight).

    A point more than one pixel outside the map has weight 0 throughout; one between
    the border pixel and that limit takes the border's value.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = torch.where(inside, y, torch.zeros_like(y)).clamp(0, height - 1)
    x = torch.where(inside, x, torch.zeros_like(x)).clamp(0, width - 1)
    y0, x0 = y.floor(), x.floor()
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    ly, lx = y - y0, x - x0
    corners = (
        (y0, x0, (1 - ly) * (1 - lx)),
        (y0, x1, (1 - ly) * lx),
        (y1, x0, ly * (1 - lx)),
        (y1, x1, ly * lx),
    )
    return [
        ((cy * width + cx).long(), weight * inside.to(weight.dtype))
        for cy, cx, weight in corners
    ]


def _max_forward(
    feats: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum over each bin's samples and where it lies, all (K, C, out_h, out_w).

    A bin without samples (a box of no extent, adaptive sampling) gives 0, as average
    pooling does.
    """
    batch, channels, height, width = feats.shape
    out_h, out_w = size
    rows = feats.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    bins = extent / extent.new_tensor([out_w, out_h])
    if sampling_ratio > 0:
        grids = torch.full_like(bins, sampling_ratio, dtype=torch.long)
    else:
        grids = bins.ceil().long().clamp(min=0)

    shape = (len(rois), channels, out_h, out_w)
    best = feats.new_zeros(shape)
    best_y, best_x = feats.new_full(shape, _OUTSIDE), feats.new_full(shape, _OUTSIDE)
    for grid_w, grid_h in grids.unique(dim=0).tolist():
        if grid_w == 0 or grid_h == 0:
            continue
        group = ((grids[:, 0] == grid_w) & (grids[:, 1] == grid_h)).nonzero()[:, 0]

        def centres(axis: int, count: int, grid: int, group=group) -> Tensor:
            """Sample positions along an axis: (k, count, grid)."""
            at = torch.arange(count * grid, device=rois.device).view(count, grid)
            at = (at.to(bins.dtype) + 0.5) / grid
            return start[group, axis, None, None] + at * bins[group, axis, None, None]

        ys = centres(1, out_h, grid_h)[:, :, None, :, None]
        xs = centres(0, out_w, grid_w)[:, None, :, None, :]
        ys, xs = torch.broadcast_tensors(ys, xs)  # (k, out_h, out_w, grid_h, grid_w)
        ys, xs = ys.flatten(3), xs.flatten(3)
        base = rois[group, 0].long()[:, None, None, None] * (height * width)
        values = sum(
            rows[base + index] * weight.to(rows.dtype)[..., None]
            for index, weight in _taps(ys, xs, height, width)
        )
        top, where = values.max(dim=3)  # (k, out_h, out_w, C)
        best[group] = top.permute(0, 3, 1, 2)
        best_y[group] = ys.gather(3, where).permute(0, 3, 1, 2).to(best)
        best_x[group] = xs.gather(3, where).permute(0, 3, 1, 2).to(best)
    return best, best_y, best_x


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` (K, C, out_h, out_w), and both argmax when pooling the maximum.

    Args:
        input: (B, C, H, W).
        rois: (K, 5) as image index, x1, y1, x2, y2.
        output: Result, written in place.
        argmax_y: Row of each maximum, in feature pixels; untouched by averaging.
        argmax_x: Column likewise.
        aligned_height: out_h.
        aligned_width: out_w.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples per bin and axis; 0 takes one per feature pixel.
        pool_mode: 0 maximum, 1 average.
        aligned: Shift by half a pixel.
    """
    if len(rois) == 0:
        return
    feats = _wide(input)
    boxes = rois.to(feats.dtype)
    if pool_mode == _AVG_POOL:
        output.copy_(
            torch.ops.torchvision.roi_align(
                feats,
                boxes,
                spatial_scale,
                aligned_height,
                aligned_width,
                sampling_ratio,
                aligned,
            )
        )
        return
    size = (aligned_height, aligned_width)
    results = _max_forward(feats, boxes, size, spatial_scale, sampling_ratio, aligned)
    for target, result in zip((output, argmax_y, argmax_x), results, strict=True):
        target.copy_(result)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of `roi_align_forward` to ``grad_input`` (B, C, H, W)."""
    if len(rois) == 0:
        return
    grad = _wide(grad_output)
    batch, channels, height, width = grad_input.shape
    if pool_mode == _AVG_POOL:
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad,
            rois.to(grad.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            batch,
            channels,
            height,
            width,
            sampling_ratio,
            aligned,
        )
        return
    image = rois[:, 0].long()[:, None, None, None]
    channel = torch.arange(channels, device=grad.device)[None, :, None, None]
    base = (image * channels + channel) * (height * width)
    total = grad.new_zeros(grad_input.numel())
    for index, weight in _taps(_wide(argmax_y), _wide(argmax_x), height, width):
        total.index_add_(0, (base + index).flatten(), (grad * weight).flatten())
    grad_input += total.view_as(grad_input)


# -- focal losses -------------------------------------------------------------------


def _class_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Weight of each row's class, (N,). Background (label C) weighs 1."""
    padded = torch.cat([weight, weight.new_ones(1)])
    return padded[target.clamp(0, len(weight))]


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``output`` (N, C) with the focal loss of each logit.

    Args:
        input: (N, C) logits.
        target: (N,) labels in 0..C, C being background.
        weight: (C,) per class, or empty.
        output: Result, written in place.
        gamma: Focusing exponent.
        alpha: Share of the positive term.
    """
    logits = _wide(input)
    classes = torch.arange(logits.shape[1], device=target.device)
    prob = logits.sigmoid()
    positive = -alpha * (1 - prob) ** gamma * F.logsigmoid(logits)
    negative = -(1 - alpha) * prob**gamma * F.logsigmoid(-logits)
    loss = torch.where(target[:, None] == classes, positive, negative)
    if weight.numel():
        loss = loss * _class_weight(_wide(weight), target)[:, None]
    output.copy_(loss)


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``grad_input`` (N, C) with d loss / d logit of the forward kernel."""
    logits = _wide(input)
    classes = torch.arange(logits.shape[1], device=target.device)
    prob = logits.sigmoid()
    log_prob, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = -alpha * (1 - prob) ** gamma * (1 - prob - gamma * prob * log_prob)
    negative = -(1 - alpha) * prob**gamma * (gamma * (1 - prob) * log_rest - prob)
    grad = torch.where(target[:, None] == classes, positive, negative)
    if weight.numel():
        grad = grad * _class_weight(_wide(weight), target)[:, None]
    grad_input.copy_(grad)


def _picked(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each row's label and its logarithm, both (N,)."""
    prob = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return prob, prob.clamp(min=torch.finfo(prob.dtype).tiny).log()


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``output`` (N,); ``input`` (N, C) is already a softmax.

    Rows with a negative label are ignored: they get 0.
    """
    prob, log_prob = _picked(_wide(input), target)
    loss = -alpha * (1 - prob) ** gamma * log_prob
    if weight.numel():
        loss = loss * _class_weight(_wide(weight), target)
    output.copy_(torch.where(target >= 0, loss, torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``grad_input`` (N, C) with d loss / d logit, ``buff`` (N,) with p dL/dp."""
    softmax = _wide(input)
    prob, log_prob = _picked(softmax, target)
    focus = (1 - prob) ** gamma
    # gamma (1 - p)^(gamma - 1) p log p, which tends to 0 as p tends to 1
    rest = (1 - prob).clamp(min=torch.finfo(prob.dtype).tiny)
    slope = torch.where(
        prob < 1, gamma * focus / rest * prob * log_prob, torch.zeros_like(prob)
    )
    per_row = alpha * (slope - focus)
    if weight.numel():
        per_row = per_row * _class_weight(_wide(weight), target)
    per_row = torch.where(target >= 0, per_row, torch.zeros_like(per_row))
    buff.copy_(per_row)
    hot = torch.zeros_like(softmax).scatter_(1, target.clamp(min=0)[:, None], 1.0)
    grad_input.copy_(per_row[:, None] * (hot - softmax))


# -- deformable convolution ---------------------------------------------------------


def _deform(op: Callable, tensors: tuple[Tensor, ...], geometry: tuple) -> Tensor:
    return op(*(_wide(tensor).contiguous() for tensor in tensors), *geometry)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (no modulation, no bias) into ``output``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # One empty mask row per image: torchvision ignores it when told not to use it.
    mask, bias = offset.new_zeros(len(input), 0), input.new_zeros(len(weight))
    tensors = (input, weight, offset, mask, bias)
    op = torch.ops.torchvision.deform_conv2d
    output.copy_(_deform(op, tensors, (*geometry, False)))


def _plain_backward(
    input: Tensor, offset: Tensor, grad: Tensor, weight: Tensor, geometry: tuple
) -> tuple[Tensor, ...]:
    mask, bias = offset.new_zeros(len(input), 0), input.new_zeros(len(weight))
    tensors = (grad, input, weight, offset, mask, bias)
    op = torch.ops.torchvision._deform_conv2d_backward
    return _deform(op, tensors, (*geometry, False))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of `deform_conv_forward` towards its input and offsets."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _plain_backward(input, offset, grad_output, weight, geometry)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the weight's gradient to ``grad_weight``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # The gradient towards the weight does not depend on its values, only its shape.
    shape_only = torch.zeros_like(grad_weight)
    grads = _plain_backward(input, offset, grad_output, shape_only, geometry)
    grad_weight += scale * grads[1]


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution into ``output``."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group)
    bias = bias if with_bias else input.new_zeros(len(weight))
    tensors = (input, weight, offset, mask, bias)
    op = torch.ops.torchvision.deform_conv2d
    output.copy_(_deform(op, tensors, (*geometry, deformable_group, True)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of `modulated_deform_conv_forward`, each into its tensor."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group)
    full_bias = bias if with_bias else input.new_zeros(len(weight))
    tensors = (grad_output, input, weight, offset, mask, full_bias)
    op = torch.ops.torchvision._deform_conv2d_backward
    grads = _deform(op, tensors, (*geometry, deformable_group, True))
    targets = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        targets.append(grad_bias)
    for target, grad in zip(targets, grads, strict=False):
        target.copy_(grad)


# -- multi-scale deformable attention -------------------------------------------------


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    im2col_step: int,
) -> Tensor:
    """(B, queries, heads * dims), by mmcv's own implementation in torch."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes.tolist(), sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward`, by running it once more under autograd."""
    inputs = [
        tensor.detach().requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0],
            value_spatial_shapes,
            value_level_start_index,
            inputs[1],
            inputs[2],
            im2col_step=im2col_step,
        )
    grads = torch.autograd.grad(output, inputs, grad_output)
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)
