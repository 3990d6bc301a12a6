"""What is particular to models of transformers."""

from __future__ import annotations

import copy
import pickle
import re
from functools import partial

import pytest
import torch
from tiny import TINY, Everything, Nothing, outputs, randomise_, shake_
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, eject, find_injected, fold, inject, load_delta
from mmpetl.models import HFBackbone, petl_backbone
from mmpetl.registry import MODELS

transformers = pytest.importorskip('transformers')

SIZE = {
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'image_size': 32,
    'patch_size': 8,
}
WIDE = SIZE | {'intermediate_size': 64}
CONFIGS = {
    'vit': WIDE,
    'dinov2': SIZE,
    'dinov2_with_registers': SIZE | {'num_register_tokens': 3},
    'dinov3_vit': WIDE | {'num_register_tokens': 2},
    'clip': WIDE,
    'siglip': WIDE,
    'beit': WIDE | {'use_relative_position_bias': True},
}


def config(kind: str, **args) -> dict:
    """Of a tiny model, as HFBackbone takes it."""
    return {'model_type': kind, **CONFIGS[kind], **args}


def drawn(kind: str, **args) -> HFBackbone:
    """A wrapped tiny model with random values, in eval mode."""
    return randomise_(HFBackbone(config(kind), pretrained=False, **args)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def shaken(model: nn.Module, method='VPTDeep') -> nn.Module:
    """Injected, and computing something else than the base."""
    inject(model, method)
    shake_(model)
    return model.eval()


@pytest.mark.parametrize(
    ('kind', 'args'),
    [
        ('dinov2', {'use_swiglu_ffn': True}),
        ('dinov3_vit', {'use_gated_mlp': True}),
        ('vit', {'qkv_bias': False, 'hidden_dropout_prob': 0.3}),
        ('vit', {'attn_implementation': 'eager', 'hidden_act': 'gelu_new'}),
    ],
    ids=['dinov2-gated', 'dinov3-gated', 'vit-dropout', 'vit-eager'],
)
def test_options_agree_with_upstream(kind: str, args: dict, x: Tensor) -> None:
    model = HFBackbone(config(kind, **args), pretrained=False).model.double()
    randomise_(model)
    ours = inject(copy.deepcopy(model), Everything())
    for train in (False, True):
        found = []
        for m in (model, ours):
            m.train(train).zero_grad()
            torch.manual_seed(1)
            y = m(x.double()).last_hidden_state
            y.square().sum().backward()
            found.append((y, {n: p.grad for n, p in m.named_parameters()}))
        (y, grads), (z, others) = found
        # Upstream's plain attention of ViT takes its softmax in single precision.
        near = {'rtol': 1e-3, 'atol': 1e-4} if 'attn_implementation' in args else {}
        torch.testing.assert_close(z, y, **near)
        for name, grad in grads.items():
            assert (grad is None) == (others[name] is None), name
            if grad is not None:
                torch.testing.assert_close(others[name], grad, msg=name, **near)


DEEP = (
    'beit',
    'convnext',
    'convnext_v2',
    'dinov2',
    'dinov2_registers',
    'dinov3',
    'segformer',
    'swin',
    'vjepa2',
)
"""Trunks with stochastic depth, whose class is another in each."""


@pytest.mark.parametrize('kind', DEEP)
@torch.no_grad()
def test_stochastic_depth_of_a_frozen_trunk_acts_where_it_is_asked_for(
    kind: str,
) -> None:
    entry = TINY[f'transformers_{kind}']
    plain = randomise_(entry.build(drop_path_rate=0.6)).double().eval()
    acts = inject(copy.deepcopy(plain), 'LoRA', frozen_drop_path=True).train()
    still = inject(copy.deepcopy(plain), 'LoRA').train()
    x = torch.randn(4, *entry.shape, dtype=torch.float64)
    want = outputs(partial(entry.forward, plain), x)
    for module in plain.modules():
        if type(module).__name__.endswith('DropPath'):
            module.training = True
    found = []
    for model in (plain, acts, still):
        torch.manual_seed(3)
        found.append(outputs(partial(entry.forward, model), x))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], want)
    assert not torch.allclose(found[0][-1], want[-1])


