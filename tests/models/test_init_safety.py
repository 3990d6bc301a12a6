"""The base stays as it is, whatever a model does to initialise itself afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmpetl import compat

compat.install()


from mmengine.model import BaseModule, initialize  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402

from mmpetl.core import (  # noqa: E402
    PETLError,
    base_changes,
    delta_state,
    eject,
    fingerprint,
    inject,
    injection_of,
)
from mmpetl.models import petl_backbone  # noqa: E402

ARCHS = {
    'vit': {
        'type': 'mmpretrain.VisionTransformer',
        'arch': {
            'embed_dims': 32,
            'num_layers': 2,
            'num_heads': 4,
            'feedforward_channels': 64,
        },
        'img_size': 32,
        'patch_size': 8,
    },
    'swin': {
        'type': 'mmpretrain.SwinTransformer',
        'arch': {'embed_dims': 16, 'depths': (2, 2), 'num_heads': (2, 4)},
        'img_size': 32,
        'patch_size': 4,
        'window_size': 4,
        'out_indices': (0, 1),
        'pad_small_map': True,
    },
    'timm': {
        'type': 'mmpretrain.TIMMBackbone',
        'model_name': 'vit_tiny_patch16_224',
        'img_size': 32,
        'patch_size': 8,
        'embed_dim': 32,
        'depth': 2,
        'num_heads': 4,
    },
}
WIDTH = {'vit': 32, 'swin': 32, 'timm': 32}

INITS = {
    # mmpretrain's _base_/models/swin_transformer/*.py
    'swin': [
        {'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02, 'bias': 0.0},
        {'type': 'Constant', 'layer': 'LayerNorm', 'val': 1.0, 'bias': 0.0},
    ],
    # its ViT's, T2T's and others'
    'kaiming': [
        {'type': 'Kaiming', 'layer': 'Conv2d', 'mode': 'fan_in'},
        {'type': 'TruncNormal', 'layer': ['Conv2d', 'Linear'], 'std': 0.02},
    ],
    'normal': {'type': 'Normal', 'layer': ['Linear', 'Conv2d'], 'std': 0.01},
    'uniform': {'type': 'Uniform', 'layer': 'Linear', 'a': -1, 'b': 1},
    'xavier': {'type': 'Xavier', 'layer': ['Linear', 'Conv2d']},
    'caffe2': {'type': 'Caffe2Xavier', 'layer': ['Linear', 'Conv2d']},
    'override': {
        'type': 'Constant',
        'layer': 'Linear',
        'val': 3.0,
        'override': {'type': 'Constant', 'name': 'backbone', 'val': 5.0, 'bias': 5.0},
    },
}


def backbone_config(arch: str, method: str = 'LoRA', **kwargs) -> dict:
    return {
        'type': 'mmpetl.PETLBackbone',
        'backbone': copy.deepcopy(ARCHS[arch]),
        'method': method,
        **kwargs,
    }


def classifier(arch: str = 'vit', init_cfg=None, **kwargs) -> nn.Module:
    head = {'type': 'LinearClsHead', 'num_classes': 5, 'in_channels': WIDTH[arch]}
    config = {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': backbone_config(arch, **kwargs),
        'head': {**head, 'init_cfg': None},
        'init_cfg': init_cfg,
    }
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(config)


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_kept(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = module.state_dict()
    assert set(after) == set(before)
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    assert changed == []
    assert base_changes(module) == []


@pytest.mark.parametrize('init', INITS)
@pytest.mark.parametrize('arch', ARCHS)
def test_a_models_init_cfg_leaves_the_backbone_alone(arch, init):
    model = classifier(arch, INITS[init])
    before, head = values(model.backbone), model.head.fc.weight.clone()
    model.init_weights()
    assert_kept(model.backbone, before)
    assert not torch.equal(model.head.fc.weight, head)
    assert not hasattr(model.backbone, '_params_init_info')
    assert_kept(copy.deepcopy(model).backbone, before)


@pytest.mark.parametrize('method', ['BitFit', 'VPTDeep', 'SSF', 'Full'])
def test_what_the_method_holds_is_kept_too(method):
    model = classifier('vit', INITS['swin'], method=method)
    before = values(model.backbone)
    model.init_weights()
    assert_kept(model.backbone, before)


def test_initialisers_called_by_hand_leave_the_backbone_alone():
    model = classifier('vit')
    before = values(model.backbone)
    initialize(model, INITS['swin'])
    assert_kept(model.backbone, before)

    def draw(module: nn.Module) -> None:
        for name in ('weight', 'bias'):
            if isinstance(getattr(module, name, None), nn.Parameter):
                getattr(module, name).data.normal_()

    assert model.apply(draw) is model
    assert_kept(model.backbone, before)
    model.backbone.init_weights()
    assert_kept(model.backbone, before)


def test_apply_still_reaches_every_module():
    model = classifier('vit')
    seen = []
    model.apply(seen.append)
    assert set(map(id, seen)) == set(map(id, model.modules()))


class Redraws(BaseModule):
    """A model whose own ``init_weights`` loops over all that it holds."""

    def __init__(self, backbone: nn.Module, init_cfg=None) -> None:
        super().__init__(init_cfg)
        self.inner = nn.ModuleDict({'backbone': backbone})
        self.neck = Neck(self)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.constant_(module.weight, 7.0)
        super().init_weights()


class Neck(BaseModule):
    """Its ``init_weights`` reaches up into the model, by parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.__dict__['model'] = model

    def init_weights(self) -> None:
        for param in self.__dict__['model'].parameters():
            param.data.fill_(7.0)


