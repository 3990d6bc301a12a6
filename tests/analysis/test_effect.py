"""Where methods act: each figure beside one that is computed in another way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

import mmpetl
from mmpetl.analysis.effect import BASE, WHOLE, method_effects, relative_effect
from mmpetl.analysis.sources import bare_copy
from mmpetl.core import PETLError, count_trainable

X = (3, 32, 32)


def pair(method, stem: str = 'mmpretrain_vit', spoil=True):
    """A tuned tiny backbone and its base."""
    tuned = mmpetl.inject(tiny.base(stem), method)
    tuned.eval()
    base = bare_copy(tuned)
    if spoil:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in tuned.parameters():
                if param.requires_grad:
                    noise = torch.randn(param.shape, generator=generator)
                    param += 0.2 * noise
    return tuned, base


def ratio(before: torch.Tensor, after: torch.Tensor) -> float:
    before, after = before.detach(), after.detach()
    return float(((after - before).norm(dim=-1) / before.norm(dim=-1)).mean())


def row(effects, name: str) -> np.ndarray:
    return effects.values[effects.rows.index(name)]


def seen(module: torch.nn.Module, run) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a module while ``run`` runs."""
    kept = []
    hook = module.register_forward_hook(lambda m, args, y: kept.append((args[0], y)))
    with torch.no_grad():
        run()
    hook.remove()
    return kept[0]


def test_a_ratio_by_hand():
    before = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]])
    after = torch.tensor([[[3.0, 4.5], [9.0, 9.0], [0.0, 0.0]]])
    # 0.5 / 5 and 1 / 1; what was zero (padding) has no ratio.
    assert relative_effect(before, after) == pytest.approx((0.1 + 1) / 2)


def test_lora_at_values_equals_its_formula():
    tuned, base = pair({'type': 'LoRA', 'rank': 2})
    x = torch.randn(2, *X)
    effects = method_effects(tuned, [x], base)
    assert effects.rows == ('attn.q', 'attn.v', WHOLE)
    assert effects.columns == ('0', '1')
    for i, block in enumerate(tuned.layers):
        h, qkv = seen(block.attn.qkv, lambda: tuned(x))
        delta = block.petl.attn_v['0']
        change = h @ delta.A.T @ delta.B.T * delta.scale
        hand = ratio(qkv[..., 64:], qkv[..., 64:] + change)
        assert row(effects, 'attn.v')[i] == pytest.approx(hand, rel=1e-4)


def test_batches_are_averaged_by_their_size():
    tuned, base = pair('AdaptFormer')
    x = torch.randn(5, *X)
    whole = method_effects(tuned, [x], base).values
    parts = method_effects(tuned, [x[:1], x[1:]], base).values
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_a_method_at_its_start_has_no_effect():
    tuned, base = pair({'type': 'LoRA', 'rank': 2}, spoil=False)
    effects = method_effects(tuned, [torch.randn(2, *X)], base)
    assert np.abs(effects.values).max() < 1e-6


def test_trained_base_weights_are_held_against_the_base():
    tuned, base = pair('BitFit')
    x = torch.randn(2, *X)
    effects = method_effects(tuned, [x], base)
    assert f'embed.proj{BASE}' in effects.rows
    assert effects.columns == ('in', '0', '1')
    for i in range(2):
        ours, theirs = tuned.layers[i], base.layers[i]
        for kind, module, plain in (
            ('ffn.fc2', ours.ffn.layers[1], theirs.ffn.layers[1]),
            ('norm1', ours.ln1, theirs.ln1),
            ('attn.proj', ours.attn.proj, theirs.attn.proj),
        ):
            h, y = seen(module, lambda: tuned(x))
            with torch.no_grad():
                hand = ratio(plain(h), y)
            got = row(effects, kind + BASE)[i + 1]
            assert got == pytest.approx(hand, rel=1e-4)
    last = seen(tuned.ln1, lambda: tuned(x))
    with torch.no_grad():
        hand = ratio(base.ln1(last[0]), last[1])
    assert row(effects, f'out.norm{BASE}')[2] == pytest.approx(hand, rel=1e-4)


