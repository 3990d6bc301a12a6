"""What each method costs, relative to what its trunk costs.

Example: python speed/methods.py --depth 4 --batch 2 --rounds 5 --write
         python speed/methods.py --backbone swin_b --depth 4 --methods LoRA Mona
         python speed/methods.py --kept --depth 4 --batch 2 --write

Every method is injected into the same trunk, and within one run a step of it is timed
against

- *bound*: the same frozen trunk with one trainable bias in the lowest block that the
  method sends a gradient to, so forward plus activation gradients down to there: no
  method that trains that far down can be cheaper. A method that sends no gradient into
  the trunk (a side network, a probe) has the frozen forward pass for its bound;
- *forward*: the frozen trunk alone;
- *full*: fine-tuning of everything.

*Kept* are the bytes that autograd keeps between forward and backward, parameters left
out; *peak*, on a GPU, those that a step takes at most above parameters and optimizer.
*Folded* is a forward pass of the folded trunk, of methods that fold. *Disk* is the
saved delta, both files.

Seconds are those of the processor (``--wall``: of the clock), so that other work on the
machine counts little; a ratio is taken within its round, whose references
``--together`` methods share. Every row is kept in ``--out`` as it is done, and a call
goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from page import keep, read_rows, write_table
from timing import Ratio, device_name, markdown, ratio, time_rounds
from torch import nn

import mmpetl
from mmpetl.apis.published_counts import read_published
from mmpetl.config.compose import published_pairs
from mmpetl.core import count_trainable, registered_methods
from mmpetl.engine.allocator import keep_freed_memory
from mmpetl.models.frame_backbone import FrameBackbone

ROOT = Path(__file__).resolve().parents[1]
COSTS = ROOT / 'docs' / 'speed' / 'methods.json'


def make_vit(depth: int) -> nn.Module:
    """ViT-B/16 of mmpretrain."""
    from mmpretrain.models import VisionTransformer

    arch = {
        'embed_dims': 768,
        'num_layers': depth,
        'num_heads': 12,
        'feedforward_channels': 3072,
    }
    return VisionTransformer(arch=arch, out_type='cls_token')


def make_videomae(depth: int) -> nn.Module:
    """VideoMAE ViT-B of mmaction2, 8 frames."""
    from mmaction.models import VisionTransformer

    return VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dims=768,
        depth=depth,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=True,
        num_frames=8,
    )


def make_swin(depth: int) -> nn.Module:
    """Swin-B of mmpretrain with the four outputs of dense tasks."""
    from mmpretrain.models import SwinTransformer

    arch = {
        'embed_dims': 128,
        'depths': [2, 2, depth, 2],
        'num_heads': [4, 8, 16, 32],
    }
    return SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3))


def make_video_swin(depth: int) -> nn.Module:
    """Video Swin-B of mmaction2, 8 frames."""
    from mmaction.models import SwinTransformer3D

    arch = {
        'embed_dims': 128,
        'depths': [2, 2, depth, 2],
        'num_heads': [4, 8, 16, 32],
    }
    return SwinTransformer3D(arch, pretrained=None, pretrained2d=False)


def make_frames(depth: int) -> nn.Module:
    """ViT-B/16 of mmpretrain over the 8 frames of a clip, for what looks along time."""
    return FrameBackbone(make_vit(depth), 8)


BACKBONES = {
    'vit_b': (make_vit, (3, 224, 224)),
    'vit_b_frames': (make_frames, (3, 8, 224, 224)),
    'videomae_b': (make_videomae, (3, 8, 224, 224)),
    'swin_b': (make_swin, (3, 224, 224)),
    'video_swin_b': (make_video_swin, (3, 8, 224, 224)),
}
"""How each trunk is made, of how many blocks (Swins: in stage 3), and its input."""

DEPTHS = {
    'vit_b': 12,
    'vit_b_frames': 12,
    'videomae_b': 12,
    'swin_b': 18,
    'video_swin_b': 18,
}


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The blocks of a trunk, lowest first."""
    if isinstance(net, FrameBackbone):
        net = net.model
    if hasattr(net, 'stages'):
        return [block for stage in net.stages for block in stage.blocks]
    if hasattr(net, 'blocks'):
        return list(net.blocks)
    layers = list(net.layers)
    return [b for layer in layers for b in getattr(layer, 'blocks', [layer])]


def outputs_of(out: Any) -> list[torch.Tensor]:
    """What leaves a trunk, as a list."""
    return list(out) if isinstance(out, tuple | list) else [out]


