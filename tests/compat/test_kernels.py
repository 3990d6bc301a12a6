"""The kernels behind mmcv.ops, against calculations that share no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv import ops  # conftest.py has imported mmpetl, which puts them in place

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _stand_in():
    import mmcv._ext

    if mmcv._ext.__spec__.origin != 'mmpetl.compat':
        pytest.skip('a compiled mmcv is installed')


def random_boxes(count: int, seed: int, size: int = 24) -> np.ndarray:
    """(count, 4) boxes on a grid of halves, so that many overlap."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 3 * size, (count, 2)) / 2
    extent = rng.integers(size // 2, size, (count, 2)) / 2
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


# -- nms --------------------------------------------------------------------------


def nms_by_definition(boxes, scores, threshold, offset):
    """Greedy suppression in float64, one pair at a time."""
    boxes = boxes.astype(np.float64)
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in order:
        for j in kept:
            w = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + offset
            h = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + offset
            inter = max(w, 0.0) * max(h, 0.0)
            area = [
                (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
                for b in (boxes[i], boxes[j])
            ]
            if inter / (sum(area) - inter) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.55])
def test_nms_keeps_what_the_definition_keeps(device, offset, threshold):
    boxes = random_boxes(120, seed=3)
    scores = np.random.default_rng(4).permutation(120).astype(np.float32) / 120
    want = nms_by_definition(boxes, scores, threshold, offset)
    dets, kept = ops.nms(
        torch.from_numpy(boxes).to(device),
        torch.from_numpy(scores).to(device),
        threshold,
        offset=offset,
    )
    assert kept.tolist() == want
    assert 10 < len(want) < 110
    np.testing.assert_array_equal(dets[:, 4].cpu(), scores[want])


