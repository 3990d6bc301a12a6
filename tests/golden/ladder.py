"""The trunk of LST's vision-and-language code, which no file of ours describes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmpetl.core import Affine, Context, Site, build_method


class PostNormLayer(nn.Module):
    """``a = LN(h + Attn h)``, ``LN(a + MLP a)``."""

    def __init__(self, dims: int, hidden: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dims, dims) for _ in range(3))
        self.proj = nn.Linear(dims, dims)
        self.norm1 = nn.LayerNorm(dims, eps)
        self.fc1, self.fc2 = nn.Linear(dims, hidden), nn.Linear(hidden, dims)
        self.norm2 = nn.LayerNorm(dims, eps)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (
            part(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        h = self.norm1(h + self.proj((scores @ v).transpose(1, 2).flatten(2)))
        return self.norm2(h + self.fc2(F.gelu(self.fc1(h))))


class PostNormTrunk(nn.Module):
    """A projection of token features and post-norm layers, with the sites of a ladder.

    Deltas lie at ``petl.<key of the site>``, a block's with its index in front.
    """

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dims, eps = c['hidden_size'], c['layernorm_eps']
        self.heads, self.hidden = c['heads'], c['intermediate_size']
        self.fc = nn.Linear(c['input_dim'], dims)
        self.norm = nn.LayerNorm(dims, eps)
        self.layers = nn.ModuleList(
            PostNormLayer(dims, self.hidden, self.heads, eps)
            for _ in range(c['layers'])
        )
        self.petl = nn.ModuleDict()

    def sites(self) -> dict[str, Site]:
        """By the name of the delta."""
        dims, depth = self.norm.bias.numel(), len(self.layers)
        facts = {'num_heads': self.heads, 'mlp_dims': self.hidden}
        blocks = {
            f'{i}': Site('block', f'{i}', dims, dims, i, 0, depth, **facts)
            for i in range(depth)
        }
        ends = {kind: Site(kind, '', dims, dims) for kind in ('embed', 'out')}
        return {'embed': ends['embed'], **blocks, 'out': ends['out']}

    def forward(self, x: Tensor) -> Tensor:
        ctx = Context((1, x.shape[1]))

        def at(name: str, x: Tensor, y: Tensor) -> Tensor:
            return self.petl[name].after(x, y, ctx) if name in self.petl else y

        z = self.norm(self.fc(x))
        z = at('embed', z, z)
        for i, layer in enumerate(self.layers):
            z = at(f'{i}', z, layer(z))
        return at('out', z, z)


def plug_by_hand(trunk: PostNormTrunk, config: dict[str, Any]) -> None:
    """Freeze the trunk and put deltas at its sites."""
    trunk.requires_grad_(False)
    method, sites = build_method(config), trunk.sites()
    chosen = set(method.choose(list(sites.values())))
    deltas = {n: method.build(site) for n, site in sites.items() if site in chosen}

    def weights(host: str, kind: str) -> Affine:
        norm = getattr(trunk.layers[int(host)], kind)
        return Affine.of(kind, norm.weight, norm.bias, norm.eps)

    method.initialise({sites[n]: delta for n, delta in deltas.items()}, weights)
    for name, delta in deltas.items():
        delta.attach('0', None)
        trunk.petl[name] = delta
