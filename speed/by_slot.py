"""What one pass for samples of several slots saves, beside a pass for each slot.

Example: OMP_NUM_THREADS=1 python speed/by_slot.py --slots 8 --batch 8 --rounds 9

A ViT-B/16 with a LoRA (rank 8) in each slot, evaluated on a batch whose samples take
the slots in turn. Within one run the batch is timed in four forms:

- *shared*: ``mmpetl.run_by_slot``, the trunk once over all samples;
- *apart*: a pass for the samples of each slot, with the others switched off;
- *one*: one slot for all samples, which is the least that a tuned pass takes;
- *frozen*: the trunk with all slots off.
"""

from __future__ import annotations

import argparse
import time

import torch
from methods import make_vit
from timing import header, markdown, ratio, time_rounds

import mmpetl


@torch.no_grad()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--slots', type=int, nargs='+', default=[8])
    parser.add_argument('--depth', type=int, default=12, help='blocks')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--wall', action='store_true', help='time by the clock')
    args = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x = torch.randn(args.batch, 3, 224, 224, device=device)
    torch.manual_seed(0)
    net = make_vit(args.depth)
    rows = [['slots', 'shared / apart', 'shared / one', 'shared / frozen']]
    for i in range(max(args.slots)):
        mmpetl.inject(net, {'type': 'LoRA', 'rank': 8}, slot=f's{i}')
        mmpetl.disable(net, f's{i}')
    net.to(device).eval()
    for param in net.parameters():
        if not param.any():  # a slot that has learnt nothing adds nothing
            param.normal_(std=0.02)
    for count in args.slots:
        slots = [f's{i % count}' for i in range(args.batch)]
        if args.batch < count:
            parser.error(f'{count} slots need a batch of as many samples')
        cases = {
            'shared': lambda slots=slots: mmpetl.run_by_slot(net, x, slots),
            'apart': lambda slots=slots: apart(net, x, slots),
            'one': lambda: mmpetl.run_by_slot(net, x, ['s0'] * len(x)),
            'frozen': lambda: mmpetl.run_by_slot(net, x, [None] * len(x)),
        }
        wanted = apart(net, x, slots)
        gap = (cases['shared']()[0] - wanted).abs().max() / wanted.abs().max()
        if gap > 1e-3:
            raise SystemExit(f'the two forms differ by {gap:.1e}')
        wall = args.wall or device == 'cuda'
        clock = time.perf_counter if wall else time.process_time
        times = time_rounds(cases, args.rounds, clock=clock)
        others = ('apart', 'one', 'frozen')
        rows.append([str(count), *(str(ratio(times, 'shared', o)) for o in others)])
    print(f'ViT-B/16, {args.depth} blocks, batch {args.batch}, {header(args.rounds)}')
    print(markdown(rows))


def apart(net: torch.nn.Module, x: torch.Tensor, slots: list[str]) -> torch.Tensor:
    """The samples of one slot after those of another, in the order of the batch."""
    found: list[torch.Tensor | None] = [None] * len(x)
    for slot in dict.fromkeys(slots):
        mmpetl.set_active(net, slot)
        rows = [i for i, own in enumerate(slots) if own == slot]
        for i, y in zip(rows, net(x[rows])[0], strict=True):
            found[i] = y
    mmpetl.set_active(net, [])
    return torch.stack(found)


if __name__ == '__main__':
    main()