def test_loops_over_modules_and_parameters_inside_of_init_weights_are_undone():
    backbone = petl_backbone(ARCHS['vit'], 'LoRA')
    before = values(backbone)
    model = Redraws(backbone, INITS['swin'])
    BaseModule.init_weights(model)
    assert_kept(backbone, before)
    assert model.neck.fc.weight.eq(7).all()


def test_two_backbones_in_one_model_are_both_kept():
    first, second = (petl_backbone(ARCHS[a], 'LoRA') for a in ('vit', 'swin'))
    model = BaseModule(INITS['swin'])
    model.first, model.second = first, second
    before = values(first), values(second)
    model.init_weights()
    assert_kept(first, before[0])
    assert_kept(second, before[1])


def test_a_backbone_injected_by_hand_is_kept_as_it_was_injected():
    from mmpretrain.models import VisionTransformer

    args = {k: v for k, v in ARCHS['vit'].items() if k != 'type'}
    model = BaseModule(INITS['swin'])
    model.backbone = VisionTransformer(**args)
    model.init_weights()
    model._is_init = False
    inject(model.backbone, 'LoRA')
    before = values(model.backbone)
    model.init_weights()
    assert_kept(model.backbone, before)
    eject(model.backbone)
    assert type(model.backbone) is VisionTransformer


# --- Pretrained at the level of the model ------------------------------------------


def saved(tmp_path, model: nn.Module, keep=lambda key: True):
    state = {k: v.clone() for k, v in model.state_dict().items() if keep(k)}
    path = tmp_path / 'model.pth'
    torch.save({'state_dict': state, 'meta': {}}, path)
    return path


def test_a_models_pretrained_of_the_same_base_loads_the_head(tmp_path):
    source = classifier('vit')
    path = saved(tmp_path, source)
    model = classifier('vit', {'type': 'Pretrained', 'checkpoint': str(path)})
    state = {k: v for k, v in source.state_dict().items() if 'petl' not in k}
    model.backbone.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in state.items() if 'head' not in k},
        strict=False,
    )
    injection_of(model)[1].digests.update(injection_of(source)[1].digests)
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert base_changes(model) == []


def test_a_models_pretrained_may_hold_a_delta(tmp_path):
    model = classifier('vit', INITS['swin'])
    with torch.no_grad():
        for value in delta_state(model).values():
            value.add_(1)
    path = saved(tmp_path, model, lambda key: 'petl' in key)
    model.init_cfg += [{'type': 'Pretrained', 'checkpoint': str(path)}]
    with torch.no_grad():
        for value in delta_state(model).values():
            value.zero_()
    model.init_weights()
    loaded = torch.load(path, weights_only=True)['state_dict']
    for key, value in loaded.items():
        assert torch.equal(model.state_dict()[key], value)


