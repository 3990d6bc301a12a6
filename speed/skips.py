"""What leaving tokens out saves a forward pass, beside computing and dropping them.

Example: python speed/skips.py --depth 12 --batch 2 --rounds 7

DyT on ViT-B/16 in evaluation. In every block the same share of patches passes the
feed-forward network: the bias of each selector is set to that quantile of what it gives
for the images that are timed. Within one run each share is timed in three forms:

- *skipped*: as it is, where only the tokens that pass enter the network;
- *masked*: all of them enter, and what is skipped is taken back;
- *frozen*: the trunk without the method.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from methods import make_vit
from timing import device_name, markdown, ratio, time_rounds
from torch import nn

import mmpetl


def select(net: nn.Module, x: torch.Tensor, share: float) -> None:
    """Let this share of the patches pass in every block, lowest block first."""
    for block in net.layers:
        delta = block.petl.ffn_sum['0']
        seen: list[torch.Tensor] = []
        handle = delta.select.register_forward_hook(
            lambda module, args, out, seen=seen: seen.append(out)
        )
        net(x)
        handle.remove()
        bound = torch.quantile(seen[0].flatten(), 1 - share) if share < 1 else -1e6
        delta.select.bias.sub_(bound)


def forward(net: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A pass without gradients, to be timed."""

    @torch.no_grad()
    def run() -> None:
        net(x)

    return run


@torch.no_grad()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--depth', type=int, default=12, help='blocks')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--shares', type=float, nargs='+', default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument('--wall', action='store_true', help='time by the clock')
    args = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x = torch.randn(args.batch, 3, 224, 224, device=device)
    torch.manual_seed(0)
    frozen = mmpetl.inject(make_vit(args.depth).to(device), 'LinearProbe')
    frozen.eval()
    rows = [['share', 'skipped / masked', 'skipped / frozen', 'masked / frozen']]
    for share in args.shares:
        cases = {'frozen': forward(frozen, x)}
        for form in ('skipped', 'masked'):
            torch.manual_seed(0)
            net = mmpetl.inject(make_vit(args.depth).to(device), 'DyT')
            net.eval()
            select(net, x, share)
            if form == 'masked':
                for block in net.layers:
                    block.petl.ffn_sum['0'].passing = lambda x, ctx: None
            cases[form] = forward(net, x)
        wall = args.wall or device == 'cuda'
        clock = time.perf_counter if wall else time.process_time
        times = time_rounds(cases, args.rounds, clock=clock)
        pairs = ('skipped', 'masked'), ('skipped', 'frozen'), ('masked', 'frozen')
        rows.append([f'{share:g}', *(str(ratio(times, *pair)) for pair in pairs)])
    print(f'ViT-B/16, {args.depth} blocks, batch {args.batch}, {device_name()}')
    print(markdown(rows))


if __name__ == '__main__':
    main()
