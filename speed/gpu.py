"""Everything that only a GPU can tell, in a few minutes on one card.

Example: python speed/gpu.py --out work_dirs/gpu --seconds 480
         python speed/gpu.py --small --seconds 120      # a trial without a GPU

Parts, each with its share of the time:

- *numbers*: every method on a tiny trunk in fp32, and with autocast in fp16 and bf16,
  beside the same step in fp64 on the CPU: outputs, and gradients of what trains;
- *tables*: speed/methods.py for ViT-B/16 and Swin-B at batch 64;
- *compiled*: a step under torch.compile, block by block, over the eager one;
- *offloaded*: a step whose activations wait in the memory of the machine, are computed
  again, or both, over a plain one;
- *batches*: the largest batch that fits, beside what tools/estimate.py says of it;
- *launcher*: one epoch by tools/dist_train.sh with a process per GPU;
- *benchmark*: mini jobs that share the device.

Every part leaves its lines in ``--out`` as it goes, and a call goes on where the last
one stopped; what found no time is named. The exit code is 1 where a number is wrong or
a command failed.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from methods import Step, make_vit, outputs_of
from methods import table as costs
from page import keep, read_rows
from timing import device_name, markdown, ratio, sync, time_rounds
from torch import nn

import mmpetl
from mmpetl.analysis.memory import estimate
from mmpetl.core import registered_methods
from mmpetl.engine.hooks.offload import offload_passes

ROOT = Path(__file__).resolve().parents[1]

SHARES = {
    'numbers': 0.2,
    'launcher': 0.1,
    'benchmark': 0.1,
    'batches': 0.1,
    'compiled': 0.1,
    'offloaded': 0.05,
    'tables': 0.35,
}
"""Of the time that is left for a part and those behind it, relative to each other."""

BOUNDS = {'fp32': 1e-3, 'fp16': 3e-2, 'bf16': 1e-1}
"""The most that outputs and gradients may differ from fp64, relative to their norm."""

SETTINGS: dict[str, Any] = {
    'Consolidator': {'type': 'Consolidator', 'groups': [48]},
}
"""Of methods whose defaults do not fit the tiny trunk."""

LESS = ('offloaded', 'recomputed', 'both')
"""Ways to keep less of a forward pass on the device."""

TRUNKS = ('vit_b', 'swin_b')

TYPES = {'fp32': None, 'fp16': torch.float16, 'bf16': torch.bfloat16}


class Part:
    """What one part has found: lines of a file, one for each case.

    Args:
        folder: Where the file lies.
        name: Of the part.
        until: When its time is over, in seconds of ``time.monotonic``.
        case: Facts of the run that a line must have to count as done.
    """

    def __init__(self, folder: Path, name: str, until: float, case: dict) -> None:
        self.path = folder / f'{name}.jsonl'
        self.until = until
        self.case = case
        self.rows: dict[str, dict[str, Any]] = {}
        self.left: list[str] = []
        for row in read_rows(self.path):
            if row['case'] == case:
                self.rows[row['name']] = row

    @property
    def seconds(self) -> float:
        """What is left of its time."""
        return self.until - time.monotonic()

    def missing(self, names: list[str]) -> Iterator[str]:
        """Those that are not done, as long as there is time."""
        for name in names:
            if name in self.rows:
                continue
            if self.seconds <= 0:
                self.left.append(name)
                continue
            yield name

    def keep(self, name: str, **found: Any) -> None:
        """Write a line."""
        self.rows[name] = {'name': name, 'case': self.case, **found}
        keep(self.path, self.rows[name])
        print(f'{self.path.stem} {name}: {found}', flush=True)


def tiny(name: str) -> nn.Module:
    """A ViT of four blocks with a method away from its start, in fp64.

    In eval mode: what draws numbers would draw others on another device.
    """
    from mmpretrain.models import VisionTransformer

    torch.manual_seed(0)
    arch = {
        'embed_dims': 96,
        'num_layers': 4,
        'num_heads': 6,
        'feedforward_channels': 192,
    }
    net = VisionTransformer(arch=arch, img_size=32, patch_size=8, out_type='cls_token')
    net = mmpetl.inject(net, SETTINGS.get(name, name)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return net


def results(net: nn.Module, x: torch.Tensor, kind: Any) -> list[torch.Tensor]:
    """Outputs and gradients, in fp64 on the CPU."""
    casts = nullcontext() if kind is None else torch.autocast(x.device.type, kind)
    with casts:
        outs = outputs_of(net(x))
    # A mean of squares would be the same for all that leaves a norm.
    torch.manual_seed(3)
    weights = [torch.randn(out.shape, dtype=torch.float64) for out in outs]
    pairs = zip(outs, weights, strict=True)
    loss = sum((out.double() * w.to(out.device)).sum() for out, w in pairs)
    found = [out.detach() for out in outs]
    if loss.requires_grad:
        net.zero_grad()
        loss.backward()
        found += [p.grad for p in net.parameters() if p.grad is not None]
    return [t.double().cpu() for t in found]


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, outputs and gradients each, the larger."""
    if len(one) != len(other):
        return float('inf')
    pairs = [(one[:1], other[:1]), (one[1:], other[1:])]
    found = [0.0]
    for a, b in pairs:
        if a:
            a, b = (torch.cat([t.flatten() for t in ts]) for ts in (a, b))
            found.append(float((a - b).norm() / b.norm().clamp_min(1e-12)))
    return max(found)