@pytest.mark.parametrize('kind', CONFIGS)
@torch.no_grad()
def test_recorded_states_hold_no_extra_tokens(kind: str, x: Tensor) -> None:
    model = drawn(kind).model
    plain = model(x, output_hidden_states=True)
    inject(model, Nothing())
    swapped = model(x, output_hidden_states=True)
    assert len(plain.hidden_states) == 4
    for ours, theirs in zip(swapped.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    prompted = shaken(eject(model))(x, output_hidden_states=True)
    shapes = [h.shape for h in plain.hidden_states]
    assert [h.shape for h in prompted.hidden_states] == shapes
    assert prompted.last_hidden_state.shape == plain.last_hidden_state.shape
    assert not torch.allclose(prompted.last_hidden_state, plain.last_hidden_state)
    # One state alone, and a tuple, as upstream gives them.
    some = model(x, output_hidden_states=[-1]).hidden_states
    assert [h is None for h in some] == [True, True, True, False]
    listed = model(x, return_dict=False)
    assert isinstance(listed, tuple)
    assert torch.equal(listed[0], prompted.last_hidden_state)


@torch.no_grad()
def test_rotary_positions_leave_prompts_alone(x: Tensor) -> None:
    """By upstream's own layers on a sequence that holds the prompts."""
    model = drawn('dinov3_vit').model
    shaken(model, {'type': 'VPTShallow', 'num_tokens': 3})
    ours = model(x).last_hidden_state
    prompts = next(p for n, p in model.named_parameters() if '.petl.' in n)
    prompts = prompts.detach().view(1, 3, 32)
    eject(model)
    rope = model.rope_embeddings(x)
    h = model.embeddings(x)
    h = torch.cat((h[:, :3], prompts.expand(2, -1, -1), h[:, 3:]), dim=1)
    h = model.norm(model.model(h, position_embeddings=rope).last_hidden_state)
    theirs = torch.cat((h[:, :3], h[:, 6:]), dim=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_checkpointing_saves_and_agrees_over_a_frozen_trunk(x: Tensor) -> None:
    model = shaken(drawn('dinov2').model).train()
    calls = []
    layer = model.encoder.layer[1]
    layer.norm1.register_forward_hook(lambda *_: calls.append(1))
    grads = []
    for reentrant in (None, True, False):
        if reentrant is not None:
            model.gradient_checkpointing_enable({'use_reentrant': reentrant})
        model.zero_grad()
        calls.clear()
        torch.manual_seed(1)
        model(x).last_hidden_state.square().sum().backward()
        assert len(calls) == (1 if reentrant is None else 2)
        found = model.named_parameters()
        grads.append({n: p.grad.clone() for n, p in found if p.grad is not None})
    assert grads[0]
    for other in grads[1:]:
        assert other.keys() == grads[0].keys()
        for name, grad in grads[0].items():
            torch.testing.assert_close(other[name], grad, msg=name)
    model.gradient_checkpointing_disable()
    model(x).last_hidden_state.sum().backward()
    assert len(calls) == 3


@torch.no_grad()
def test_a_pass_ends_with_an_error_too(x: Tensor) -> None:
    model = shaken(drawn('vit').model)
    before = model(x).last_hidden_state

    def stop(*_: object) -> None:
        raise RuntimeError('stop')

    handle = model.layers[1].mlp.fc1.register_forward_hook(stop)
    with pytest.raises(RuntimeError, match='stop'):
        model(x)
    handle.remove()
    with pytest.raises(PETLError, match='call the model as a whole'):
        model.layers[0](torch.zeros(1, 17, 32))
    assert torch.equal(model(x).last_hidden_state, before)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x).last_hidden_state, before)


@torch.no_grad()
def test_a_pass_inside_of_a_pass(x: Tensor) -> None:
    """A hook of one injected model that runs another, of another grid."""
    outer, inner = shaken(drawn('vit').model), shaken(drawn('dinov2').model)
    before, small = outer(x).last_hidden_state, torch.randn(1, 3, 48, 40)
    alone = inner(small).last_hidden_state
    found = []
    outer.layers[1].mlp.register_forward_hook(lambda *_: None)
    outer.layers[0].layernorm_after.register_forward_hook(
        lambda *_: found.append(inner(small).last_hidden_state)
    )
    assert torch.equal(outer(x).last_hidden_state, before)
    assert torch.equal(found[0], alone)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'attention_mask': torch.ones(2, 17)}, 'takes no attention_mask'),
        ({'output_attentions': True}, 'records no attentions'),
    ],
    ids=['mask', 'attentions'],
)
def test_what_a_pass_refuses(given: dict, said: str, x: Tensor) -> None:
    model = inject(drawn('vit').model, 'LoRA')
    with pytest.raises(PETLError, match=said):
        model(x, **given)


