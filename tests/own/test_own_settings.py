"""Trunks, preprocessing, defaults, and what predictions come to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from painted import paint
from timm.data import create_transform, resolve_data_config

from mmpetl.core import PETLError
from mmpetl.datasets.own import find_pictures
from mmpetl.datasets.own.splits import divide
from mmpetl.models import TimmBackbone, petl_backbone
from mmpetl.own import settings_for, trunk_of
from mmpetl.own.auto import Tried, _choose, read_budget
from mmpetl.own.defaults import pipelines
from mmpetl.own.page import seconds_text
from mmpetl.own.results import results_of, share

MINI = str(Path(__file__).parents[2] / 'configs' / 'mini' / 'digits.py')


@pytest.mark.parametrize('name', ['test_vit', 'test_mambaout', 'test_efficientnet'])
def test_a_trunk_of_timm_gives_what_timm_gives(name):
    backbone = TimmBackbone(name).eval()
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(backbone.timm_model.state_dict())
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        (feature,) = backbone(x)
        assert torch.equal(feature, model(x))
    assert feature.shape == (2, backbone.feature_dims)
    assert trunk_of(f'timm/{name}', 'random').feature_dims == backbone.feature_dims


def test_a_file_of_timm_is_a_base(tmp_path):
    from safetensors.torch import save_file

    model = timm.create_model('test_vit').eval()
    save_file(model.state_dict(), tmp_path / 'base.safetensors')
    trunk = trunk_of('timm/test_vit', str(tmp_path / 'base.safetensors'))
    tuned = petl_backbone(trunk.backbone, 'LoRA', trunk.checkpoint).eval()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(
            tuned(x)[0], model.forward_head(model.forward_features(x), pre_logits=True)
        )
    assert trunk.weights == 'base.safetensors'


@pytest.mark.parametrize('name', ['test_vit', 'test_resnet'])
def test_pictures_go_through_what_timm_does(name, tmp_path):
    """Pixel for pixel: timm's own transform of the same file."""
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope
    from PIL import Image

    file = paint(tmp_path, 1, side=211) / 'red' / '00.png'
    with Image.open(file) as picture:
        picture.resize((240, 211)).save(file)
    trunk = trunk_of(f'timm/{name}', 'random')
    data = resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
    )
    with Image.open(file) as picture:
        wanted = create_transform(**data)(picture)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = Compose(pipelines(trunk, 'crop')[1])
        found = steps({'img_path': str(file)})['inputs'].flip(0).double()  # RGB
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (trunk.mean, trunk.std))
    assert torch.allclose((found - mean) / std, wanted.double(), atol=1e-5)


def test_a_config_of_a_classifier_is_a_trunk():
    trunk = trunk_of(MINI)
    assert (trunk.size, trunk.feature_dims) == ((32, 32), 96)
    assert trunk.weights == 'mini_vit.safetensors'
    assert trunk.mean == trunk.std == [127.5] * 3
    assert trunk.rgb
    assert [step['type'] for step in trunk.test] == ['Resize']
    assert trunk_of(MINI, 'random').checkpoint is None
    swin = trunk_of('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 'random')
    assert swin.backbone['type'] == 'mmpretrain.SwinTransformer'
    assert swin.neck == {'type': 'GlobalAveragePooling'}
    assert [step['type'] for step in swin.test] == ['ResizeEdge', 'CenterCrop']
    assert swin.rgb
    # Its statistics are of BGR.
    mobile = 'mmpretrain::mobilevit/mobilevit-small_8xb128_in1k.py'
    assert not trunk_of(mobile, 'random').rgb


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (('vit_base_patch16_224',), 'write timm/NAME'),
        (('timm/vit_bas_patch16_224',), "Did you mean 'vit_base_patch16_224'"),
        (('timm/test_vit', 'absent.pth'), 'no file of weights absent.pth'),
        (
            ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',),
            'names no weights',
        ),
        (  # it says how to draw them, which is no file
            ('mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py',),
            'names no weights',
        ),
        (  # a file whose name is left to whoever runs it
            ('mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py',),
            'names no weights',
        ),
        ((MINI, 'pretrained', 64), 'says itself what size'),
        (('timm/test_vit', 'random', 0), 'is a number of pixels, got 0'),
    ],
)
def test_what_is_no_trunk_is_one_line(args, match):
    with pytest.raises(PETLError, match=match):
        trunk_of(*args)


