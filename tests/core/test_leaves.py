"""Any model by its layers: outputs, gradients, folds, state, and taking it apart."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from leafy import MAKERS, WHERE, Encoder, make, vit
from tiny import shake_
from torch import nn

import mmpetl
from mmpetl.core import (
    PETLError,
    base_changes,
    count_trainable,
    delta_facts,
    delta_state,
    disabled,
    eject,
    fold,
    inject,
    injection_of,
    load_delta,
    save_delta,
)
from mmpetl.methods.do_ra import DoRA
from mmpetl.methods.glora import GLoRA
from mmpetl.methods.gps import GPS
from mmpetl.methods.hydra import Hydra
from mmpetl.methods.lora import LoRA
from mmpetl.methods.ssf import SSF

ACTING = {
    'lora': lambda: LoRA(rank=2),
    'dora': lambda: DoRA(rank=2),
    'glora': lambda: GLoRA(rank=2),
    'hydra': lambda: Hydra(rank=2, drop_rate=0.0),
    'ssf': lambda: SSF(exact_identity=True),
    'gps': lambda: GPS(num_weights=2, criterion='task', train_bias=False),
}
pytestmark = pytest.mark.filterwarnings('ignore:GPS trains the first weights')


def close(a: torch.Tensor, b: torch.Tensor, tol: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('method', ACTING)
def test_a_model_is_tuned_by_its_layers_and_comes_back(name, method) -> None:
    model, x = make(name)
    kind, keys = type(model), list(model.state_dict())
    before = model(x)
    state = copy.deepcopy(model.state_dict())
    assert inject(model, ACTING[method](), **WHERE.get(name, {})) is model
    assert isinstance(model, kind)
    assert delta_state(model)
    assert set(keys) <= set(model.state_dict())
    assert type(model).__name__ == f'PETL{kind.__name__}'
    close(model(x), before)

    shake_(model)
    model.train()
    model(x).square().sum().backward()
    params = dict(model.named_parameters())
    trained = {n for n, p in params.items() if p.requires_grad}
    assert {n for n in trained if params[n].grad is None} == set()
    assert all(
        'petl' in n or n.startswith(('head', 'fc', 'inner.head')) for n in trained
    )
    assert base_changes(model) == []

    model.eval()
    tuned = model(x)
    assert (tuned - before).abs().max() > 1e-4
    with disabled(model):
        close(model(x), before)
    again = copy.deepcopy(model)
    close(again(x), tuned, 0)
    shake_(again, seed=1)
    close(model(x), tuned, 0)

    eject(model)
    assert type(model) is kind
    assert not any(hasattr(type(m), '_foreign_class') for m in model.modules())
    now = model.state_dict()
    assert list(now) == keys
    assert all(torch.equal(now[key], state[key]) for key in keys)


@pytest.mark.parametrize('method', ACTING)
@pytest.mark.parametrize('name', ['plain', 'encoder', 'last', 'resnet', 'convnext'])
def test_a_fold_is_exact(name, method) -> None:
    model, x = make(name)
    if method in ('ssf', 'hydra', 'glora') and name in ('plain', 'resnet'):
        for part in model.modules():  # shifts need a bias to go to
            if isinstance(part, nn.Conv2d) and part.bias is None:
                part.bias = nn.Parameter(torch.zeros(part.out_channels))
    if name == 'plain':  # convolutions pad their input, and a fold must know of it
        model.mirror.padding_mode = 'zeros' if method == 'hydra' else 'reflect'
    model, x = model.double(), x.double()
    inject(model, ACTING[method](), delta_dtype=torch.float64, **WHERE.get(name, {}))
    shake_(model)
    tuned = model(x)
    fold(model)
    assert not any('petl' in key for key in model.state_dict())
    close(model(x), tuned, 1e-9)


def test_lora_on_a_convolution_is_a_convolution() -> None:
    torch.manual_seed(0)
    model, x = make('plain')
    inject(model, LoRA(rank=2), layers=['stem', 'wide', 'mirror', 'point'])
    shake_(model)
    for name in ('stem', 'wide', 'mirror', 'point'):
        conv = model.get_submodule(name)
        delta = conv.petl.get_submodule(
            'layer_linear.0' if name == 'point' else 'layer_conv.0'
        )
        weight = conv.weight + (delta.B @ delta.A).view_as(conv.weight)
        z = torch.randn(2, conv.in_channels, 9, 9)
        if conv.padding_mode == 'reflect':
            wanted = F.conv2d(F.pad(z, (1, 1, 1, 1), 'reflect'), weight, conv.bias)
        else:
            wanted = F.conv2d(
                z, weight, conv.bias, conv.stride, conv.padding, conv.dilation
            )
        close(conv(z), wanted)


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize(
    'masks',
    [
        {},
        {'key_padding_mask': torch.tensor([[False] * 4 + [True] * 2, [False] * 6])},
        {'attn_mask': torch.randn(6, 6)},
        {'attn_mask': torch.ones(6, 6).triu(1).bool()},
        {'attn_mask': torch.randn(4, 6, 6)},
    ],
    ids=['none', 'padding', 'bias', 'causal', 'heads'],
)
@pytest.mark.parametrize('weights', [True, False])
def test_attention_equals_torch_with_the_summed_weights(
    batch_first, masks, weights
) -> None:
    torch.manual_seed(0)
    holder = nn.Module()
    holder.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    theirs = copy.deepcopy(holder.attn)
    inject(holder, LoRA(rank=2, targets=('attn.q', 'attn.v', 'attn.proj')))
    shake_(holder, 0.5)
    petl = holder.attn.petl
    with torch.no_grad():
        for i, key in enumerate(('attn_q', 'attn_k', 'attn_v')):
            if key in petl._modules:
                delta = petl.get_submodule(f'{key}.0')
                theirs.in_proj_weight[8 * i : 8 * i + 8] += delta.B @ delta.A
        delta = petl.get_submodule('attn_proj.0')
        theirs.out_proj.weight += delta.B @ delta.A
    q, kv = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    if not batch_first:
        q, kv = q.transpose(0, 1), kv.transpose(0, 1)
    for args in ((q, q, q), (q, kv, kv)):
        ours, our_map = holder.attn(*args, need_weights=weights, **masks)
        wanted, their_map = theirs(*args, need_weights=weights, **masks)
        close(ours, wanted)
        assert (our_map is None) == (their_map is None)
        if our_map is not None:
            close(our_map, their_map)


def test_attention_on_one_sequence() -> None:
    holder = nn.Module()
    holder.attn = nn.MultiheadAttention(8, 2)
    x = torch.randn(5, 8)
    wanted = holder.attn(x, x, x, average_attn_weights=False)
    inject(holder, LoRA(rank=2))
    for ours, theirs in zip(
        holder.attn(x, x, x, average_attn_weights=False), wanted, strict=True
    ):
        close(ours, theirs)


def test_the_native_kernel_of_encoders_does_not_pass_layers_by() -> None:
    """In eval mode without gradients torch reads weights and calls no layer."""
    model, x = make('encoder')
    inject(model, LoRA(rank=2), layers=['*.linear1'])
    shake_(model, 0.5)
    wanted = model(x)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    masked = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        close(model(x), wanted)
        close(model(x, src_key_padding_mask=padding)[~padding], masked[~padding])
    eject(model)
    layer = model.encoder.layers[0]
    assert layer.activation_relu_or_gelu == 1
    assert model.encoder.use_nested_tensor


@pytest.mark.parametrize('protocol', [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize('name', ['resnet', 'encoder', 'wrapped'])
def test_a_pickled_model_can_be_ejected(name, protocol) -> None:
    model, x = make(name)
    before, kind = model(x), type(model)
    inject(model, LoRA(rank=2), **WHERE.get(name, {}))
    inject(model, 'LNTune')
    shake_(model)
    tuned = model(x)
    twin = pickle.loads(pickle.dumps(model, protocol=protocol))
    close(twin(x), tuned, 0)
    with disabled(twin):
        close(twin(x), before)
    eject(twin, '0')
    eject(twin, '1')
    assert type(twin) is kind
    close(twin(x), before)


def test_a_model_can_be_read_in_another_process(tmp_path) -> None:
    model = inject(timm.create_model('test_resnet').eval(), LoRA(rank=2))
    shake_(model)
    x = torch.randn(1, 3, 32, 32)
    described = inject(vit().eval(), LoRA(rank=2))
    torch.save((model, x, model(x), described), tmp_path / 'model.pt')
    code = (
        'import torch\n'
        f'm, x, y, v = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)\n'
        'import mmpetl\n'
        'assert torch.allclose(m(x), y, atol=1e-6)\n'
        'mmpetl.disable(m), mmpetl.eject(m)\n'
        'mmpetl.disable(v), mmpetl.eject(v)\n'
        'print(type(m).__name__, type(m.layer1[0].conv1).__module__, '
        'type(v).__name__)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        'ResNet',
        'torch.nn.modules.conv',
        'VisionTransformer',
    ]


def test_a_delta_fits_the_same_layers_of_the_same_base(tmp_path) -> None:
    model, x = make('wrapped')
    twin = copy.deepcopy(model)
    where = {'layers': ['*.attn.qkv', '!*.1.*'], 'blocks': [0]}
    method = {'type': 'LoRA', 'rank': {'*.qkv': 3, '*': 2}}
    inject(model, method, **where)
    shake_(model)
    file = save_delta(model, tmp_path / 'delta')
    assert delta_facts(model)['where'] == {**where}
    assert delta_facts(model)['method']['rank'] == {'*.qkv': 3, '*': 2}
    inject(twin, method, layers='*.attn.*')
    with pytest.raises(PETLError, match=r'acts at layers=.*same layers and blocks'):
        load_delta(twin, file)
    eject(twin)
    said = r'inject\(model, .*LoRA.*layers=\[.\*.attn.qkv., .*blocks=\[0\]\)'
    with pytest.raises(PETLError, match=said):
        load_delta(twin, file)
    load_delta(inject(twin, method, **where), file)
    close(twin(x), model(x), 0)


def test_a_method_that_is_on_top_has_its_own_layers() -> None:
    model, x = make('convnext')
    inject(model, LoRA(rank=2), layers='*.fc1')
    inject(model, SSF(), layers='*.norm')
    assert type(model.inner.stages[0].blocks[0].norm).__name__ == 'LayerNorm'
    assert hasattr(model.inner.stages[0].blocks[0].norm, 'petl')
    tuned = model(x)
    eject(model, '1')
    assert not hasattr(type(model.inner.stages[0].blocks[0].norm), '_foreign_class')
    assert not torch.equal(model(x), tuned)
    eject(model, '0')


def test_counts_are_those_of_the_formula() -> None:
    model, _ = make('wrapped')
    inject(model, LoRA(rank=2), layers='*.attn.qkv')
    assert count_trainable(model).delta == 2 * 2 * (32 + 96)
    eject(model)
    inject(model, {'type': 'LoRA', 'rank': {'*.0.attn.qkv': 3, '*': 1}}, layers='*qkv')
    assert count_trainable(model).delta == 3 * (32 + 96) + 1 * (32 + 96)


def test_the_same_layers_do_what_a_described_backbone_does() -> None:
    """Golden: LoRA on the fused projection, written by both roads."""
    torch.manual_seed(0)
    ours, x = make('wrapped')
    theirs = copy.deepcopy(ours.inner)
    inject(ours, LoRA(rank=2), layers='*.attn.qkv')
    inject(theirs, LoRA(rank=2, targets=('attn.qkv',)))
    shake_(ours)
    state = {
        k.removeprefix('inner.').replace(
            'attn.qkv.petl.layer_linear', 'petl.attn_qkv'
        ): v
        for k, v in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    close(ours(x), theirs(x))


def test_compiled_and_exported() -> None:
    model, x = make('wrapped')
    inject(model, LoRA(rank=2), layers='*')
    shake_(model)
    wanted = model(x)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    close(compiled(x), wanted)
    plain, z = make('plain')
    inject(plain, LoRA(rank=2))
    shake_(plain)
    exported = torch.export.export(plain, (z,)).module()
    close(exported(z), plain(z))


def test_half_precision_and_autocast() -> None:
    model, x = make('plain')
    inject(model.to(torch.bfloat16), LoRA(rank=2))
    assert model.stem.petl.layer_conv['0'].A.dtype == torch.float32
    assert model(x.bfloat16()).dtype == torch.bfloat16
    other, x = make('encoder')
    inject(other, LoRA(rank=2))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(other(x)).all()


def test_the_state_of_a_saved_run_is_whole() -> None:
    model, x = make('plain')
    inject(model, LoRA(rank=2))
    shake_(model)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    twin, _ = make('plain')
    inject(twin, LoRA(rank=2)).load_state_dict(torch.load(stream))
    close(twin(x), model(x), 0)


def test_gps_chooses_weights_of_any_model() -> None:
    model, x = make('plain')
    inject(model, ACTING['gps']())
    data = [(x, torch.tensor([0, 1]))]
    injection_of(model)[1].slots['0'].method.calibrate(model, data)
    delta = model.stem.petl.layer_conv['0']
    twin, _ = make('plain')
    twin.train()  # as in the authors' code, where dropout acts
    F.cross_entropy(twin(x), data[0][1]).backward()
    wanted = twin.stem.weight.grad.flatten(1).abs().topk(2).indices
    assert torch.equal(delta.index.long(), wanted.sort().values)
    assert model.stem.petl.layer_conv['0'].shared.done


def test_an_encoder_may_be_the_model_itself() -> None:
    model = Encoder().encoder.eval()
    x = torch.randn(2, 5, 16)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    inject(model, LoRA(rank=2))
    shake_(model, 0.5)
    wanted = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        close(model(x, src_key_padding_mask=padding)[~padding], wanted[~padding])
    eject(model)
    assert type(model) is nn.TransformerEncoder


def test_deltas_are_no_step_of_a_sequential_model() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    x = torch.randn(2, 32)
    before = model(x)
    inject(model, ACTING['gps']())
    inject(model, 'BitFit')
    mmpetl.disable(model, '1')
    assert {'shared', 'kept'} == set(model._modules['petl']._modules)
    close(model(x), before)
    assert len(model) == 3
    assert type(model[-1]).__name__ == 'Linear'
    eject(model, '0')
    eject(model, '1')
    assert type(model) is nn.Sequential