def test_a_mask_that_drops_patches_is_refused() -> None:
    args = {'num_frames': 4, **WIDE}
    model = transformers.VideoMAEModel(transformers.VideoMAEConfig(**args))
    inject(model, 'LoRA')
    mask = torch.zeros(1, 32, dtype=torch.bool)
    with pytest.raises(PETLError, match='takes no bool_masked_pos'):
        model(torch.randn(1, 4, 3, 32, 32), bool_masked_pos=mask)


def test_folding_needs_a_bias_where_one_matters() -> None:
    for kind, where in (('dinov3_vit', 'attn.qkv'), ('clip', 'embed.proj')):
        model = shaken(drawn(kind).model, 'SSF')
        with pytest.raises(PETLError, match=f'{where} has no bias to fold'):
            fold(model)


def holders() -> dict[str, nn.Module]:
    """Classifiers and the like around tiny models."""
    t = transformers
    vision = {'vision_config': WIDE, 'text_config': {'num_hidden_layers': 1}}
    pair = t.CLIPConfig(**vision)
    beit = t.BeitConfig(**CONFIGS['beit'], num_labels=5)
    return {
        'vit': t.ViTForImageClassification(t.ViTConfig(**WIDE, num_labels=5)),
        'dinov2': t.Dinov2ForImageClassification(t.Dinov2Config(**SIZE)),
        'clip': t.CLIPForImageClassification(pair),
        'clip_projected': t.CLIPVisionModelWithProjection(pair.vision_config),
        'siglip': t.SiglipForImageClassification(t.SiglipConfig(**vision)),
        'beit': t.BeitForImageClassification(beit),
    }


@pytest.mark.parametrize('kind', list(holders()))
def test_classifiers_hold_their_trunk(kind: str, x: Tensor) -> None:
    model = randomise_(holders()[kind]).eval()
    plain = model(x)[0]
    classes = [type(m) for m in model.modules()]
    inject(model, {'type': 'LoRA', 'rank': 2})
    torch.testing.assert_close(model(x)[0], plain, rtol=1e-4, atol=1e-4)
    core = find_injected(model)[0][1]
    assert type(core).__name__.startswith('PETL')
    shake_(model)
    assert not torch.allclose(model(x)[0], plain)
    inside = {id(p) for p in core.parameters()}
    head = [p for p in model.parameters() if id(p) not in inside]
    assert head
    assert all(p.requires_grad for p in head)
    eject(model)
    assert [type(m) for m in model.modules()] == classes


def test_files_of_transformers_hold_no_mixture(tmp_path) -> None:
    model = holders()['vit']
    inject(model, 'LoRA')
    for saved in (model, model.vit):
        with pytest.raises(PETLError, match=r'mmpetl\.save_delta'):
            saved.save_pretrained(tmp_path)
    assert not [*tmp_path.glob('*.safetensors'), *tmp_path.glob('*.bin')]
    with pytest.raises(PETLError, match=r'ViTModel\.from_pretrained'):
        type(model.vit).from_pretrained(tmp_path)
    fold(model)
    assert type(model.vit) is transformers.ViTModel
    model.save_pretrained(tmp_path)
    transformers.ViTForImageClassification.from_pretrained(tmp_path)


@torch.no_grad()
def test_a_delta_on_what_from_pretrained_loads(tmp_path, x: Tensor) -> None:
    randomise_(drawn('dinov2').model).save_pretrained(tmp_path / 'base')
    load = partial(transformers.Dinov2Model.from_pretrained, tmp_path / 'base')
    model = shaken(load().eval())
    mmpetl.save_delta(model, tmp_path / 'delta.safetensors')
    other = inject(load().eval(), 'VPTDeep')
    load_delta(other, tmp_path / 'delta.safetensors')
    ours, theirs = (m(x).last_hidden_state for m in (other, model))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize('kind', CONFIGS)