def test_nms_offset_changes_the_outcome():
    # IoU 1/3 without the offset, 3/6 with it.
    boxes = np.array([[0, 0, 2, 1], [1, 0, 3, 1]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert len(ops.nms(boxes, scores, 0.4, offset=0)[1]) == 2
    assert len(ops.nms(boxes, scores, 0.4, offset=1)[1]) == 1


def test_nms_of_nothing():
    dets, kept = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.dtype == torch.long


# -- RoIAlign -----------------------------------------------------------------------


def bilinear(plane, y, x):
    """One value of a (H, W) tensor at a real position; differentiable in ``plane``."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = plane.new_zeros(())
    for row in range(height):
        for col in range(width):
            share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - col))
            if share:
                total = total + share * plane[row, col]
    return total


def roi_align_by_definition(feats, rois, size, scale, sampling, mode, aligned):
    shift = 0.5 if aligned else 0.0
    rows = []
    for roi in rois.tolist():
        image = feats[int(roi[0])]
        x1, y1, x2, y2 = (v * scale - shift for v in roi[1:])
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        step_y, step_x = height / size[0], width / size[1]
        count_y = sampling or math.ceil(step_y)
        count_x = sampling or math.ceil(step_x)
        for plane in image:
            for by in range(size[0]):
                for bx in range(size[1]):
                    samples = [
                        bilinear(
                            plane,
                            y1 + (by + (iy + 0.5) / count_y) * step_y,
                            x1 + (bx + (ix + 0.5) / count_x) * step_x,
                        )
                        for iy in range(count_y)
                        for ix in range(count_x)
                    ] or [plane.new_zeros(())]
                    stack = torch.stack(samples)
                    rows.append(stack.mean() if mode == 'avg' else stack.max())
    return torch.stack(rows).view(len(rois), feats.shape[1], *size)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling', [0, 2])
def test_roi_align_and_its_gradient(device, mode, aligned, sampling):
    generator = torch.Generator().manual_seed(7)
    feats = torch.randn(2, 2, 6, 7, generator=generator, dtype=torch.float64)
    rois = torch.tensor(
        [
            [0, 2.3, 1.1, 20.7, 17.9],
            [1, 0.0, 0.0, 9.5, 22.5],
            [1, -6.0, -9.0, 31.0, 29.0],  # reaches over every border
            [0, 5.0, 5.0, 5.6, 5.9],  # smaller than a pixel of the features
        ],
        dtype=torch.float64,
    )
    probe = torch.randn(4, 2, 2, 3, generator=generator, dtype=torch.float64)
    want_in = feats.clone().requires_grad_()
    want = roi_align_by_definition(want_in, rois, (2, 3), 0.25, sampling, mode, aligned)
    (want * probe).sum().backward()

    got_in = feats.to(device).requires_grad_()
    got = ops.RoIAlign((2, 3), 0.25, sampling, mode, aligned)(got_in, rois.to(device))
    (got * probe.to(device)).sum().backward()
    torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_in.grad.cpu(), want_in.grad, rtol=1e-10, atol=1e-10)
    assert want_in.grad.abs().sum() > 1


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_without_boxes(mode):
    feats = torch.randn(1, 3, 4, 4, requires_grad=True)
    out = ops.RoIAlign(2, 1.0, 2, mode)(feats, torch.zeros(0, 5))
    assert out.shape == (0, 3, 2, 2)
    out.sum().backward()
    assert not feats.grad.any()


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_in_bfloat16_on_cpu(mode):
    feats = torch.randn(1, 3, 8, 8)
    rois = torch.tensor([[0, 0.0, 0.0, 6.0, 6.0]])
    layer = ops.RoIAlign(2, 1.0, 2, mode)
    want = layer(feats.bfloat16().float(), rois)
    got = layer(feats.bfloat16(), rois.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


# -- focal losses -------------------------------------------------------------------


def sigmoid_focal_by_definition(logits, target, gamma, alpha, weight):
    """FL(p) = -a (1-p)^g log p for the label's class, with p -> 1-p elsewhere."""
    prob = torch.sigmoid(logits)
    rows = []
    for n, label in enumerate(target.tolist()):
        terms = []
        for c in range(logits.shape[1]):
            p, a = (prob[n, c], alpha) if c == label else (1 - prob[n, c], 1 - alpha)
            term = -a * (1 - p) ** gamma * torch.log(p)
            if weight is not None and label < len(weight):
                term = term * weight[label]
            terms.append(term)
        rows.append(torch.stack(terms))
    return torch.stack(rows)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_sigmoid_focal_loss_and_its_gradient(device, gamma, alpha, weighted):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(9, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 0, 3, 2])  # 4 is background
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    weight = weight if weighted else None
    want_in = logits.clone().requires_grad_()
    want = sigmoid_focal_by_definition(want_in, target, gamma, alpha, weight).sum() / 9
    want.backward()

    got_in = logits.to(device).requires_grad_()
    got = ops.sigmoid_focal_loss(
        got_in,
        target.to(device),
        gamma,
        alpha,
        weight.to(device) if weighted else None,
        'mean',
    )
    got.backward()
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(got_in.grad.cpu(), want_in.grad, rtol=1e-10, atol=1e-14)


def test_sigmoid_focal_loss_stays_finite():
    logits = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([1, 0]), 2.0, 0.25, None, 'sum')
    loss.backward()
    # Both sure and wrong: 0.75 * 200 and 0.25 * 200.
    assert loss.item() == pytest.approx(200.0)
    assert logits.grad.flatten().tolist() == pytest.approx([0.75, -0.25])


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.0, 1.0), (0.5, 0.7)])
def test_softmax_focal_loss_and_its_gradient(device, gamma, alpha):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 4, 2, 2, 1, 3])
    weight = torch.rand(5, generator=generator, dtype=torch.float64) + 0.5
    want_in = logits.clone().requires_grad_()
    log_prob = F.log_softmax(want_in, dim=1)[range(6), target]
    focal = -alpha * (1 - log_prob.exp()) ** gamma * log_prob * weight[target]
    focal.sum().backward()

    got_in = logits.to(device).requires_grad_()
    got = ops.softmax_focal_loss(
        got_in, target.to(device), gamma, alpha, weight.to(device), 'sum'
    )
    got.backward()
    torch.testing.assert_close(got.cpu(), focal.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got_in.grad.cpu(), want_in.grad, rtol=1e-9, atol=1e-12)


# -- deformable convolution ---------------------------------------------------------


