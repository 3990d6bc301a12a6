"""A method on the layers of a model against the same method on a described backbone.

Example: python speed/leaves.py --rounds 10

LoRA on the fused projections of timm's ViT-B/16, both with the same deltas; and what
LoRA on every convolution costs a ResNet-50 that no file describes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import timm
import torch
from timing import header, markdown, ratio, time_rounds
from torch import nn

import mmpetl


class Wrapped(nn.Module):
    """A class that no file describes around a backbone that one does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the backbone gives."""
        return self.inner(x)


def make_cases() -> dict[str, tuple[nn.Module, nn.Module, torch.Tensor]]:
    """The model by its layers, what it is compared with, and an input."""
    lora = {'type': 'LoRA', 'rank': 8}
    images = torch.randn(2, 3, 224, 224)
    name = 'vit_base_patch16_224'
    ours = Wrapped(timm.create_model(name, num_classes=0))
    mmpetl.inject(ours, lora, layers='*.attn.qkv')
    theirs = timm.create_model(name, num_classes=0)
    mmpetl.inject(theirs, {**lora, 'targets': ('attn.qkv',)})
    both = Wrapped(timm.create_model(name, num_classes=0))
    mmpetl.inject(both, lora, layers=['*.attn.*', '*.mlp.*'])
    kinds = ('attn.qkv', 'attn.proj', 'ffn.fc1', 'ffn.fc2')
    all_kinds = timm.create_model(name, num_classes=0)
    mmpetl.inject(all_kinds, {**lora, 'targets': kinds})
    convs = timm.create_model('resnet50', num_classes=0)
    mmpetl.inject(convs, lora)
    plain = timm.create_model('resnet50', num_classes=0)
    mmpetl.inject(plain, 'BitFit')
    return {
        'LoRA(attn.qkv), timm ViT-B/16, by layers / described': (ours, theirs, images),
        'LoRA(all four), timm ViT-B/16, by layers / described': (
            both,
            all_kinds,
            images,
        ),
        'timm ResNet-50, LoRA on all convolutions / BitFit': (convs, plain, images),
    }


def forward(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A pass without gradients."""

    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass."""

    def run() -> None:
        model.zero_grad()
        model(x).sum().backward()

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--only', default='', help='part of the name of a case')
    args = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    rows = [['ratio', 'forward', 'step']]
    for name, (ours, theirs, x) in make_cases().items():
        if args.only.lower() not in name.lower():
            continue
        ours, theirs, x = ours.to(device), theirs.to(device), x.to(device)
        rows.append([name])
        for kind in (forward, step):
            runs = {'a': kind(theirs, x), 'b': kind(ours, x)}
            rows[-1].append(str(ratio(time_rounds(runs, args.rounds), 'b', 'a')))
        print(*rows[-1], sep='  ', flush=True)
    print(f'\n{header(args.rounds)}\n\n{markdown(rows)}')


if __name__ == '__main__':
    main()