@torch.no_grad()
def test_maps_of_the_wrapper_are_upstreams(kind: str) -> None:
    model, x = drawn(kind, out_indices=(0, 2)), torch.randn(2, 3, 40, 40)
    inner, own = model.model, model.num_prefix_tokens
    call = {} if 'dino' in kind else {'interpolate_pos_encoding': True}
    seen = inner(x, output_hidden_states=True, **call).hidden_states
    norm = {'dinov3_vit': 'norm', 'clip': 'post_layernorm', 'siglip': 'post_layernorm'}
    norm = getattr(inner, norm.get(kind, 'layernorm'))
    maps = model(x)
    for y, i in zip(maps, (1, 3), strict=True):
        h = norm(seen[i])[:, own:].mT.reshape(2, 32, 5, 5)
        torch.testing.assert_close(y, h, rtol=1e-5, atol=1e-5)
        assert y.is_contiguous()
    inject(model, Nothing())
    for y, z in zip(model(x), maps, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)
    eject(model)
    shaken(model, 'SSF')
    for y, z in zip(model(x), maps, strict=True):
        assert not torch.allclose(y, z)
    eject(model)
    inject(model, 'VPTDeep')
    assert [y.shape for y in model(x)] == [y.shape for y in maps]


def test_in_a_classifier_of_mmpretrain(x: Tensor) -> None:
    """One line adds a method; the optimizer's step trains deltas and head."""
    backbone = {'type': 'mmpetl.HFBackbone', 'name_or_config': config('dinov2')}
    backbone |= {'pretrained': False, 'out_type': 'cls_token'}
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': 32}
    model = MODELS.build(
        {
            'type': 'mmpetl.PETLModel',
            'of': 'mmpretrain.ImageClassifier',
            'petl': 'LoRA',
            'backbone': backbone,
            'head': head,
        }
    )
    assert isinstance(model.backbone, HFBackbone)
    before = {n: p.clone() for n, p in model.backbone.named_parameters()}
    model.init_weights()
    assert all(torch.equal(p, before[n]) for n, p in model.backbone.named_parameters())
    scores = model.head((model.backbone(x)[-1],))
    scores.sum().backward()
    found = {n for n, p in model.named_parameters() if p.grad is not None}
    assert all('.petl.' in n or n.startswith('head.') for n in found)
    assert any('.petl.' in n for n in found)


def test_registers_stand_in_no_map() -> None:
    model = drawn('dinov2_with_registers', out_type='cls_token')
    assert model.num_prefix_tokens == 4
    (y,) = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 32)


@torch.no_grad()
def test_as_a_config_of_mm_packages(tmp_path, x: Tensor) -> None:
    """Built, saved, and filled from a folder of transformers."""
    drawn('vit').model.save_pretrained(tmp_path / 'base')
    plain = {'type': 'mmpetl.HFBackbone', 'name_or_config': str(tmp_path / 'base')}
    backbone = plain | {'out_indices': (1, -1), 'out_type': 'cls_token'}
    build = partial(petl_backbone, backbone=backbone, method='LoRA')
    model = build().eval()
    assert [y.shape for y in model(x)] == [(2, 32)] * 2
    shake_(model)
    mmpetl.save_delta(model, tmp_path / 'delta.safetensors')
    other = load_delta(build().eval(), tmp_path / 'delta.safetensors')
    other.init_weights()
    assert all(map(torch.equal, other(x), model(x)))
    anew = {'backbone': backbone | {'pretrained': False}}
    with pytest.raises(PETLError, match='base'):
        load_delta(build(**anew), tmp_path / 'delta.safetensors')
    filled = build(**anew, checkpoint=str(tmp_path / 'base')).eval()
    load_delta(filled, tmp_path / 'delta.safetensors')
    assert all(map(torch.equal, filled(x), model(x)))


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ({'name_or_config': {'hidden_size': 8}}, 'names its model_type'),
        ({'name_or_config': {'model_type': 'vitt'}}, 'finds no model'),
        ({'name_or_config': {'model_type': 'bert'}}, 'no plain sequence of tokens'),
        ({'name_or_config': '/nowhere/at/all'}, 'finds no model'),
        ({'pretrained': True}, 'has no weights'),
        ({'out_indices': (3,)}, 'numbers from 0 to 2'),
        ({'out_type': 'raw'}, 'out_type is featmap'),
    ],
    ids=[
        'no-type',
        'unknown-type',
        'text',
        'no-folder',
        'weights',
        'index',
        'out-type',
    ],
)
def test_what_the_wrapper_refuses(args: dict, said: str) -> None:
    with pytest.raises(PETLError, match=said) as info:
        HFBackbone(**{'name_or_config': config('vit'), 'pretrained': False} | args)
    assert '\n' not in str(info.value)


