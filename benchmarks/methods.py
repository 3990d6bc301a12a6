"""A training step of each method on ViT-B/16, relative to what its trunk costs.

Example: python benchmarks/methods.py --methods LoRA LST --rounds 7

*Bound*: the same frozen ViT with one trainable tensor in block 0, so forward plus
activation gradients down to that block: no in-backbone method can be cheaper. *Forward*
is the frozen trunk alone, the bound of side networks that spare it. Peak memory is
what the autograd graph keeps between forward and backward, counted by saved tensors,
parameters left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import header, markdown, ratio, time_rounds
from torch import nn

import mmpetl
from mmpetl.core import count_trainable, registered_methods


def make_vit(depth: int) -> nn.Module:
    """ViT-B/16 of mmpretrain."""
    from mmpretrain.models import VisionTransformer

    arch = {
        'embed_dims': 768,
        'num_layers': depth,
        'num_heads': 12,
        'feedforward_channels': 3072,
    }
    torch.manual_seed(0)
    return VisionTransformer(arch=arch, out_type='cls_token')


class Step:
    """Forward, backward and an AdamW step of a backbone with a linear head."""

    def __init__(self, net: nn.Module, x: torch.Tensor) -> None:
        self.net, self.x = net, x
        with torch.no_grad():
            width = net(x)[0].shape[-1]  # some methods hand over another
        self.head = nn.Linear(width, 10).to(x.device)
        params = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*params, *self.head.parameters()], 1e-4)

    def loss(self) -> torch.Tensor:
        """A scalar loss."""
        return self.head(self.net(self.x)[0]).square().mean()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def kept_bytes(self) -> int:
        """Bytes that autograd keeps for backward, parameters left out."""
        own = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        own |= {p.untyped_storage().data_ptr() for p in self.head.parameters()}
        kept: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = self.loss()
        total = sum(kept.values())
        del loss
        return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--methods', nargs='+', help='default: all')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--depth', type=int, default=12, help='blocks of the ViT')
    args = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x = torch.randn(args.batch, 3, 224, 224, device=device)

    def frozen_step() -> Step:
        # The bound: nothing but block 0's query bias trains below the head.
        net = make_vit(args.depth)
        mmpetl.inject(net, 'LinearProbe')
        net.layers[0].attn.qkv.bias.requires_grad_(True)
        return Step(net.to(device), x)

    trunk = make_vit(args.depth).to(device)
    mmpetl.inject(trunk, 'LinearProbe')

    def forward() -> None:
        with torch.no_grad():
            trunk(x)

    rows = [
        [
            'method',
            'parameters',
            'step / bound',
            'step / forward',
            'step / full',
            'kept / full',
        ]
    ]
    references: dict[str, Callable[[], None]] = {
        'bound': frozen_step(),
        'forward': forward,
    }
    full_net = make_vit(args.depth).to(device)
    mmpetl.inject(full_net, 'Full')
    references['full'] = Step(full_net, x)
    full_kept = references['full'].kept_bytes()
    for name in args.methods or sorted(registered_methods()):
        net = make_vit(args.depth)
        mmpetl.inject(net, name)
        net.train()
        step = Step(net.to(device), x)
        times = time_rounds({**references, 'step': step}, args.rounds)
        rows.append(
            [
                name,
                f'{count_trainable(net).backbone:,}',
                *(str(ratio(times, 'step', r)) for r in references),
                f'{step.kept_bytes() / full_kept:.2f}',
            ]
        )
        print(*rows[-1], sep='  ', flush=True)
    print(f'\n{header(args.rounds)}, batch {args.batch}, {args.depth} blocks\n')
    print(markdown(rows))


if __name__ == '__main__':
    main()