@pytest.mark.parametrize('method', ['VPTDeep', 'Prefix', 'LoRA'])
def test_the_first_whole_block_is_the_difference_of_two_models(method):
    tuned, base = pair({'type': method, **tiny.SETTINGS.get(method, {'': {}})['']})
    x = torch.randn(2, *X)
    effects = method_effects(tuned, [x], base)
    before = seen(base.layers[0], lambda: base(x))[1]
    after = seen(tuned.layers[0], lambda: tuned(x))[1]
    # Prompts stand behind the class token.
    extra = after.shape[1] - before.shape[1]
    after = torch.cat((after[:, :1], after[:, 1 + extra :]), dim=1)
    assert row(effects, WHOLE)[0] == pytest.approx(ratio(before, after), rel=1e-4)


def test_prefixes_are_what_attention_makes_of_them():
    tuned, base = pair({'type': 'Prefix', 'num_tokens': 3})
    x = torch.randn(2, *X)
    effects = method_effects(tuned, [x], base)
    qkv = seen(tuned.layers[0].attn.qkv, lambda: tuned(x))[1]
    q, k, v = qkv.reshape(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    delta = tuned.layers[0].petl.attn_core['0']
    pk, pv = (
        p.view(1, 3, 4, 8).transpose(1, 2).expand(2, -1, -1, -1)
        for p in (delta.Pk, delta.Pv)
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    before = attend(q, k, v)
    after = attend(q, torch.cat((pk, k), 2), torch.cat((pv, v), 2))
    hand = ratio(before, after)
    assert row(effects, 'attn.core (added)')[0] == pytest.approx(hand, rel=1e-4)


def test_prompts_act_in_every_block_they_pass():
    tuned, base = pair({'type': 'VPTShallow', 'num_tokens': 4})
    effects = method_effects(tuned, [torch.randn(2, *X)], base)
    assert effects.rows == ('tokens (added)', WHOLE)
    assert (effects.values > 0).all()


def test_what_stands_behind_a_stage_is_at_its_last_block():
    tuned, base = pair({'type': 'SSF'}, 'mmpretrain_swin')
    effects = method_effects(tuned, [torch.randn(1, *X)], base)
    assert effects.columns == ('in', '0', '1', '2', '3')
    leaving = row(effects, 'out.norm')
    assert np.isfinite(leaving).tolist() == [False, False, True, False, True]
    assert np.isfinite(row(effects, 'embed.proj')).tolist() == [True] + [False] * 4


ON_SWIN = ('SSF', 'VPTDeep', 'Prefix', 'Mona', 'HST', 'LST', 'DTL')


@pytest.mark.parametrize('where', ['mmpretrain_vit', 'mmpretrain_swin_cls'])
def test_every_method_can_be_asked_and_stays_as_it_was(where):
    asked = 0
    once = {case.name: case for case in tiny.method_cases()}
    for case in once.values():
        if not tiny.fits(case, where):
            continue
        if where == 'mmpretrain_swin_cls' and case.name not in ON_SWIN:
            continue
        tuned, base = pair(case.build(), where)
        x = torch.randn(1, *X)
        with torch.no_grad():
            plain = tuned(x)
        before = copy.deepcopy(tuned.state_dict())
        counts = count_trainable(tuned)
        if not counts.backbone:
            with pytest.raises(PETLError, match='adds nothing to the backbone'):
                method_effects(tuned, [x], base)
            continue
        effects = method_effects(tuned, [x], base)
        asked += 1
        assert effects.rows[-1] == WHOLE, case.id
        found = effects.values[np.isfinite(effects.values)]
        assert (found >= 0).all(), case.id
        after = tuned.state_dict()
        assert list(after) == list(before), case.id
        assert all(torch.equal(after[k], before[k]) for k in before), case.id
        with torch.no_grad():
            assert torch.equal(tuned(x)[-1], plain[-1]), case.id
    assert asked >= (6 if 'swin' in where else 25)


def test_bad_questions_get_one_line():
    x = torch.randn(1, *X)
    tuned, base = pair('LinearProbe')
    with pytest.raises(PETLError, match='LinearProbe acts in no block: it adds noth'):
        method_effects(tuned, [x], base)
    tuned, base = pair('BitFit')
    with pytest.raises(PETLError, match='against the base; give it'):
        method_effects(tuned, [x])
    tuned, base = pair({'type': 'VQT'})
    with pytest.raises(PETLError, match='VQT.* changes no feature on its way'):
        method_effects(tuned, [x])
    with pytest.raises(PETLError, match='no points'):
        method_effects(tuned, [], base)
    tuned.train()
    with pytest.raises(PETLError, match='eval mode'):
        method_effects(tuned, [x], base)