def test_a_models_pretrained_of_another_base_stops(tmp_path):
    torch.manual_seed(1)
    path = saved(tmp_path, classifier('vit'))
    torch.manual_seed(2)
    model = classifier('vit', {'type': 'Pretrained', 'checkpoint': str(path)})
    with pytest.raises(PETLError, match='loads another base over the injected') as stop:
        model.init_weights()
    assert '\n' not in str(stop.value)
    assert '`checkpoint` of mmpetl.PETLBackbone' in str(stop.value)


# --- a plain backbone: its base is loaded again behind the model's initialiser ------


@pytest.mark.parametrize('init', INITS)
def test_a_base_without_a_method_survives_as_upstreams_does(tmp_path, init):
    source = petl_backbone(ARCHS['vit'])
    path = tmp_path / 'base.pth'
    torch.save(source.state_dict(), path)
    model = classifier('vit', INITS[init], method=None, checkpoint=str(path))
    model = copy.deepcopy(model)
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value)


# --- models of mmseg and mmdet ------------------------------------------------------


def test_a_segmentor_initialises_its_heads_alone():
    norm = {'type': 'BN', 'requires_grad': True}
    head = {
        'type': 'FCNHead',
        'in_channels': 32,
        'in_index': 1,
        'channels': 8,
        'num_classes': 3,
        'norm_cfg': norm,
    }
    config = {
        'type': 'mmseg.EncoderDecoder',
        'backbone': backbone_config('swin', 'Mona'),
        'decode_head': head,
        'auxiliary_head': {**head, 'in_index': 0, 'in_channels': 16},
        'init_cfg': INITS['kaiming'],
    }
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config)
    before, conv = values(model.backbone), model.decode_head.conv_seg.weight.clone()
    model.init_weights()
    assert_kept(model.backbone, before)
    assert not torch.equal(model.decode_head.conv_seg.weight, conv)


@pytest.mark.parametrize('kind', ['RetinaNet', 'DeformableDETR'])
def test_a_detector_initialises_its_parts_alone(kind):
    from mmengine.config import Config
    from mmengine.hub import get_config

    name = {
        'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'DeformableDETR': 'mmdet::deformable_detr/'
        'deformable-detr_r50_16xb2-50e_coco.py',
    }[kind]
    config = Config(get_config(name)._cfg_dict.to_dict()).model
    config.backbone = backbone_config('swin')
    config.neck.in_channels = [16, 32]
    if kind == 'RetinaNet':
        config.neck.start_level = 0
    else:
        config.neck.num_outs = 4
        for part in ('encoder', 'decoder'):
            config[part].num_layers = 1
    config.init_cfg = INITS['swin']
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config)
    before, mark = values(model.backbone), fingerprint(model)
    model.init_weights()
    model.init_weights()
    assert_kept(model.backbone, before)
    assert fingerprint(model) == mark


@pytest.mark.parametrize('empty', ['', None])
def test_a_file_that_is_to_be_named_is_named_as_checkpoint(empty, tmp_path):
    entry = {'type': 'Pretrained', 'checkpoint': empty, 'prefix': 'backbone.'}
    trunk = {**ARCHS['vit'], 'init_cfg': entry}
    with pytest.raises(
        PETLError, match=r"^init_cfg of VisionTransformer has checkpoint=''"
    ):
        petl_backbone(trunk, 'LoRA')
    file = tmp_path / 'base.pth'
    plain = MODELS.build(ARCHS['vit'])
    torch.save({'state_dict': plain.state_dict()}, file)
    tuned = petl_backbone(trunk, 'LoRA', checkpoint=str(file))
    assert not tuned.init_cfg
    for name, value in plain.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], value), name


def test_counts_need_no_file_that_a_trunk_names():
    from mmengine.config import Config

    from mmpetl.apis.counting import count_config

    entry = {'type': 'Pretrained', 'checkpoint': 'nowhere.pth'}
    trunk = {**ARCHS['vit'], 'init_cfg': entry}
    node = {
        'type': 'mmpetl.PETLBackbone',
        'backbone': trunk,
        'method': {'type': 'LoRA'},
    }
    head = {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 32}
    model = {'type': 'ImageClassifier', 'backbone': node, 'head': head}
    config = Config({'model': model, 'default_scope': 'mmpretrain'})
    found = count_config(config)
    entry['checkpoint'] = ''
    assert count_config(Config({**config, 'model': model})) == found
