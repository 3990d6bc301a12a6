"""A ViT forward pass written out, with a place to edit each intermediate value.

What a method should compute is stated here in terms of a plain model, apart from the
sites through which the method acts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
import torch
from torch import Tensor, nn

import mmpetl

Edit = Callable[[str, int, Tensor, dict[str, Tensor]], Tensor]


def forward(model: nn.Module, images: Tensor, edit: Edit) -> Tensor:
    """Scores of timm's ViT, ``edit(place, block, value, seen)`` applied everywhere.

    Places, in order: embed; then per block x0, a (norm1), qkv_in, qkv, proj_in, m
    (proj), x1, g (norm2), fc1_in, u (fc1), fc2_in, f (fc2), x2; then final.
    """
    seen: dict[str, Tensor] = {}

    def at(place: str, value: Tensor, block: int = -1) -> Tensor:
        seen[place] = edit(place, block, value, seen)
        return seen[place]

    x = model.norm_pre(model._pos_embed(at('embed', model.patch_embed(images))))
    for i, b in enumerate(model.blocks):
        x = at('x0', x, i)
        w = at('qkv_in', at('a', b.norm1(x), i), i)
        qkv = at('qkv', b.attn.qkv(w), i)
        q, k, v = qkv.unflatten(-1, (3, b.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        o = at('proj_in', (weights @ v).transpose(1, 2).flatten(2), i)
        x = at('x1', x + at('m', b.attn.proj(o), i), i)
        h = at('fc1_in', at('g', b.norm2(x), i), i)
        u = nn.functional.gelu(at('u', b.mlp.fc1(h), i))
        f = at('f', b.mlp.fc2(at('fc2_in', u, i)), i)
        x = at('x2', x + f, i)
    x = at('final', model.norm(x))
    return model.head(x[:, 0])


def bottleneck(delta: nn.Module, z: Tensor, activation: Callable) -> Tensor:
    """``act(z Wd^T + bd) Wu^T + bu`` from the tensors of an adapter."""
    hidden = activation(z @ delta.down.weight.T + delta.down.bias)
    return hidden @ delta.up.weight.T + delta.up.bias


def tuned(method: Any, std: float = 0.1) -> nn.Module:
    """The tiny timm ViT in float64 with ``method``, all its tensors moved."""
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    model.eval()
    tiny.shake_(model, std)
    return model


def delta(model: nn.Module, block: int, key: str) -> nn.Module:
    """The delta at a site of a block."""
    return model.blocks[block].petl.get_submodule(f'{key}.0')


def check(model: nn.Module, edit: Edit) -> None:
    """A tuned model gives what the plain one gives with ``edit``, and not less."""
    x = tiny.images('timm_vit', dtype=torch.float64)
    plain = tiny.base('timm_vit', torch.float64)
    with torch.no_grad():
        want = forward(plain, x, edit)
        unedited = forward(plain, x, lambda place, i, value, seen: value)
        torch.testing.assert_close(unedited, plain(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-10)
        assert (want - unedited).abs().max() > 1e-3