def numbers(part: Part, device: torch.device) -> bool:
    """Every method in three precisions beside fp64 on the CPU."""
    fine = True
    torch.manual_seed(2)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for name in part.missing(sorted(registered_methods())):
        try:
            net = tiny(name)
        except mmpetl.PETLError as error:
            part.keep(name, refused=str(error))
            continue
        exact = results(net, x, None)
        found = {}
        for text, kind in TYPES.items():
            near = copy.deepcopy(net).float().to(device)
            found[text] = difference(results(near, x.float().to(device), kind), exact)
        part.keep(name, **found)
    for name, row in part.rows.items():
        for text, bound in BOUNDS.items():
            if not row.get(text, 0) <= bound:
                print(f'numbers {name}: {text} differs by {row[text]:.2g}', flush=True)
                fine = False
    return fine


def command(part: Part, name: str, argv: list[str]) -> bool:
    """Run a command of the project, and keep how it ended."""
    for _ in part.missing([name]):
        began = time.monotonic()
        log = part.path.with_suffix('.log')
        with open(log, 'w', encoding='utf-8') as file:
            try:
                done = subprocess.run(
                    argv,
                    cwd=ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=max(1.0, part.seconds),
                )
            except subprocess.TimeoutExpired:
                part.left.append(name)
                return True
        if done.returncode:
            print(f'{name} ended with {done.returncode}: {log}', flush=True)
            return False
        part.keep(name, seconds=round(time.monotonic() - began, 1))
    return True


def compiled(part: Part, device: torch.device, small: bool) -> bool:
    """Steps whose blocks are compiled, over eager ones."""
    for name in part.missing(['LinearProbe', 'BitFit', 'LoRA', 'AdaptFormer', 'SSF']):
        x = torch.randn(2 if small else 64, 3, 224, 224, device=device)
        eager = mmpetl.inject(make_vit(1 if small else 12), name).to(device).train()
        other = copy.deepcopy(eager)
        for block in other.layers:
            block.compile()
        steps = {'eager': Step(eager, x), 'compiled': Step(other, x)}
        began = time.monotonic()
        steps['compiled']()
        first = time.monotonic() - began
        times = time_rounds(steps, 2 if small else 10)
        part.keep(
            name,
            ratio=ratio(times, 'compiled', 'eager').median,
            first_s=round(first, 1),
        )
    return True


def offloaded(part: Part, device: torch.device, small: bool) -> bool:
    """Steps that keep less on the device, over plain ones."""
    for name in part.missing(['LoRA', 'Full']):
        x = torch.randn(2 if small else 64, 3, 224, 224, device=device)
        plain = mmpetl.inject(make_vit(1 if small else 12), name).to(device).train()
        nets = {'plain': plain, **{way: copy.deepcopy(plain) for way in LESS}}
        for way, net in nets.items():
            for block in net.layers:
                block.with_cp = way in ('recomputed', 'both')
            if way in ('offloaded', 'both'):
                offload_passes(net)
        steps = {way: Step(net, x) for way, net in nets.items()}
        peaks = {f'{way} peak': step.peak_bytes() for way, step in steps.items()}
        times = time_rounds(steps, 2 if small else 10)
        found = {way: ratio(times, way, 'plain').median for way in LESS}
        part.keep(name, **found, **peaks)
    return True