def test_no_class_token_to_hand_out() -> None:
    with pytest.raises(PETLError, match='has no class token'):
        drawn('siglip', out_type='cls_token')


def test_old_releases_are_refused_in_one_line(monkeypatch) -> None:
    from mmpetl.backbones.shared import transformers_models

    monkeypatch.setattr(transformers_models.transformers, '__version__', '4.53.0')
    with pytest.raises(PETLError, match='pip install'):
        transformers_models.check_release()


def test_heads_of_trunks_are_no_projections() -> None:
    """Poolers, pooling heads and predictors are left alone by all but Full."""
    model = transformers.ViTModel(transformers.ViTConfig(**WIDE))
    inject(model, 'BitFit')
    assert not model.pooler.dense.bias.requires_grad
    assert model.layers[0].mlp.fc1.bias.requires_grad


class Tokens(nn.Module):
    """What TorchScript can trace: tensors in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The sequence of the model."""
        return self.model(x).last_hidden_state


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['vit', 'dinov3_vit'])
@torch.no_grad()
def test_traced_and_compiled(kind: str, x: Tensor) -> None:
    model = Tokens(shaken(drawn(kind).model)).eval()
    y, more = model(x), torch.randn(3, 3, 32, 32)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), y)
    torch.testing.assert_close(traced(more), model(more))
    whole = torch.compile(model, backend='eager', fullgraph=True)
    torch.testing.assert_close(whole(x), y)
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), y)
    assert torch.equal(model(x), y)


STATES = {
    'dinov2': ('Dinov2', {}),
    'dinov2-gated': ('Dinov2', {'use_swiglu_ffn': True, 'out_indices': [0, 1]}),
    'dinov2-plain': ('Dinov2', {'apply_layernorm': False, 'out_indices': [0, 2, 3]}),
    'registers': ('Dinov2WithRegisters', {'num_register_tokens': 3}),
    'registers-tokens': (
        'Dinov2WithRegisters',
        {'reshape_hidden_states': False, 'out_features': ['stem', 'stage2']},
    ),
    'dinov3': ('DINOv3ViT', {'return_class_token': True, 'out_indices': [0, 2, 3]}),
    'dinov3-plain': ('DINOv3ViT', {'apply_layernorm': False}),
    'dinov3-inner': ('DINOv3ViT', {'apply_layernorm': False, 'out_indices': [1, 2]}),
}
"""Classes called ``*Backbone``, and what differs from maps of layers 1 and 3."""