def dense_methods() -> list[str]:
    """Methods with published settings for detection or segmentation, and the probe."""
    dense = {'ade20k', 'coco', 'voc'}
    stems = {stem for stem, recipe in published_pairs() if recipe in dense}
    found = {name for name, m in registered_methods().items() if m.stem() in stems}
    return sorted({*found, 'LinearProbe'})


def video_methods() -> list[str]:
    """Methods with published figures on video, all at their defaults here."""
    rows = read_published(ROOT / 'tools' / 'analysis_tools' / 'published_counts.csv')
    return sorted({r.setting.partition('(')[0] for r in rows if r.table == 'video'})


def methods_for(backbone: str) -> list[str]:
    """What is measured on a trunk where no methods are named."""
    if backbone == 'swin_b':
        return dense_methods()
    if backbone in ('videomae_b', 'video_swin_b'):
        return video_methods()
    known = registered_methods()
    if backbone == 'vit_b_frames':  # the others are on vit_b
        return sorted(name for name, method in known.items() if method.along_time)
    return sorted(known)


class Step:
    """Forward, backward and an AdamW step of a backbone, a linear head per output."""

    def __init__(self, net: nn.Module, x: torch.Tensor) -> None:
        self.net, self.x = net, x
        with torch.no_grad():
            outs = outputs_of(net(x))  # some methods hand over another width
        self.head = nn.ModuleList(nn.Linear(out.shape[1], 10) for out in outs)
        self.head.to(x.device)
        params = [p for p in net.parameters() if p.requires_grad]
        params += self.head.parameters()
        self.optimizer = torch.optim.AdamW(params, 1e-4, fused=True)  # as a run's is

    def loss(self) -> torch.Tensor:
        """A scalar loss."""
        pairs = zip(self.head, outputs_of(self.net(self.x)), strict=True)
        # Class tokens are (B, C), maps (B, C, H, W) or (B, C, T, H, W).
        return sum(
            head(out.flatten(2).mT if out.ndim > 2 else out).square().mean()
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

    def peak_bytes(self) -> int | None:
        """Bytes of the GPU that a step takes at most above what lies there."""
        if self.x.device.type != 'cuda':
            return None
        self()  # what the optimizer keeps is made by the first
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return torch.cuda.max_memory_allocated() - before


def lowest_block(net: nn.Module, x: torch.Tensor) -> int | None:
    """The lowest block whose output asks for a gradient, None where none does."""
    found: list[int] = []

    def watch(index: int) -> Callable:
        def note(module: nn.Module, args: Any, out: Any) -> None:
            if outputs_of(out)[0].requires_grad:
                found.append(index)

        return note

    handles = [
        block.register_forward_hook(watch(i)) for i, block in enumerate(blocks_of(net))
    ]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return min(found, default=None)


class References:
    """The frozen forward pass, full fine-tuning, and a bound for each lowest block."""

    def __init__(self, make: Callable[[], nn.Module], x: torch.Tensor) -> None:
        self.make, self.x = make, x
        self.trunk = self._frozen()
        full = mmpetl.inject(make().to(x.device), 'Full')
        full.train()
        self.full = Step(full, x)
        self.full_kept = self.full.kept_bytes()
        self._bounds: dict[int, Step] = {}

    def _frozen(self) -> nn.Module:
        net = mmpetl.inject(self.make().to(self.x.device), 'LinearProbe')
        net.train()  # some of upstream's return nothing
        return net

    @torch.no_grad()
    def forward(self) -> None:
        """A pass of the frozen trunk."""
        self.trunk(self.x)

    def bound(self, index: int | None) -> Callable[[], None]:
        """What no method can undercut that sends a gradient down to this block."""
        if index is None:
            return self.forward
        if index not in self._bounds:
            net = self._frozen()
            # The bias of its first norm is the first thing that could train in a block.
            modules = blocks_of(net)[index].modules()
            norm = next(m for m in modules if isinstance(m, nn.LayerNorm))
            norm.bias.requires_grad_(True)
            self._bounds[index] = Step(net, self.x)
        return self._bounds[index]


def of_delta(net: nn.Module, make: Callable[[], nn.Module], method: str) -> dict:
    """Bytes of the saved delta, seconds to save it and to load it."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        mmpetl.save_delta(net, Path(folder) / 'delta')
        saved = time.perf_counter()
        other = mmpetl.inject(make(), method)
        begun = time.perf_counter()
        mmpetl.load_delta(other, Path(folder) / 'delta')
        loaded = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {'disk': size, 'save_s': saved - began, 'load_s': loaded - begun}


class Measured:
    """A method in the trunk: its step, its row, and its folded trunk where it folds."""

    def __init__(self, name: str, references: References) -> None:
        x = references.x
        net = mmpetl.inject(references.make(), name).to(x.device)
        net.train()
        self.lowest = lowest_block(net, x)
        self.step = Step(net, x)
        self.row: dict[str, Any] = {
            'method': name,
            'parameters': count_trainable(net).backbone,
            'lowest_block': self.lowest,
            'kept': self.step.kept_bytes() / references.full_kept,
            'peak': self.step.peak_bytes(),
            **of_delta(net, references.make, name),
        }
        self.folded = None
        if mmpetl.core.build_method(name).folds:
            self.folded = mmpetl.fold(copy.deepcopy(net))
            self.folded.eval()  # some of upstream's return nothing


def time_folded(
    folded: Mapping[str, nn.Module],
    references: References,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, Ratio]:
    """Forward passes of folded trunks beside that of the frozen one, by method."""

    @torch.no_grad()
    def run(net: nn.Module) -> None:
        net(references.x)

    cases: dict[str, Callable[[], None]] = {'forward': references.forward}
    cases |= {name: partial(run, net) for name, net in folded.items()}
    times = time_rounds(cases, rounds, clock=clock)
    return {name: ratio(times, name, 'forward') for name in folded}


def measure(
    methods: Mapping[str, Measured],
    references: References,
    rounds: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """The rows of methods whose steps are timed in the same rounds.

    Args:
        methods: The methods, by name.
        references: What a step is beside.
        rounds: How many; of the folded trunks three times as many, for a forward pass
            is a third of a step, and should be the original's to two hundredths.
        clock: Seconds.
    """
    bounds = {m.lowest: references.bound(m.lowest) for m in methods.values()}
    cases: dict[Any, Callable[[], None]] = {
        'forward': references.forward,
        'full': references.full,
    }
    cases |= {('bound', lowest): run for lowest, run in bounds.items()}
    cases |= {('step', name): m.step for name, m in methods.items()}
    times = time_rounds(cases, rounds, clock=clock)
    for name, m in methods.items():
        for case, beside in (
            ('bound', ('bound', m.lowest)),
            ('forward', 'forward'),
            ('full', 'full'),
        ):
            found = ratio(times, ('step', name), beside)
            m.row[f'step_{case}'] = list(vars(found).values())

    folded = {name: m.folded for name, m in methods.items() if m.folded is not None}
    if folded:
        for name, found in time_folded(folded, references, 3 * rounds, clock).items():
            methods[name].row['folded_forward'] = list(vars(found).values())
    return [m.row for m in methods.values()]


def measure_kept(
    name: str, make: Callable[[], nn.Module], x: torch.Tensor, full: int
) -> dict[str, Any]:
    """The row of a method in the table of what is kept, which times nothing.

    Args:
        name: The method.
        make: Makes the trunk.
        x: A batch.
        full: Bytes that full fine-tuning keeps.
    """
    net = make().to(x.device)
    size = sum(param.numel() for param in net.parameters())
    net = mmpetl.inject(net, name)
    net.train()
    count = count_trainable(net).backbone
    kept = Step(net, x).kept_bytes() / full
    return {'method': name, 'parameters': count, 'share': count / size, 'kept': kept}


def table_of_kept(rows: list[Mapping[str, Any]]) -> str:
    """Rows of :func:`measure_kept` as Markdown, what keeps most first."""
    lines = [['method', 'parameters', '% of the trunk', 'kept / full']]
    lines += [
        [
            row['method'],
            f'{row["parameters"]:,}',
            f'{100 * row["share"]:.2f}',
            f'{row["kept"]:.3f}',
        ]
        for row in sorted(rows, key=lambda row: -row['kept'])
    ]
    return markdown(lines)


def batched(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The names, so many at a time."""
    for start in range(0, len(names), size):
        yield names[start : start + size]


def text_of(found: list[float] | None) -> str:
    """A ratio with its quartiles."""
    if found is None:
        return '-'
    median, low, high = found[:3]
    return f'{median:.2f} ({low:.2f} to {high:.2f})'


def table(rows: list[Mapping[str, Any]]) -> str:
    """Rows as Markdown."""
    head = 'method, parameters, step / bound, step / forward, step / full, kept / full'
    head += ', folded / forward, disk KiB, save ms, load ms'
    on_gpu = any(row.get('peak') for row in rows)
    lines = [head.split(', ') + ['peak MiB'] * on_gpu]
    for row in sorted(rows, key=lambda row: row['method'].lower()):
        line = [
            row['method'],
            f'{row["parameters"]:,}',
            *(text_of(row[f'step_{case}']) for case in ('bound', 'forward', 'full')),
            f'{row["kept"]:.2f}',
            text_of(row.get('folded_forward')),
            f'{row["disk"] / 1024:,.0f}',
            f'{1000 * row["save_s"]:.0f}',
            f'{1000 * row["load_s"]:.0f}',
        ]
        if on_gpu:
            line.append('-' if row['peak'] is None else f'{row["peak"] / 2**20:,.0f}')
        lines.append(line)
    return markdown(lines)


def write(case: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> None:
    """Write the table of a case, and its rows, into docs."""
    COSTS.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(COSTS.read_text(encoding='utf-8')) if COSTS.is_file() else {}
    own = [{k: v for k, v in row.items() if k != 'case'} for row in rows]
    own.sort(key=lambda row: row['method'].lower())
    kept[case['backbone']] = {'case': dict(case), 'rows': own}
    COSTS.write_text(json.dumps(kept, indent=1) + '\n', encoding='utf-8')
    write_table(f'methods {case["backbone"]}', case, table(rows))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--backbone', choices=BACKBONES, default='vit_b')
    parser.add_argument(
        '--methods',
        nargs='+',
        help='default: all, on swin_b those of dense tasks, on videomae_b and '
        'video_swin_b those with published figures, on vit_b_frames those that look '
        'along time',
    )
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument(
        '--together', type=int, default=4, help='methods in the same rounds'
    )
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--depth', type=int, help='blocks, of Swins in stage 3')
    parser.add_argument('--wall', action='store_true', help='time by the clock')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/speed.jsonl'))
    parser.add_argument('--kept', action='store_true', help='only kept bytes, untimed')
    parser.add_argument('--again', action='store_true', help='also what is done')
    parser.add_argument('--write', action='store_true', help='write docs/speed.md')
    args = parser.parse_args()
    make, shape = BACKBONES[args.backbone]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    keeps = device == 'cpu' and keep_freed_memory()  # as a run does
    case = {
        'backbone': args.backbone,
        'blocks': args.depth or DEPTHS[args.backbone],
        'batch': args.batch,
        'rounds': args.rounds,
        'time': 'wall' if args.wall or device == 'cuda' else 'processor',
        'device': device_name(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
    }
    if args.kept:
        for timed in ('rounds', 'time', 'threads'):
            del case[timed]
    wanted = args.methods or methods_for(args.backbone)
    rows = {r['method']: r for r in read_rows(args.out) if r.get('case') == case}
    missing = [name for name in wanted if args.again or name not in rows]

    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return make(case['blocks'])

    if args.kept:
        x = torch.randn(args.batch, *shape, device=device)
        full = None
        for number, name in enumerate(missing, 1):
            if full is None:
                net = mmpetl.inject(seeded().to(device), 'Full')
                net.train()
                full = Step(net, x).kept_bytes()
                del net
            try:
                rows[name] = {'case': case, **measure_kept(name, seeded, x, full)}
            except mmpetl.PETLError as error:
                print(f'{name}: {error}', flush=True)
                continue
            keep(args.out, rows[name])
            kept = rows[name]['kept']
            print(f'{number}/{len(missing)} {name}: {kept:.3f}', flush=True)
        text = table_of_kept([rows[name] for name in wanted if name in rows])
        print(f'\n{case}\n\n{text}')
        if args.write:
            write_table(f'kept {args.backbone}', case, text)
        return

    references = None
    clock = time.perf_counter if case['time'] == 'wall' else time.process_time
    done = 0
    for names in batched(missing, args.together):
        if references is None:
            x = torch.randn(args.batch, *shape, device=device)
            references = References(seeded, x)
        methods = {}
        gc.collect()  # those before are in cycles, and hold gigabytes
        if keeps:
            ctypes.CDLL(None).malloc_trim(0)
        for name in names:
            try:
                methods[name] = Measured(name, references)
            except mmpetl.PETLError as error:
                print(f'{name}: {error}', flush=True)
        for row in measure(methods, references, args.rounds, clock):
            rows[row['method']] = {'case': case, **row}
            keep(args.out, rows[row['method']])
            ratios = ', '.join(
                f'{text_of(row[f"step_{c}"])} of {c}'
                for c in ('bound', 'forward', 'full')
            )
            done += 1
            print(f'{done}/{len(missing)} {row["method"]}: {ratios}', flush=True)
    shown = [rows[name] for name in wanted if name in rows]
    print(f'\n{case}\n\n{table(shown)}')
    if args.write:
        write(case, shown)


if __name__ == '__main__':
    main()