def batches(part: Part, device: torch.device, small: bool) -> bool:
    """The largest batch that runs, and that of the estimate."""
    limit = 2**29
    if device.type == 'cuda':
        limit = torch.cuda.mem_get_info()[0]
    for name in part.missing(['Full', 'LoRA', 'SSF', 'LST', 'LinearProbe']):
        net = mmpetl.inject(make_vit(1 if small else 12), name).to(device).train()
        step = Step(net, torch.randn(2, 3, 224, 224, device=device))

        def loss_of(n: int, step: Step = step) -> torch.Tensor:
            step.x = torch.randn(n, 3, 224, 224, device=device)
            return step.loss()

        told = estimate(net, loss_of, step.optimizer, 2).fits(limit)
        runs = None
        if device.type == 'cuda':
            runs = largest(step, told, part)
        part.keep(name, told=told, runs=runs)
    return True


def largest(step: Step, start: int, part: Part) -> int:
    """The largest batch that runs, to 2 %, from a guess."""
    low, high = 0, max(2, 2 * start)
    while high - low > max(1, low // 50) and part.seconds > 0:
        middle = start if low == 0 and low < start < high else (low + high) // 2
        try:
            step.x = torch.randn(middle, 3, 224, 224, device='cuda')
            step()
            sync()
            low = middle
        except torch.OutOfMemoryError:
            high = middle
        step.x = None
        step.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return low


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu'))
    parser.add_argument('--seconds', type=float, default=480)
    parser.add_argument('--parts', nargs='+', choices=SHARES, default=list(SHARES))
    parser.add_argument('--small', action='store_true', help='on whatever is there')
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.small:
        print('error: torch sees no GPU; --small tries the script without', flush=True)
        return 1
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    case = {'device': device_name(), 'torch': torch.__version__, 'small': args.small}
    end = time.monotonic() + args.seconds
    fine, told = True, [f'{case}']
    waiting = [name for name in SHARES if name in args.parts]
    while waiting:
        name = waiting.pop(0)
        share = SHARES[name] / sum(SHARES[n] for n in (name, *waiting))
        now = time.monotonic()
        part = Part(out, name, now + share * max(0.0, end - now), case)
        fine &= run(name, part, device, args.small, out)
        told.append(f'\n## {name}\n\n{table(part.rows)}')
        if name == 'tables':
            for trunk in TRUNKS:
                rows = read_rows(out / f'{trunk}.jsonl')
                told.append(f'\n{trunk}\n\n{costs(rows)}' if rows else '')
        if part.left:
            told.append(f'\nno time for: {", ".join(part.left)}')
    text = '\n'.join(told) + '\n'
    (out / 'gpu.md').write_text(text, encoding='utf-8')
    print(text)
    return 0 if fine else 1


def run(name: str, part: Part, device: torch.device, small: bool, out: Path) -> bool:
    """One part; whether all of it is right."""
    if name == 'numbers':
        return numbers(part, device)
    if name == 'compiled':
        return compiled(part, device, small)
    if name == 'offloaded':
        return offloaded(part, device, small)
    if name == 'batches':
        return batches(part, device, small)
    if name == 'launcher':
        where = os.environ.setdefault('MMPETL_DATA', str(ROOT / 'data' / 'mini'))
        os.environ['PYTHON'] = sys.executable
        make = 'tools/misc/make_mini_data.py'
        data = command(
            part, 'data', [sys.executable, make, '--root', where, '--only', 'digits']
        )
        words = 'model.backbone.method.type=LoRA train_cfg.max_epochs=2'.split()
        folder = ['--work-dir', str(out / 'launched')]
        argv = ['bash', 'tools/dist_train.sh', 'configs/mini/digits.py', '1']
        return data and command(
            part, 'dist_train.sh', [*argv, *folder, '--cfg-options', *words]
        )
    if name == 'benchmark':
        argv = [sys.executable, 'tools/benchmark/run.py', 'mini', '--no-calibration']
        argv += ['--methods', 'LinearProbe', 'LoRA', 'SSF', '--recipes', 'mini/digits']
        argv += ['--seeds', '42', '--out', str(out / 'bench'), '--per-gpu', '3']
        return command(part, 'mini', argv)
    fine = True
    for trunk in TRUNKS:
        argv = [sys.executable, 'speed/methods.py', '--backbone', trunk, '--out']
        argv += [str(out / f'{trunk}.jsonl'), '--batch', '1' if small else '64']
        argv += ['--rounds', '1' if small else '3', '--wall']
        argv += ['--depth', '1', '--methods', 'LoRA', 'BitFit'] if small else []
        fine &= command(part, trunk, argv)
    return fine


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows as Markdown."""
    keys = list(dict.fromkeys(k for row in rows.values() for k in row))
    keys = [key for key in keys if key != 'case']
    lines = [[str(row.get(key, '-')) for key in keys] for row in rows.values()]
    return markdown([keys, *lines]) if keys else '-'


if __name__ == '__main__':
    sys.exit(main())
