"""Trunks of detectors and segmentors: their maps, and the pyramid behind one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from mmpetl.core import PETLError
from mmpetl.models import SimplePyramid, TimmMaps, petl_backbone
from mmpetl.own import map_trunk_of
from mmpetl.own.maps import Map

CONFIGS = Path(__file__).parents[2] / 'configs' / 'mini'


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext'])
@pytest.mark.parametrize('method', [None, 'LoRA', 'BitFit'])
def test_maps_are_timms(name, method):
    args = {'img_size': 64} if name == 'test_vit' else {}
    config = {'type': 'mmpetl.TimmMaps', 'model_name': name, 'model_args': args}
    backbone = petl_backbone(config, method).eval()
    model = timm.create_model(name, num_classes=0, **args).eval()
    names = {key.removeprefix('timm_model.') for key in backbone.state_dict()}
    assert set(model.state_dict()) <= names
    state = {
        key.removeprefix('timm_model.'): value
        for key, value in backbone.state_dict().items()
        if '.petl.' not in key
    }
    model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(
            x,
            indices=backbone.out_indices,
            norm=backbone.normed,
            intermediates_only=True,
        )
        for found, one in zip(backbone(x), expected, strict=True):
            assert torch.allclose(found, one, atol=1e-5)
    assert len(expected) == (1 if name == 'test_vit' else 4)


def test_extra_tokens_do_not_leave():
    config = {
        'type': 'mmpetl.TimmMaps',
        'model_name': 'test_vit',
        'model_args': {'img_size': 64},
    }
    (found,) = petl_backbone(config, 'VPTDeep')(torch.randn(1, 3, 64, 64))
    assert found.shape == (1, 64, 4, 4)


def test_a_pyramid_is_deconvolutions_and_maxima():
    pyramid = SimplePyramid(8, [4, 2, 1, 0.5]).eval()
    x = torch.randn(2, 8, 4, 6)
    four, two, one, half = pyramid([torch.zeros(1), x])
    assert [y.shape[1] for y in (four, two, one, half)] == pyramid.out_channels
    assert four.shape == (2, 2, 16, 24)
    assert torch.equal(one, x)
    assert torch.equal(half, x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))
    layer = pyramid.levels[1][0]
    wanted = torch.einsum('bcij,coxy->boixjy', x, layer.weight).reshape(2, 4, 8, 12)
    assert torch.allclose(two, wanted + layer.bias.view(1, -1, 1, 1), atol=1e-5)
    with pytest.raises(PETLError, match='scales are of'):
        SimplePyramid(8, [8])
    with pytest.raises(PETLError, match='6 cannot be divided by 4'):
        SimplePyramid(6, [4])


def test_levels_follow_from_the_maps():
    plain = map_trunk_of('timm/test_vit', 'random', 96)
    assert (plain.maps, plain.side) == ((Map(64, 16),), 96)
    taken, levels, scales = plain.levels(8)
    assert scales == [2, 1, 0.5]
    assert levels == [Map(32, 8), Map(64, 16), Map(64, 32)]
    assert [one.stride for one in plain.levels(4)[1]] == [4, 8, 16, 32]
    assert plain.backbone['model_args'] == {'img_size': 96}
    convolutions = map_trunk_of('timm/test_convnext', 'random', 64)
    taken, levels, scales = convolutions.levels(8)
    assert (taken, scales) == ([1, 2, 3], [])
    assert [one.stride for one in levels] == [8, 16, 32]
    of_config = map_trunk_of(str(CONFIGS / 'coco.py'), size=64)
    assert of_config.maps == (Map(24, 4), Map(48, 8), Map(96, 16), Map(192, 32))
    assert of_config.weights == 'mini_swin.safetensors'
    assert of_config.rgb
    caffe = map_trunk_of('mmdet::retinanet/retinanet_r50-caffe_fpn_1x_coco.py', size=64)
    assert (caffe.rgb, caffe.mean[0]) == (False, 103.53)


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (('timm/test_vit', 'random', 100), 'multiples of 32 here, got 100; 96 is near'),
        (('timm/inception_v3', 'random', 96), 'stand for no whole number of pixels'),
        (('test_vit',), 'a config of a detector or segmentor'),
        ((str(CONFIGS / 'digits.py'),), 'no config of a detector or a segmentor'),
        (('timm/test_vitt',), "Did you mean 'test_vit'"),
        (('timm/test_vit', 'absent.pth'), 'no file of weights'),
    ],
)
def test_what_makes_no_maps_is_one_line(args, match):
    with pytest.raises(PETLError, match=match):
        map_trunk_of(*args)


def test_places_that_are_not_there_are_refused():
    with pytest.raises(PETLError, match=r'makes 4 maps, asked for are \[7\]'):
        TimmMaps('test_convnext', [7])
