"""What is particular to transformers' SegFormer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import Everything, Nothing, randomise_, shake_
from torch import Tensor, nn

from mmpetl.core import PETLError, eject, fold, inject, injection_of, load_delta
from mmpetl.core import save_delta as save
from mmpetl.models import HFBackbone

transformers = pytest.importorskip('transformers')

from trunks.transformers_segformer import build  # noqa: E402

CONFIG = {
    'model_type': 'segformer',
    'num_encoder_blocks': 3,
    'depths': [1, 2, 1],
    'hidden_sizes': [16, 32, 32],
    'num_attention_heads': [1, 2, 4],
    'patch_sizes': [7, 3, 3],
    'strides': [4, 2, 2],
    'sr_ratios': [4, 2, 1],
    'mlp_ratios': [2, 2, 2],
}


def drawn(**args: Any) -> HFBackbone:
    """A wrapped tiny model with random values, in eval mode."""
    return randomise_(HFBackbone(CONFIG, pretrained=False, **args)).eval()


@pytest.fixture
def x() -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 45, 64, generator=g)


def states(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What every stage leaves, and the last one by its other name."""
    result = model(x, output_hidden_states=True)
    return [*result.hidden_states, result.last_hidden_state]


@pytest.mark.parametrize(
    'args',
    [
        {'sr_ratios': [1, 1], 'hidden_act': 'relu'},
        {'sr_ratios': [4, 3], 'num_attention_heads': [3, 2]},
        {'reshape_last_stage': False, 'attn_implementation': 'eager'},
        {'hidden_dropout_prob': 0.3, 'drop_path_rate': 0.4},
    ],
    ids=['no-reduction', 'narrow-heads', 'tokens', 'dropout'],
)
def test_options_agree_with_upstream(args: dict[str, Any], x: Tensor) -> None:
    model = randomise_(build(**args)).double()
    ours = inject(copy.deepcopy(model), Everything())
    near = {'rtol': 1e-3, 'atol': 1e-4} if 'attn_implementation' in args else {}
    for train in (False, True):
        found = []
        for m in (model, ours):
            m.train(train).zero_grad()
            torch.manual_seed(1)
            ys = states(m, x.double())
            sum(y.square().sum() for y in ys).backward()
            found.append((ys, {n: p.grad for n, p in m.named_parameters()}))
        (ys, grads), (zs, others) = found
        for y, z in zip(ys, zs, strict=True):
            assert y.is_contiguous() == z.is_contiguous()
            torch.testing.assert_close(z, y, **near)
        for name, grad in grads.items():
            torch.testing.assert_close(others[name], grad, msg=name, **near)