def test_what_timm_cannot_build_is_one_line():
    with pytest.raises(PETLError, match="Did you mean 'test_vit'"):
        TimmBackbone('test_vitt')
    with pytest.raises(PETLError, match="cannot build 'test_vit' with {'colour': 1}"):
        TimmBackbone('test_vit', model_args={'colour': 1})


def test_another_size_reaches_model_and_pictures():
    trunk = trunk_of('timm/test_vit', 'random', 96)
    assert trunk.backbone['model_args'] == {'img_size': 96}
    assert trunk.test[1]['crop_size'] == (96, 96)
    # A network of convolutions takes any size.
    assert trunk_of('timm/test_resnet', 'random', 96).backbone['model_args'] == {}


def test_fewer_pictures_are_seen_more_often():
    few, some, many = (settings_for(n) for n in (80, 1000, 50_000))
    assert (few.epochs, few.batch_size) == (100, 8)
    assert (some.epochs, some.batch_size, some.lr) == (100, 64, 1e-3)
    assert (many.epochs, many.batch_size) == (10, 64)
    assert (few.augmentation, many.augmentation) == ('strong', 'crop')
    assert few.lr == pytest.approx(1e-3 * (8 / 64) ** 0.5, rel=2e-3)
    assert settings_for(80, epochs=3).epochs == 3
    with pytest.raises(PETLError, match="no augmentation 'weak'"):
        settings_for(80, augmentation='weak')
    with pytest.raises(PETLError, match='epochs'):
        settings_for(80, epochs=0)


def test_results_count_what_was_said(tmp_path):
    splits = divide(find_pictures(paint(tmp_path, 10)), 0)  # 2 of each to test
    labels = np.array([e.label for e in splits.parts['test']])
    logits = np.full((6, 3), -1.0, np.float32)
    said = np.array([0, 2, 1, 1, 2, 0])
    logits[np.arange(6), said] = [3, 1, 3, 3, 3, 2]
    found = results_of(splits, logits, labels)
    assert found.confusion.tolist() == [[1, 0, 1], [0, 2, 0], [1, 0, 1]]
    assert found.accuracy == share(4, 6)
    assert found.commonest == pytest.approx(1 / 3)
    blue = found.classes[0]
    assert (blue.name, blue.trained, blue.taken_for) == ('blue', 8, ('red', 1))
    assert (blue.found.value, blue.sure.value) == (0.5, 0.5)
    assert [(m.name, m.called) for m in found.mistakes] == [
        ('red', 'blue'),
        ('blue', 'red'),
    ]
    score = np.exp(2) / (np.exp(2) + 2 * np.exp(-1))
    assert found.mistakes[0].score == pytest.approx(score)
    with pytest.raises(PETLError, match='not those of this work folder'):
        results_of(splits, logits[:5], labels[:5])


def test_the_interval_is_wilsons():
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148."""
    for right, of, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = share(right, of)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def tried(method: str, right: int, trained: int) -> Tried:
    return Tried(method, share(right, 100), 0.5, 2, trained, 1.0, {}, '')


def test_methods_that_are_not_told_apart_cost_decides():
    # One standard error of 90 of 100 is 3 points.
    a, b, c = tried('A', 90, 9000), tried('B', 88, 50), tried('C', 86, 1)
    chosen, why = _choose([a, b, c])
    assert chosen is b
    assert '(3.0 points)' in why
    assert 'B trains the fewest parameters of the trunk (50)' in why
    chosen, why = _choose([a, c])
    assert chosen is a
    assert 'no other comes within' in why


def test_budgets_and_durations_are_read_and_said():
    assert [read_budget(text) for text in ('90s', '20m', '1.5h')] == [90, 1200, 5400]
    for text in ('20', 'm', '-3m', 'nanm', 'infh', ''):
        with pytest.raises(PETLError, match='is written 90s'):
            read_budget(text)
    assert [seconds_text(s) for s in (0.18, 41, 200, 7500)] == [
        '180 ms',
        '41 s',
        '3 min 20 s',
        '2 h 5 min',
    ]