def backbone_of(kind: str) -> nn.Module:
    """One of :data:`STATES`, in double precision."""
    name, args = STATES[kind]
    size = WIDE if name == 'DINOv3ViT' else SIZE
    if 'out_features' not in args:
        args = {'out_indices': [1, 3]} | args
    built = getattr(transformers, f'{name}Config')(**size | args, drop_path_rate=0.3)
    return randomise_(getattr(transformers, f'{name}Backbone')(built)).double()


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('kind', STATES)
def test_backbones_hand_out_what_upstreams_do(kind: str, train: bool) -> None:
    plain = backbone_of(kind)
    ours = inject(copy.deepcopy(plain), Everything())
    x = torch.randn(2, 3, 40, 35, dtype=torch.float64)
    found = []
    for m in (plain, ours):
        m.train(train)
        torch.manual_seed(2)
        y = m(x, output_hidden_states=True)
        maps = (*y.feature_maps, *(getattr(y, 'cls_tokens', None) or ()))
        sum(t.square().sum() for t in maps).backward()
        named = m.named_parameters()
        found.append((y, {n: p.grad for n, p in named if p.grad is not None}))
    (theirs, grads), (y, others) = found
    assert type(y) is type(theirs)
    assert y.keys() == theirs.keys()
    for name in y:
        torch.testing.assert_close(y[name], theirs[name], msg=name)
    if 'DINOv3' in STATES[kind][0]:  # no field of it
        torch.testing.assert_close(y.last_hidden_state, theirs.last_hidden_state)
    assert others.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, msg=name)
    with torch.no_grad():
        for args in (
            {},
            {'return_dict': False},
            {'output_hidden_states': [-1, 0], 'return_dict': False},
        ):
            torch.manual_seed(2)
            theirs = plain(x, **args)
            torch.manual_seed(2)
            torch.testing.assert_close(ours(x, **args), theirs)
    ours = eject(inject(copy.deepcopy(plain), Nothing()))
    assert [type(m) for m in ours.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize('kind', STATES)
def test_all_that_trains_in_a_backbone_is_read(kind: str) -> None:
    """A norm that no output has been through is no site; blocks behind all stay."""
    plain = backbone_of(kind).eval()
    x = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    theirs = plain(x).feature_maps
    last = max(i for i in plain.out_indices)
    side = {'type': 'LST', 'init': 'random'}  # of a gated network too
    for method in ('LNTune', 'SSF', side, 'ResTuningBypass', 'E3VA'):
        model = shaken(copy.deepcopy(plain), method)
        y = model(x, output_hidden_states=True)
        assert [z.shape for z in y.feature_maps] == [z.shape for z in theirs]
        assert not torch.allclose(y.feature_maps[-1], theirs[-1])
        sum(z.square().sum() for z in y.feature_maps).backward()
        dead = [
            name
            for name, p in model.named_parameters()
            if p.requires_grad and p.grad is None
        ]
        behind = [re.search(r'layer\.(\d+)\.', name) for name in dead]
        assert all(match and int(match[1]) >= last for match in behind), dead
        if method == 'SSF' and not kind.startswith('dinov3'):  # keys without a bias
            with torch.no_grad():
                folded = fold(model)(x).feature_maps
            assert type(model) is type(plain)
            torch.testing.assert_close(folded, y.feature_maps)


@pytest.mark.parametrize('kind', STATES)
@torch.no_grad()
def test_prompts_are_in_no_map_and_no_state(kind: str) -> None:
    plain = backbone_of(kind).eval()
    x = torch.randn(2, 3, 40, 35, dtype=torch.float64)
    theirs = plain(x, output_hidden_states=True)
    for method in ('VPTDeep', {'type': 'VPTDeep', 'num_tokens': 3}):
        y = shaken(copy.deepcopy(plain), method)(x, output_hidden_states=True)
        for name in ('feature_maps', 'hidden_states'):
            assert [t.shape for t in y[name]] == [t.shape for t in theirs[name]]
            assert not torch.allclose(y[name][-1], theirs[name][-1])
    # What enters the layers knows nothing of them.
    torch.testing.assert_close(y.hidden_states[0], theirs.hidden_states[0])
    if plain.config.apply_layernorm and plain.out_indices[-1] == 3:
        norm = plain.norm if hasattr(plain, 'norm') else plain.layernorm
        own = 1 + getattr(plain.config, 'num_register_tokens', 0)
        last = norm(y.hidden_states[3])[:, own:].mT.unflatten(2, (5, 4))
        torch.testing.assert_close(y.feature_maps[-1], last)


def test_an_output_reads_a_side_network_as_its_layer_ends() -> None:
    plain = backbone_of('dinov2').eval()
    model = shaken(copy.deepcopy(plain), 'LST')
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model(x).feature_maps[0].square().sum().backward()
    layers = {
        int(match[1])
        for name, p in model.named_parameters()
        if p.grad is not None and (match := re.search(r'layer\.(\d+)\.', name))
    }
    assert layers == {0}


def whole_models() -> dict[str, nn.Module]:
    """Models with a Dinov2Backbone and a SwinBackbone at ``backbone``."""
    t = transformers
    states = t.Dinov2Config(
        **SIZE, out_indices=[0, 1, 2, 3], reshape_hidden_states=False
    )
    small = dict.fromkeys(('fusion_hidden_size', 'head_hidden_size'), 8)
    small |= {'reassemble_hidden_size': 32, 'neck_hidden_sizes': [8, 8, 8, 8]}
    depth = t.DepthAnythingConfig(backbone_config=states, patch_size=8, **small)
    windows = t.SwinConfig(image_size=32, out_indices=[1, 2], **SWIN)
    head = {'hidden_size': 8, 'pool_scales': [1, 2], 'use_auxiliary_head': False}
    uper = t.UperNetConfig(backbone_config=windows, num_labels=3, **head)
    depth = t.DepthAnythingForDepthEstimation(depth)
    nn.init.ones_(depth.head.conv3.bias)  # what is below zero is cut
    return {'depth': depth, 'uper': t.UperNetForSemanticSegmentation(uper)}


@pytest.mark.parametrize('kind', ['depth', 'uper'])
def test_a_whole_model_around_a_backbone(kind: str, tmp_path, x: Tensor) -> None:
    """Depth Anything and UperNet: a step, the delta in a file and back, folded."""
    base = whole_models()[kind].eval()
    with pytest.raises(PETLError, match=r'inject into model\.backbone \('):
        inject(copy.deepcopy(base), 'AdaptFormer')
    model = copy.deepcopy(base)
    inject(model.backbone, 'LoRA')
    torch.testing.assert_close(model(x)[0], base(x)[0], rtol=1e-4, atol=1e-4)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    around = [n for n in trained if not n.startswith('backbone.')]
    assert around
    inside = {n for n in trained if n not in around}
    assert any('.petl.' in n for n in inside)
    # Upstream's norms of a SwinBackbone stand outside of its trunk.
    assert all('.petl.' in n or 'hidden_states_norms' in n for n in inside)
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    for _ in range(2):  # the second factor starts at zero
        optimizer.zero_grad()
        model.train()(x)[0].square().mean().backward()
        optimizer.step()
    before = dict(base.named_parameters())
    for name, param in model.named_parameters():
        if name not in trained:
            assert torch.equal(param, before[name]), name
    model.eval()
    with torch.no_grad():
        y = model(x)[0]
        assert not torch.allclose(y, base(x)[0])
        mmpetl.save_delta(model, tmp_path / 'delta.safetensors')
        other = copy.deepcopy(base)
        inject(other.backbone, 'LoRA')
        load_delta(other, tmp_path / 'delta.safetensors')
        assert torch.equal(other.eval()(x)[0], y)
        fold(other)
        assert [type(m) for m in other.modules()] == [type(m) for m in base.modules()]
        torch.testing.assert_close(other(x)[0], y, rtol=1e-4, atol=1e-4)


SWIN = {'depths': [2, 2], 'num_heads': [2, 4], 'window_size': 4, 'embed_dim': 16}


@pytest.mark.parametrize('size', [(32, 32), (12, 20), (38, 53)], ids=str)
def test_a_swin_backbone_pads_and_shifts_maps_of_any_size(size: tuple) -> None:
    """Its maps, and ``always_partition`` of the model; small maps are padded too."""
    args = {'image_size': 32, 'out_indices': [0, 1, 2], **SWIN}
    plain = transformers.SwinBackbone(transformers.SwinConfig(**args))
    randomise_(plain).double().eval()
    ours = inject(copy.deepcopy(plain), Everything())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    grads = []
    for m in (plain, ours):
        m.train()
        torch.manual_seed(2)
        y = m(x, output_hidden_states=True)
        sum(t.square().sum() for t in y.feature_maps).backward()
        named = m.named_parameters()
        grads.append((y, {n: p.grad for n, p in named if p.grad is not None}))
    for name in ('feature_maps', 'hidden_states'):
        torch.testing.assert_close(grads[1][0][name], grads[0][0][name])
    assert grads[0][1].keys() == grads[1][1].keys()
    for name, grad in grads[0][1].items():
        torch.testing.assert_close(grads[1][1][name], grad, msg=name)
    with torch.no_grad():
        plain.eval(), ours.eval()
        found = [m.swin(x, always_partition=True)[0] for m in (plain, ours)]
        torch.testing.assert_close(*reversed(found))
        prompted = shaken(copy.deepcopy(plain))
        maps, theirs = prompted(x).feature_maps, plain(x).feature_maps
        assert [y.shape for y in maps] == [y.shape for y in theirs]
        assert not torch.allclose(maps[-1], theirs[-1])


def holders_of_states() -> dict[str, nn.Module]:
    """Classes that read recorded states of the trunk in them, in double precision."""
    t = transformers
    beit = CONFIGS['beit'] | {'out_indices': [1, 3]}
    small = {'num_labels': 3, 'pool_scales': [1, 2], 'use_auxiliary_head': False}
    # Counted from one there, so that 0 is the last state.
    four = CONFIGS['beit'] | {'out_indices': [0, 1, 2, 3], **small}
    found = {
        'beit': t.BeitBackbone(t.BeitConfig(**beit)),
        'beit_normed': t.BeitBackbone(t.BeitConfig(**beit, use_mean_pooling=False)),
        'beit_seg': t.BeitForSemanticSegmentation(t.BeitConfig(**four)),
        'swin': t.SwinBackbone(t.SwinConfig(image_size=32, out_indices=[1, 2], **SWIN)),
    }
    return {k: randomise_(model).double().eval() for k, model in found.items()}


@pytest.mark.parametrize('kind', list(holders_of_states()))
def test_methods_act_on_the_states_that_are_read(kind: str) -> None:
    """The final norm is not, and what stands at the last output alone did nothing."""
    plain = holders_of_states()[kind]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    theirs = list(outputs(plain, x))
    nothing = inject(copy.deepcopy(plain), Nothing())
    for y, z in zip(outputs(nothing, x), theirs, strict=True):
        torch.testing.assert_close(y, z)
    for method in ('LNTune', 'SSF', 'LST', {'type': 'E3VA', 'rank': 4}, 'VPTDeep'):
        model = shaken(copy.deepcopy(plain), method)
        ys = list(outputs(model, x))
        assert [y.shape for y in ys] == [z.shape for z in theirs]
        assert not any(torch.allclose(y, z) for y, z in zip(ys, theirs, strict=True))
        sum(y.square().sum() for y in ys).backward()
        core = find_injected(model)[0][1]
        named = core.named_parameters()
        assert all(p.grad is not None for _, p in named if p.requires_grad)
        if method == 'SSF':
            with torch.no_grad():
                folded = list(outputs(fold(model), x))
            torch.testing.assert_close(folded, ys)


@torch.no_grad()
def test_states_of_a_swin_shrink_with_its_maps() -> None:
    swin = transformers.SwinConfig(image_size=32, **SWIN)
    model = randomise_(transformers.SwinForImageClassification(swin)).eval()
    x = torch.randn(2, 3, 72, 64)
    plain = model.swin(x, output_hidden_states=True)
    inject(model, Nothing())
    ours = model.swin(x, output_hidden_states=True)
    for name in ('hidden_states', 'reshaped_hidden_states'):
        for y, z in zip(ours[name], plain[name], strict=True):
            torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.pooler_output, plain.pooler_output)
    eject(model)
    prompted = shaken(model, 'VPTShallow').swin(x, output_hidden_states=True)
    for name in ('hidden_states', 'reshaped_hidden_states'):
        assert [y.shape for y in prompted[name]] == [y.shape for y in plain[name]]
    assert not torch.allclose(prompted.pooler_output, plain.pooler_output)
    with pytest.raises(PETLError, match='smaller than the window'):
        model(torch.randn(1, 3, 16, 24))
    model.train()
    model.swin.gradient_checkpointing_enable()
    with torch.enable_grad():
        model(x).logits.sum().backward()
    trained = [p for n, p in model.named_parameters() if '.petl.' in n]
    assert trained
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize('kind', CONFIGS)
def test_weights_that_leave_a_part_random_are_refused(kind: str, tmp_path) -> None:
    """transformers says so in a table alone, and draws what it does not find."""
    from safetensors.torch import load_file, save_file

    model = drawn(kind).model
    model.save_pretrained(tmp_path)
    loaded = HFBackbone(tmp_path).model.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in model.state_dict().items())
    file = tmp_path / 'model.safetensors'
    whole = load_file(file)
    short = {k: v for k, v in whole.items() if not re.search(r'layers?\.2\.', k)}
    assert len(short) < len(whole)
    other = {k: v[:1].clone() if v.ndim == 2 else v for k, v in whole.items()}
    for tensors, line in (
        (short, 'which would be random'),
        ({f'net.{k}': v for k, v in whole.items()}, 'which would be random'),
        (other, 'has shape .* in the weights at'),
    ):
        save_file(tensors, file, metadata={'format': 'pt'})
        with pytest.raises(PETLError, match=line) as error:
            HFBackbone(tmp_path)
        assert '\n' not in str(error.value)
    file.write_bytes(b'damaged')
    with pytest.raises(PETLError, match='transformers') as error:
        HFBackbone(tmp_path)
    assert '\n' not in str(error.value)
