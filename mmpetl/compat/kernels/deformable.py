"""Deformable convolution and attention, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .precision import wide


def _deform(op: Callable, tensors: tuple[Tensor, ...], geometry: tuple) -> Tensor:
    return op(*(wide(tensor).contiguous() for tensor in tensors), *geometry)


def _read(maps: Tensor, size: torch.Size) -> Tensor:
    """Offsets or a mask as the kernel reads them for an output of ``size``.

    It steps through each sample's memory by the extents of the output. DyHead hands it
    those of a level twice as large, of which it reads the front.
    """
    if maps.shape[2:] == size or maps[0, 0].numel() < size.numel():
        return maps
    front = maps.flatten(1)[:, : maps.shape[1] * size.numel()]
    return front.unflatten(1, (maps.shape[1], *size))


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
    read = (_read(maps, output.shape[2:]) for maps in (offset, mask))
    tensors = (input, weight, *read, bias)
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
    size = grad_output.shape[2:]
    read = (_read(maps, size) for maps in (offset, mask))
    tensors = (grad_output, input, weight, *read, full_bias)
    op = torch.ops.torchvision._deform_conv2d_backward
    grads = _deform(op, tensors, (*geometry, deformable_group, True))
    for maps in (grad_offset, grad_mask):
        maps.zero_()
    targets = [grad_input, grad_weight]
    targets += [_read(maps, size) for maps in (grad_offset, grad_mask)]
    if with_bias:
        targets.append(grad_bias)
    for target, grad in zip(targets, grads, strict=False):
        target.copy_(grad)


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
