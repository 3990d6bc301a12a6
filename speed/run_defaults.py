"""What a run takes by itself: fused optimizers, masks in few bits, memory that stays.

Example: OMP_NUM_THREADS=1 python speed/run_defaults.py --methods LoRA Mona Full

The first table has the step of AdamW alone, fused over plain operations
(``mmpetl.engine.optim.can_fuse``). The second has a step of training in processes whose
memory is kept between steps (``mmpetl.engine.allocator``), over such that give it back,
in turns; both on a CPU, in time of the processor. The third has dropout on the hidden
features of 4 pictures in a ViT-B/16, and its gradient, over PyTorch's
(``mmpetl.core.dropout``). The fourth has a collection of garbage, as MMEngine makes one
with each data set: over all that a run has imported, and behind it alone
(``mmpetl.compat.garbage``).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from methods import BACKBONES, Step
from timing import markdown, ratio, time_rounds

import mmpetl
from mmpetl.compat.garbage import heap_spared
from mmpetl.core.dropout import dropout
from mmpetl.engine.allocator import keep_freed_memory

DEPTH, BATCH = 4, 4


def tuned_step(name: str) -> Step:
    """A step of a method on ViT-B/16 of few blocks."""
    make, shape = BACKBONES['vit_b']
    torch.manual_seed(0)
    net = mmpetl.inject(make(DEPTH), name)
    net.train()
    return Step(net, torch.randn(BATCH, *shape))


def optimizers(names: list[str], rounds: int) -> list[list[str]]:
    """A row for each method: tensors that train, and fused over plain steps."""
    rows = [['method', 'tensors', 'fused / plain step of AdamW', 'ms']]
    for name in names:
        step = tuned_step(name)
        step.loss().backward()
        params = [p for g in step.optimizer.param_groups for p in g['params']]
        made = {
            kind: torch.optim.AdamW(params, 1e-4, fused=kind == 'fused', foreach=False)
            for kind in ('fused', 'plain')
        }
        cases = {kind: optimizer.step for kind, optimizer in made.items()}
        times = time_rounds(cases, rounds, clock=time.process_time)
        found = ratio(times, 'fused', 'plain')
        rows.append([name, str(len(params)), str(found), f'{1e3 * found.seconds:.1f}'])
    return rows


def one(name: str, rounds: int) -> None:
    """Print the median of the seconds of a step, in a process of its own."""
    step = tuned_step(name)
    times = time_rounds({'step': step}, rounds, clock=time.process_time)
    print(statistics.median(times['step']))


def kept(names: list[str], rounds: int) -> list[list[str]]:
    """A row for each method: a step with memory kept over one without."""
    rows = [['method', 'kept / given back', 's']]
    for name in names:
        times: dict[str, list[float]] = {'kept': [], 'back': []}
        for _ in range(rounds):
            for how in times:
                command = [sys.executable, __file__, '--one', name, '--how', how]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                times[how].append(float(done.stdout.split()[-1]))
        found = ratio(times, 'kept', 'back')
        rows.append([name, str(found), f'{found.seconds:.2f}'])
    return rows


def masks(rounds: int) -> list[list[str]]:
    """A row: dropout and its gradient over PyTorch's."""
    x = torch.randn(BATCH, 197, 3072, requires_grad=True)
    grad = torch.randn_like(x)
    kinds = {'ours': dropout, 'theirs': F.dropout}
    cases = {
        name: lambda drop=drop: torch.autograd.grad(drop(x, 0.1), x, grad)
        for name, drop in kinds.items()
    }
    times = time_rounds(cases, 20 * rounds, clock=time.process_time)
    found = ratio(times, 'ours', 'theirs')
    return [
        ['elements', "dropout / PyTorch's", 'ms'],
        [f'{x.numel():,}', str(found), f'{1e3 * found.seconds:.1f}'],
    ]


def collections(rounds: int) -> list[list[str]]:
    """A row: milliseconds of a collection of all, and behind what is loaded."""
    for name in ('mmpretrain.datasets', 'mmpretrain.models', 'mmpetl.engine'):
        importlib.import_module(name)

    def spared() -> None:
        with heap_spared():
            gc.collect()

    cases = {'spared': spared, 'whole': gc.collect}
    times = time_rounds(cases, rounds, clock=time.process_time)
    medians = [1e3 * statistics.median(times[name]) for name in ('whole', 'spared')]
    return [
        ['objects', 'whole, ms', 'spared, ms'],
        [f'{len(gc.get_objects()):,}', *(f'{ms:.1f}' for ms in medians)],
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--methods', nargs='+', default=['LoRA', 'Mona', 'Full'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--how', help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    if args.one:
        if args.how == 'kept' and not keep_freed_memory():
            raise SystemExit(
                'memory cannot be kept here: no glibc, or the user said so'
            )
        one(args.one, args.rounds)
        return
    print(markdown(optimizers(args.methods, args.rounds)), end='\n\n', flush=True)
    print(markdown(kept(args.methods, args.rounds)), end='\n\n', flush=True)
    print(markdown(masks(args.rounds)), end='\n\n', flush=True)
    print(markdown(collections(args.rounds)))


if __name__ == '__main__':
    main()