def deform_by_definition(x, offset, weight, mask, bias, stride, pad, dilation, groups):
    """Each output by its sum; positions outside read 0, borders fade to it."""
    batch, _, height, width = x.shape
    c_out, c_group, kh, kw = weight.shape
    padded = F.pad(x, (1, 1, 1, 1))
    deform_groups = offset.shape[1] // (2 * kh * kw)
    out_h = (height + 2 * pad - dilation * (kh - 1) - 1) // stride + 1
    out_w = (width + 2 * pad - dilation * (kw - 1) - 1) // stride + 1

    def at(b, c, y, x_):
        """Differentiable in the position too."""
        if not (-1 < y < height and -1 < x_ < width):
            return x.new_zeros(())
        y0, x0 = math.floor(y.item()), math.floor(x_.item())
        fy, fx = y - y0, x_ - x0
        plane = padded[b, c]
        return (
            plane[y0 + 1, x0 + 1] * (1 - fy) * (1 - fx)
            + plane[y0 + 1, x0 + 2] * (1 - fy) * fx
            + plane[y0 + 2, x0 + 1] * fy * (1 - fx)
            + plane[y0 + 2, x0 + 2] * fy * fx
        )

    values = []
    for b in range(batch):
        for o in range(c_out):
            group = o // (c_out // groups)
            for oy in range(out_h):
                for ox in range(out_w):
                    total = bias[o] if bias is not None else x.new_zeros(())
                    for ci in range(c_group):
                        c = group * c_group + ci
                        dg = c // (x.shape[1] // deform_groups)
                        for k in range(kh * kw):
                            ky, kx = divmod(k, kw)
                            dy = offset[b, (dg * kh * kw + k) * 2, oy, ox]
                            dx = offset[b, (dg * kh * kw + k) * 2 + 1, oy, ox]
                            y = oy * stride - pad + ky * dilation + dy
                            xx = ox * stride - pad + kx * dilation + dx
                            value = at(b, c, y, xx) * weight[o, ci, ky, kx]
                            if mask is not None:
                                value = value * mask[b, dg * kh * kw + k, oy, ox]
                            total = total + value
                    values.append(total)
    return torch.stack(values).view(batch, c_out, out_h, out_w)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('modulated', 'extents'), [(False, (3, 2)), (True, (3, 2)), (True, (6, 4))]
)
def test_deformable_convolution_and_its_gradients(device, modulated, extents):
    """Of larger maps the front of each sample's memory is read, as mmcv does."""
    generator = torch.Generator().manual_seed(5)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    stride, pad, dilation, groups, deform_groups = 2, 1, 1, 2, 2
    tensors = {
        'x': rand(2, 4, 5, 4),
        'offset': rand(2, 2 * deform_groups * 6, *extents),
        'weight': rand(2, 2, 2, 3),
    }
    if modulated:
        tensors |= {
            'mask': rand(2, deform_groups * 6, *extents).sigmoid(),
            'bias': rand(2),
        }
    probe = rand(2, 2, 3, 2)
    want_in = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    fronts = {
        k: want_in[k].reshape(2, -1)[:, : want_in[k].shape[1] * 6].reshape(2, -1, 3, 2)
        for k in ('offset', 'mask')[: 1 + modulated]
    }
    want = deform_by_definition(
        want_in['x'],
        fronts['offset'],
        want_in['weight'],
        fronts.get('mask'),
        want_in.get('bias'),
        stride,
        pad,
        dilation,
        groups,
    )
    (want * probe).sum().backward()

    got_in = {k: v.to(device).requires_grad_() for k, v in tensors.items()}
    geometry = (stride, pad, dilation, groups, deform_groups)
    if modulated:
        got = ops.modulated_deform_conv2d(
            got_in['x'],
            got_in['offset'],
            got_in['mask'],
            got_in['weight'],
            got_in['bias'],
            *geometry,
        )
    else:
        got = ops.deform_conv2d(
            got_in['x'], got_in['offset'], got_in['weight'], *geometry
        )
    (got * probe.to(device)).sum().backward()
    torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-11)
    for name, tensor in want_in.items():
        torch.testing.assert_close(
            got_in[name].grad.cpu(), tensor.grad, rtol=1e-9, atol=1e-11, msg=name
        )


# -- the rest -----------------------------------------------------------------------


def test_multi_scale_attention_kernels_run_under_autograd():
    """mmcv calls them on GPU only; here by the Function itself, gradcheck deciding."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    generator = torch.Generator().manual_seed(6)
    shapes = torch.tensor([[4, 3], [2, 2]])
    starts = torch.tensor([0, 12])
    value = torch.randn(1, 16, 2, 3, generator=generator, dtype=torch.float64)
    places = torch.rand(1, 2, 2, 2, 2, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, 2, 2, 2, 2, generator=generator, dtype=torch.float64)

    def run(value, places, weights):
        return MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, places, weights, 64
        )

    inputs = [t.requires_grad_() for t in (value, places, weights)]
    assert run(*inputs).shape == (1, 2, 6)
    assert torch.autograd.gradcheck(run, inputs)


def test_any_other_op_says_what_to_install():
    boxes = torch.rand(3, 4)
    with pytest.raises(NotImplementedError, match="'softnms'.*pip install mmcv"):
        ops.soft_nms(boxes, torch.rand(3))


def test_environment_report_of_mmcv_works():
    from mmcv.utils import collect_env

    assert 'torchvision' in collect_env()['MMCV Compiler']
