"""Tokens of deltas in timm's plain transformers have no position."""

from __future__ import annotations

import copy

import pytest
import torch
from timm_models import SQUARE, made, sizes
from tiny import shake_
from torch import Tensor, nn

from mmpetl.core import inject


def prompts(model: nn.Module, block: int) -> Tensor:
    """Prompts of deep prompt tuning in front of a block, (T, C)."""
    (delta,) = model.blocks[block].petl.tokens.values()
    (table,) = delta.parameters()
    return table.reshape(-1, table.shape[-1])


PROMPTED = ['dinov3', 'eva', 'eva02', 'a rotation per block', 'narrow keys', 'mrope']


@pytest.mark.parametrize('name', PROMPTED)
@torch.no_grad()
def test_prompts_are_not_turned_and_patches_are(name: str) -> None:
    """Upstream's own blocks, told that prompts are tokens in front of the grid."""
    plain = made(name)
    model = inject(copy.deepcopy(plain), {'type': 'VPTDeep', 'num_tokens': 3})
    shake_(model, 1.0)
    own = plain.num_prefix_tokens
    for size in sizes(plain):
        images = torch.randn(2, *size, dtype=torch.double)
        bare = plain(images)
        x, rope = plain._pos_embed(plain.patch_embed(images))
        x = plain.norm_pre(x)
        for i, block in enumerate(plain.blocks):
            extra = prompts(model, i).expand(2, -1, -1)
            assert extra.shape[1] == 3
            block.attn.num_prefix_tokens = own + 3
            x = torch.cat((x[:, :own], extra, x[:, own:]), dim=1)
            mine = rope[i] if plain.rope_mixed and rope is not None else rope
            x = block(x, rope=mine)
            x = torch.cat((x[:, :own], x[:, own + 3 :]), dim=1)
        wanted = plain.forward_head(plain.norm(x))
        for block in plain.blocks:
            block.attn.num_prefix_tokens = own
        assert (wanted - bare).abs().max() > 1e-3
        torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['beit', 'beit, one table', 'beit, no table'])
@torch.no_grad()
def test_prompts_have_no_place_in_tables(name: str) -> None:
    """Upstream's own blocks, with biases that are spread entry by entry."""
    plain = made(name)
    model = inject(copy.deepcopy(plain), {'type': 'VPTDeep', 'num_tokens': 3})
    shake_(model, 1.0)
    images = torch.randn(2, *SQUARE, dtype=torch.double)
    x = torch.cat((plain.cls_token.expand(2, -1, -1), plain.patch_embed(images)), 1)
    x = x if plain.pos_embed is None else x + plain.pos_embed
    total = x.shape[1] + 3
    for i, block in enumerate(plain.blocks):
        bias = torch.zeros(4, total, total, dtype=torch.double)
        owner = block.attn if plain.rel_pos_bias is None else plain.rel_pos_bias
        if owner.relative_position_bias_table is not None:
            index = owner.relative_position_index
            places = [0, *range(4, total)]
            for a, row in enumerate(places):
                for b, column in enumerate(places):
                    entry = owner.relative_position_bias_table[index[a, b]]
                    bias[:, row, column] = entry
        block.attn.relative_position_bias_table = None
        x = torch.cat((x[:, :1], prompts(model, i).expand(2, -1, -1), x[:, 1:]), 1)
        x = block(x, shared_rel_pos_bias=bias[None])
        x = torch.cat((x[:, :1], x[:, 4:]), dim=1)
    wanted = plain.forward_head(plain.norm(x))
    torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['dinov3', 'beit, token'])
@torch.no_grad()
def test_queries_apart_from_the_grid_have_no_positions(name: str) -> None:
    """Query tuning: keys of the stream, queries without rotation or bias."""
    plain = made(name)
    model = inject(copy.deepcopy(plain), {'type': 'VQT', 'num_tokens': 2})
    shake_(model, 1.0)
    x = torch.randn(2, *SQUARE, dtype=torch.double)
    found = model(x)
    wanted = [torch.nn.functional.normalize(plain(x), dim=-1)]
    h = plain.patch_embed(x)
    if name == 'dinov3':
        h, rope = plain._pos_embed(h)
        inside = {'rope': rope}
    else:
        h, inside = torch.cat((plain.cls_token.expand(2, -1, -1), h), 1), {}
    for i, block in enumerate(plain.blocks):
        (delta,) = model.blocks[i].petl.block.values()
        seen = []
        keep = torch.nn.functional.scaled_dot_product_attention

        def watch(q, k, v, seen=seen, keep=keep, **more):
            seen.append((k, v))
            return keep(q, k, v, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watch)
            behind = block(h, **inside)
        ((k, v),) = seen
        e = delta.E.expand(2, -1, -1)
        n, attn = block.norm1(e), block.attn
        q = n @ attn.qkv.weight[:32].T + attn.q_bias
        q = q.reshape(2, 2, 4, 8).transpose(1, 2)
        o = (q @ k.mT / 8**0.5).softmax(-1) @ v
        e = e + block.gamma_1 * attn.proj(o.transpose(1, 2).flatten(2))
        e = e + block.gamma_2 * block.mlp(block.norm2(e))
        wanted.append(torch.nn.functional.normalize(e.flatten(1), dim=-1))
        h = behind
    torch.testing.assert_close(found, torch.cat(wanted, -1), rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_prompts_join_every_window_and_have_no_position() -> None:
    """The blocks of upstream on windows, prompts in front, one at a time."""
    plain = made('sam')
    model = inject(copy.deepcopy(plain), {'type': 'VPTDeep', 'num_tokens': 3})
    shake_(model, 1.0)
    images = torch.randn(2, *SQUARE, dtype=torch.double)
    x = plain.patch_embed(images) + plain.pos_embed
    for i, block in enumerate(plain.blocks):
        size = block.window_size or 4
        wide = -(-4 // size) * size
        h = nn.functional.pad(block.norm1(x), (0, 0, 0, wide - 4, 0, wide - 4))
        table_h, table_w = block.attn.rel_pos_h, block.attn.rel_pos_w
        extra = block.norm1(prompts(model, i)).expand(2, -1, -1)
        behind = torch.zeros_like(h)
        for top in range(0, wide, size):
            for left in range(0, wide, size):
                window = h[:, top : top + size, left : left + size].flatten(1, 2)
                tokens = torch.cat((extra, window), dim=1)
                q, k, v = (
                    t.unflatten(2, (4, 8)).transpose(1, 2)
                    for t in block.attn.qkv(tokens).chunk(3, dim=-1)
                )
                scores = q @ k.mT / 8**0.5
                for a in range(size * size):
                    for b in range(size * size):
                        down = a // size - b // size + size - 1
                        right = a % size - b % size + size - 1
                        place = table_h[down] + table_w[right]
                        scores[:, :, 3 + a, 3 + b] += q[:, :, 3 + a] @ place
                o = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
                y = block.attn.proj(o)[:, 3:].unflatten(1, (size, size))
                behind[:, top : top + size, left : left + size] = y
        x = x + behind[:, :4, :4]
        x = x + block.mlp(block.norm2(x))
    wanted = plain.head(plain.neck(x.permute(0, 3, 1, 2)))
    torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)