@torch.no_grad()
def test_prompts_are_in_no_output_and_travel_on(x: Tensor) -> None:
    model = randomise_(build()).eval()
    plain = states(model, x)
    shallow = {'type': 'VPTShallow', 'num_tokens': 3}
    shake_(inject(model, shallow))
    prompted = states(model, x)
    assert [y.shape for y in prompted] == [y.shape for y in plain]
    # Upstream's parts by hand: the second stage reads the prompts of the first one.
    prompts = next(p for n, p in model.named_parameters() if '.petl.' in n)
    prompts = prompts.detach().view(1, 3, 32).expand(2, -1, -1)
    eject(model)
    grid, tokens = None, None
    for stage, y in zip(model.stages, prompted, strict=False):
        embed = stage.patch_embeddings
        if tokens is None:
            tokens, grid = embed.proj(x), None
            extra = prompts
        else:
            weight = embed.proj.weight.sum((2, 3))
            extra = tokens[:, :3] @ weight.T + embed.proj.bias
            extra = embed.layer_norm(extra)
            tokens = embed.proj(tokens[:, 3:].mT.unflatten(2, grid))
        grid = tokens.shape[2:]
        tokens = embed.layer_norm(tokens.flatten(2).mT)
        tokens = torch.cat((extra, tokens), dim=1)
        for block in stage.blocks:
            tokens = by_hand(block, tokens, grid)
        tokens = stage.layer_norm(tokens)
        expected = tokens[:, 3:].mT.unflatten(2, grid)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def by_hand(block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A layer with three tokens in front of the grid, of upstream's modules."""
    attn, mlp = block.attention, block.mlp
    h = block.layernorm_before(x)
    kv = h
    if attn.sequence_reduction_ratio > 1:
        kv = torch.cat((h[:, :3], attn.sequence_reduction(h[:, 3:], *grid)), dim=1)
    q, k, v = (
        part.unflatten(2, (attn.num_attention_heads, -1)).transpose(1, 2)
        for part in (attn.q_proj(h), attn.k_proj(kv), attn.v_proj(kv))
    )
    o = ((q @ k.mT) * attn.scaling).softmax(-1) @ v
    x = x + attn.o_proj(o.transpose(1, 2).flatten(2))
    h = mlp.fc1(block.layernorm_after(x))
    h = torch.cat((h[:, :3], mlp.dwconv(h[:, 3:], *grid)), dim=1)
    return x + mlp.fc2(mlp.activation_fn(h))


@torch.no_grad()
def test_maps_of_the_wrapper_are_upstreams(x: Tensor) -> None:
    model = drawn(out_indices=(0, -1))
    own = copy.deepcopy(model.model)
    theirs = own(x, output_hidden_states=True).hidden_states
    for method in (None, Nothing()):
        if method is not None:
            inject(model, method)
        maps = model(x)
        assert [y.shape for y in maps] == [(2, 16, 12, 16), (2, 32, 3, 4)]
        for y, i in zip(maps, (0, 2), strict=True):
            torch.testing.assert_close(y, theirs[i], rtol=1e-4, atol=1e-4)
    # Only what leaves has the sites of what leaves.
    out = [s.index for s in injection_of(model)[1].sites if s.kind == 'out']
    assert out == [0, 2]
    pooled = drawn(out_type='avg_featmap')(x)
    torch.testing.assert_close(pooled[0], theirs[2].mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_what_the_wrapper_refuses() -> None:
    with pytest.raises(PETLError, match='of a model with 3 stages; .* from 0 to 2'):
        HFBackbone(CONFIG, pretrained=False, out_indices=(3,))
    with pytest.raises(PETLError, match='has no class token'):
        HFBackbone(CONFIG, pretrained=False, out_type='cls_token')


def test_a_folder_of_tokens_gives_maps_and_takes_a_delta(tmp_path, x: Tensor) -> None:
    """Released classifiers may say ``reshape_last_stage=False``."""
    plain = {k: v for k, v in CONFIG.items() if k != 'model_type'}
    config = transformers.SegformerConfig(**plain, reshape_last_stage=False)
    base = randomise_(transformers.SegformerModel(config))
    base.save_pretrained(tmp_path / 'base')
    model = HFBackbone(tmp_path / 'base').eval()
    assert model(x)[0].shape == (2, 32, 3, 4)
    shake_(inject(model, 'LoRA'))
    save(model, tmp_path / 'delta.safetensors')
    other = inject(HFBackbone(tmp_path / 'base').eval(), 'LoRA')
    load_delta(other, tmp_path / 'delta.safetensors')
    assert torch.equal(other(x)[0], model(x)[0])
    before = model(x)[0]
    torch.testing.assert_close(fold(model)(x)[0], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['SemanticSegmentation', 'ImageClassification'])
def test_in_upstreams_own_models(kind: str, x: Tensor) -> None:
    plain = {k: v for k, v in CONFIG.items() if k != 'model_type'}
    config = transformers.SegformerConfig(
        **plain, num_labels=5, classifier_dropout_prob=0.0, drop_path_rate=0.0
    )
    model = getattr(transformers, f'SegformerFor{kind}')(config)
    model = randomise_(model).eval()
    with torch.no_grad():
        before = model(x).logits
    inject(model, 'LoRA')
    assert type(model.segformer).__name__ == 'PETLSegformerModel'
    labels = torch.arange(2) if 'Image' in kind else torch.ones(2, 45, 64).long()
    result = model(x, labels=labels)
    torch.testing.assert_close(result.logits, before, rtol=1e-4, atol=1e-4)
    result.loss.backward()
    found = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n for n in found if n.startswith('segformer.')} == {
        n for n, p in model.named_parameters() if '.petl.' in n and p.requires_grad
    }
    assert any(not n.startswith('segformer.') for n in found)


def test_what_a_pass_refuses(x: Tensor) -> None:
    model = inject(drawn().model, 'LoRA')
    with pytest.raises(PETLError, match='records no attentions'):
        model(x, output_attentions=True)
    with pytest.raises(PETLError, match='call the model as a whole'):
        model.stages[0](x)
    with pytest.raises(PETLError, match='call the model as a whole'):
        model.stages[0].blocks[0](torch.zeros(1, 16, 16), 4, 4)
    with pytest.raises(PETLError, match='smaller than the 4 x 4 tokens'):
        model(x[:, :, :8, :8])


def test_checkpointing_saves_and_agrees_over_a_frozen_trunk(x: Tensor) -> None:
    model = drawn().model
    inject(model, 'VPTDeep')
    shake_(model)
    model.train()
    calls, grads = [], []
    block = model.stages[1].blocks[0]
    block.layernorm_before.register_forward_hook(lambda *_: calls.append(1))
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        calls.clear()
        torch.manual_seed(1)
        model(x).last_hidden_state.square().sum().backward()
        assert len(calls) == 1 + on
        found = model.named_parameters()
        grads.append({n: p.grad.clone() for n, p in found if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)
