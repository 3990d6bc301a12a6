"""Boxes: suppression, and pooling of what lies in them."""

from __future__ import annotations

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .precision import wide

_MAX_POOL, _AVG_POOL = 0, 1
_OUTSIDE = -2.0  # a sample below -1 lies outside the map and takes no gradient


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
    boxes = wide(bboxes.detach())
    if offset:
        # x2 + 1 - x1 for every x2: the same widths, areas and intersections.
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    scores = scores.detach().to(boxes.dtype)
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


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
    feats = wide(input)
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
    grad = wide(grad_output)
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
    for index, weight in _taps(wide(argmax_y), wide(argmax_x), height, width):
        total.index_add_(0, (base + index).flatten(), (grad * weight).flatten())
    grad_input += total.view_as(grad_input)
