"""A training step of each method, relative to what its trunk costs.

Example: python speed/methods.py --methods LoRA LST --rounds 7
         python speed/methods.py --backbone swin_b --depth 4 --batch 1

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
from mmpetl.config.compose import published_pairs
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


def make_swin(depth: int) -> nn.Module:
    """Swin-B of mmpretrain with the four outputs of dense tasks."""
    from mmpretrain.models import SwinTransformer

    arch = {
        'embed_dims': 128,
        'depths': [2, 2, depth, 2],
        'num_heads': [4, 8, 16, 32],
    }
    torch.manual_seed(0)
    return SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3))


def first_block(net: nn.Module) -> nn.Module:
    """The block that the bound trains a bias of."""
    return (
        net.stages[0].blocks[0].attn.w_msa
        if hasattr(net, 'stages')
        else (net.layers[0].attn)
    )


BACKBONES = {'vit_b': make_vit, 'swin_b': make_swin}


def dense_methods() -> list[str]:
    """Methods with published settings for detection or segmentation, and the probe."""
    dense = {'ade20k', 'coco', 'voc'}
    stems = {stem for stem, recipe in published_pairs() if recipe in dense}
    found = {name for name, m in registered_methods().items() if m.stem() in stems}
    return sorted({*found, 'LinearProbe'})


class Step:
    """Forward, backward and an AdamW step of a backbone, a linear head per output."""

    def __init__(self, net: nn.Module, x: torch.Tensor) -> None:
        self.net, self.x = net, x
        with torch.no_grad():
            outs = net(x)  # some methods hand over another width
        self.head = nn.ModuleList(nn.Linear(out.shape[1], 10) for out in outs)
        self.head.to(x.device)
        params = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*params, *self.head.parameters()], 1e-4)

    def loss(self) -> torch.Tensor:
        """A scalar loss."""
        pairs = zip(self.head, self.net(self.x), strict=True)
        # Class tokens are (B, C), maps (B, C, H, W).
        return sum(
            head(out.flatten(2).mT if out.ndim == 4 else out).square().mean()
            for head, out in pairs
        )

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
    parser.add_argument('--backbone', choices=BACKBONES, default='vit_b')
    parser.add_argument(
        '--methods', nargs='+', help='default: all, on swin_b those of dense tasks'
    )
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument(
        '--depth', type=int, default=12, help='blocks, of swin_b in stage 3'
    )
    args = parser.parse_args()
    make = BACKBONES[args.backbone]
    every = (
        dense_methods() if args.backbone == 'swin_b' else sorted(registered_methods())
    )
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x = torch.randn(args.batch, 3, 224, 224, device=device)

    def frozen_step() -> Step:
        # The bound: nothing but block 0's query bias trains below the head.
        net = make(args.depth)
        mmpetl.inject(net, 'LinearProbe')
        first_block(net).qkv.bias.requires_grad_(True)
        return Step(net.to(device), x)

    trunk = make(args.depth).to(device)
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
    full_net = make(args.depth).to(device)
    mmpetl.inject(full_net, 'Full')
    references['full'] = Step(full_net, x)
    full_kept = references['full'].kept_bytes()
    for name in args.methods or every:
        net = make(args.depth)
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
    case = f'batch {args.batch}, {args.backbone}, depth {args.depth}'
    print(f'\n{header(args.rounds)}, {case}\n')
    print(markdown(rows))


if __name__ == '__main__':
    main()
