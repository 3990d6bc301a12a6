"""Official files as the converters that upstream ships read them, tensor by tensor."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from official_files import (
    MM,
    eva02,
    load,
    official_eva02,
    randomised,
    renamed,
)
from small_weights import image, randomise
from torch import nn

from mmpetl import compat

compat.install()

import mmdet.models.backbones as mmdet_backbones  # noqa: E402
import mmpretrain  # noqa: E402
import mmpretrain.models.backbones as mmpretrain_backbones  # noqa: E402
import mmseg  # noqa: E402
import mmseg.models.backbones as mmseg_backbones  # noqa: E402
from timm.models.twins import Twins  # noqa: E402


def tool(package, name: str):
    """A converter script of an upstream package, as a module."""
    path = Path(package.__file__).parent / '.mim/tools/model_converters' / f'{name}.py'
    runner = types.ModuleType('mmcv.runner')
    runner.CheckpointLoader = object
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    had = sys.modules.get('mmcv.runner')
    sys.modules['mmcv.runner'] = runner
    try:
        spec.loader.exec_module(module)
    finally:
        if had is None:
            del sys.modules['mmcv.runner']
        else:
            sys.modules['mmcv.runner'] = had
    return module


def drawn(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}


def pyramid(dims=(8, 16), depths=(1, 2), reductions=(2, 1), conv=True, table=()):
    """The names and shapes of SegFormer's and PVT's released encoders."""
    shapes: dict[str, tuple] = {}
    kernels = (7, 3) if conv else (4, 2)
    for s, d in enumerate(dims):
        inputs, k = (3, *dims)[s], kernels[s]
        shapes[f'patch_embed{s + 1}.proj.weight'] = (d, inputs, k, k)
        for name in (
            f'patch_embed{s + 1}.proj.bias',
            f'patch_embed{s + 1}.norm.weight',
        ):
            shapes[name] = (d,)
        shapes[f'patch_embed{s + 1}.norm.bias'] = (d,)
        if table:
            shapes[f'pos_embed{s + 1}'] = (1, table[s], d)
        for b in range(depths[s]):
            stem = f'block{s + 1}.{b}'
            linears = {'attn.q': (d, d), 'attn.kv': (2 * d, d), 'attn.proj': (d, d)}
            linears |= {'mlp.fc1': (2 * d, d), 'mlp.fc2': (d, 2 * d)}
            norms = ['norm1', 'norm2']
            if conv:
                linears['mlp.dwconv.dwconv'] = (2 * d, 1, 3, 3)
            if reductions[s] > 1:
                linears['attn.sr'] = (d, d, reductions[s], reductions[s])
                norms.append('attn.norm')
            for name, shape in linears.items():
                shapes[f'{stem}.{name}.weight'] = shape
                shapes[f'{stem}.{name}.bias'] = shape[:1]
            for name in norms:
                shapes[f'{stem}.{name}.weight'] = shapes[f'{stem}.{name}.bias'] = (d,)
        if conv:
            shapes[f'norm{s + 1}.weight'] = shapes[f'norm{s + 1}.bias'] = (d,)
    shapes['head.weight'], shapes['head.bias'] = (5, dims[-1]), (5,)
    return drawn(shapes)


def segformer():
    return mmseg_backbones.MixVisionTransformer(
        embed_dims=8,
        num_stages=2,
        num_layers=[1, 2],
        num_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[2, 1],
        mlp_ratio=2,
        qkv_bias=True,
        out_indices=(0, 1),
    )


def pvt():
    return mmdet_backbones.PyramidVisionTransformer(
        pretrain_img_size=28,
        embed_dims=8,
        num_stages=2,
        num_layers=[1, 2],
        num_heads=[1, 2],
        patch_sizes=[4, 2],
        strides=[4, 2],
        paddings=[0, 0],
        sr_ratios=[2, 1],
        mlp_ratios=[2, 2],
        out_indices=(0, 1),
    )


def agrees(model: nn.Module, state: dict, converted: dict, tmp_path: Path) -> None:
    """What was loaded is what upstream's converter gives, tensor by tensor."""
    report = load(model, state, tmp_path)
    own = model.state_dict()
    converted = {k.removeprefix('backbone.'): t for k, t in converted.items()}
    for name in report.matched:
        assert torch.equal(own[name], converted[name].reshape(own[name].shape)), name
    fresh = {name for name, _ in report.fresh}
    assert set(report.matched) | fresh >= {n for n, _ in model.named_parameters()}


def test_segformer_as_mmseg_converts_it(tmp_path):
    state = pyramid()
    convert = tool(mmseg, 'mit2mmseg').convert_mit
    agrees(segformer(), state, convert(state), tmp_path)


def test_pvt_as_mmdet_converts_it(tmp_path):
    from mmdet.models.backbones.pvt import pvt_convert

    state = pyramid(conv=False, table=(49, 9))
    agrees(pvt(), state, pvt_convert(state), tmp_path)


@pytest.mark.parametrize('kind', ['pcpvt', 'svt'])
def test_twins_as_upstream_converts_it(tmp_path, kind):
    sizes = dict(embed_dims=[8, 16], num_heads=[1, 2], depths=[2, 2], mlp_ratios=[2, 2])
    local = dict(wss=[2, 2]) if kind == 'svt' else {}
    reference = Twins(img_size=32, num_classes=3, sr_ratios=[2, 1], **local, **sizes)
    state = randomise(reference).state_dict()
    common = dict(patch_sizes=[4, 2], strides=[4, 2], sr_ratios=[2, 1])
    local = dict(windiow_sizes=[2, 2]) if kind == 'svt' else {}
    options = dict(out_indices=(1,), qkv_bias=True, norm_after_stage=False)
    model = getattr(mmseg_backbones, kind.upper())(
        **sizes, **common, **local, **options
    )
    convert = tool(mmseg, 'twins2mmseg').convert_twins
    args = types.SimpleNamespace(model=kind)
    agrees(model, state, convert(args, state), tmp_path)


def test_eva02_as_mmpretrain_converts_it(tmp_path):
    state = official_eva02(randomise(eva02()).state_dict())
    state['mask_token'] = torch.zeros(1, 1, 16)
    model = mmpretrain_backbones.ViTEVA02(
        sub_ln=True, final_norm=False, out_type='avg_featmap', **MM
    )
    convert = tool(mmpretrain, 'eva02_to_mmpretrain').convert_eva02
    agrees(model, state, convert(state), tmp_path)


def test_mscan(tmp_path, same_features):
    sizes = dict(embed_dims=[8, 16], depths=[1, 1], mlp_ratios=[2, 2], num_stages=2)
    reference = randomised(mmseg_backbones.MSCAN(**sizes))
    for name, buffer in reference.named_buffers():
        if name.endswith('running_mean'):
            buffer.fill_(0.3)
    official = renamed(reference.state_dict(), (r'\.dwconv\.', '.dwconv.dwconv.'))
    official['head.weight'] = torch.zeros(3, 16)
    model = mmseg_backbones.MSCAN(**sizes)
    report = load(model, official, tmp_path)
    assert report.layout == 'official SegNeXt'
    expected = reference(image(64))[-1]
    same_features(tuple(model(image(64))), expected, 0, 'SegNeXt | mmseg | mmseg')
