"""FrameBackbone: a backbone of images over the frames of clips."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, PETLError, on_volumes
from mmpetl.models import FrameBackbone, petl_backbone

ARCH = {
    'embed_dims': 32,
    'num_layers': 2,
    'num_heads': 4,
    'feedforward_channels': 64,
}
IMAGES = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': ARCH,
    'img_size': 32,
    'patch_size': 8,
}


@pytest.mark.parametrize('stem_', ['mmpretrain_vit', 'mmpretrain_swin', 'timm_vit'])
@torch.no_grad()
def test_outputs_are_means_over_the_frames_of_a_clip(stem_):
    model, x = FrameBackbone(tiny.base(stem_), 3).eval(), torch.randn(2, 3, 3, 32, 32)
    each = [tiny.outputs(tiny.base(stem_), x[:, :, t]) for t in range(3)]
    outs = model(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    for got, frames in zip(outs, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(frames).mean(0))


def test_a_wrapper_inside_hands_the_number_of_frames_on():
    model = mmpetl.inject(FrameBackbone(tiny.base('mmpretrain_timm'), 3), 'AIM')
    assert tiny.core(model) is model.model.timm_model
    assert {site.frames for site in tiny.record(model).sites} == {3}


def test_a_config_with_a_file_of_images_and_a_delta_file(tmp_path):
    inner = tiny.base('mmpretrain_vit')
    torch.save(inner.state_dict(), tmp_path / 'images.pth')
    config = {'type': 'mmpetl.FrameBackbone', 'num_frames': 3, 'backbone': IMAGES}
    source = {'checkpoint': tmp_path / 'images.pth', 'method': {'type': 'AIM'}}
    model = petl_backbone(config, **source).eval()
    x = torch.randn(2, 3, 3, 32, 32)
    want = tiny.outputs(FrameBackbone(inner, 3).eval(), x)
    torch.testing.assert_close(tiny.outputs(model, x), want)
    tiny.shake_(model)
    mmpetl.save_delta(model, tmp_path / 'delta.safetensors')
    again = petl_backbone(config, **source).eval()
    mmpetl.load_delta(again, tmp_path / 'delta.safetensors')
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize('shape', [(2, 3, 32, 32), (2, 3, 4, 32, 32)])
def test_other_clips_are_refused(shape):
    with pytest.raises(PETLError, match=r'takes clips \(B, 3, 3, H, W\)'):
        FrameBackbone(tiny.base('mmpretrain_vit'), 3)(torch.zeros(shape))


def test_what_is_no_clip_and_what_names_its_weights_is_refused():
    with pytest.raises(PETLError, match='at least 2, got 1'):
        FrameBackbone(tiny.base('mmpretrain_vit'), 1)
    with pytest.raises(PETLError, match='drop init_cfg'):
        FrameBackbone({**IMAGES, 'init_cfg': {'type': 'Pretrained'}}, 3)


def test_what_gives_no_tensors_is_refused():
    class Mapped(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {'map': x}

    with pytest.raises(PETLError, match='gives a dict'):
        FrameBackbone(Mapped(), 2)(torch.zeros(1, 3, 2, 8, 8))


def test_volumes_of_the_batch_are_those_of_the_grid():
    x = torch.randn(4, 1 + 6, 5)
    conv = nn.Conv3d(5, 5, 3, padding=1)
    got = on_volumes(conv, x, Context((2, 3), 1, frames=2))
    joined = x[:, 1:].reshape(2, 12, 5)
    want = on_volumes(conv, joined, Context((2, 2, 3)))
    torch.testing.assert_close(got[:, 1:].reshape(2, 12, 5), want)
    assert torch.equal(got[:, :1], x[:, :1])
    front = x[:, :1]
    assert on_volumes(conv, front, Context((0, 0), 1, frames=2)) is front
