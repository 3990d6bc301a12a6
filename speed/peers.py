"""What a step costs with our methods, beside the same work in other libraries.

Example: PYTHONPATH=. python speed/peers.py --depth 4 --batch 2 --rounds 7 --write

Each type of Hugging Face's peft that acts on vision is put around timm's ViT-B/16,
saved, and loaded as ours around a second ViT: the same targets, sizes and values, and
outputs that agree (which is checked before anything is timed). mmpretrain's
``LoRAModel`` is held against our LoRA on mmpretrain's ViT-B/16, and timm's own
fine-tuning of everything against our ``Full``.

Within one run the two steps (forward, backward, AdamW) are timed in turn; a ratio is
taken within its round. *Kept* are the bytes that autograd keeps between forward and
backward, parameters left out; *allocated* what a step holds at most above what it began
with, as torch's allocator counts it. Below 1, ours is faster or smaller.

peft is no part of an installation: ``pip install peft``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from methods import Step, make_vit, text_of
from mmengine.logging import MMLogger
from page import keep, read_rows, write_table
from timing import device_name, markdown, ratio, time_rounds
from torch import nn
from torch.profiler import ProfilerActivity, profile

import mmpetl
from mmpetl.apis import load_peft

TARGETS = ['attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2']
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    'LoRA': ('LoraConfig', {'r': 8, 'lora_alpha': 16}),
    'DoRA': ('LoraConfig', {'r': 8, 'lora_alpha': 16, 'use_dora': True}),
    'IA3': ('IA3Config', {'feedforward_modules': ['mlp.fc2']}),
    'OFT': ('OFTConfig', {'oft_block_size': 32, 'use_cayley_neumann': False}),
    'BOFT': ('BOFTConfig', {'boft_block_size': 4, 'boft_n_butterfly_factor': 1}),
    'VeRA': ('VeraConfig', {'r': 64}),
    'HRA': ('HRAConfig', {'r': 8}),
    'LoHa': ('LoHaConfig', {'r': 8, 'alpha': 8}),
    'LoKr': ('LoKrConfig', {'r': 8, 'alpha': 8}),
    'FourierFT': ('FourierFTConfig', {'n_frequency': 1000}),
    'AdaLoRA': ('AdaLoraConfig', {'init_r': 12, 'target_r': 8, 'total_step': 1000}),
}
"""peft's configs, at the same targets; other arguments are peft's defaults."""

MMPRETRAIN = 'LoRA (mmpretrain)'
FULL = 'Full (timm)'


def timm_vit(depth: int) -> nn.Module:
    """ViT-B/16 of timm without a head, of some blocks."""
    import timm

    torch.manual_seed(0)
    return timm.create_model('vit_base_patch16_224', depth=depth, num_classes=0)


def pair_of_peft(name: str, depth: int) -> tuple[nn.Module, nn.Module]:
    """The model of peft and ours, of equal values and outputs."""
    import peft

    kind, args = TYPES[name]
    config = getattr(peft, kind)(target_modules=TARGETS, **args)
    theirs = peft.get_peft_model(timm_vit(depth), config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_peft(timm_vit(depth), folder)
    return theirs, ours


def pair_of_mmpretrain(depth: int) -> tuple[nn.Module, nn.Module]:
    """LoRA by mmpretrain of queries, keys and values, and ours."""
    from mmpretrain.models import LoRAModel

    size = {'embed_dims': 768, 'num_layers': depth, 'num_heads': 12}
    size['feedforward_channels'] = 3072
    base = {'type': 'mmpretrain.VisionTransformer', 'arch': size}
    base['out_type'] = 'cls_token'
    theirs = LoRAModel(base, alpha=16, rank=8, targets=[{'type': '.*qkv'}])
    state = theirs.module.state_dict().items()
    ours = make_vit(depth)
    ours.load_state_dict(
        {k.replace('.original_layer', ''): v for k, v in state if '.lora_' not in k}
    )
    method = {'type': 'LoRA', 'rank': 8, 'alpha': 16, 'targets': ['attn.qkv']}
    return theirs, mmpetl.inject(ours, method)


def pair_of_full(depth: int) -> tuple[nn.Module, nn.Module]:
    """The model of timm as it is, and with the method ``Full``."""
    return timm_vit(depth), mmpetl.inject(timm_vit(depth), 'Full')


def allocated(step: Callable[[], None]) -> int:
    """Bytes that a step holds at most above what it began with."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        began = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - began
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == '[memory]':
            held += event.nbytes()
            most = max(most, held)
    return most


def check_equal(theirs: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    """Raise unless both give the same features."""
    with torch.no_grad():
        a, b = (m.eval()(x) for m in (theirs, ours))
    a, b = (out[0] if isinstance(out, tuple) else out for out in (a, b))
    off = ((a - b).abs().max() / a.abs().max()).item()
    if off > 1e-4:
        raise SystemExit(f'outputs differ by {off:.1e}: this would compare other work')


def measure(name: str, depth: int, x: torch.Tensor, rounds: int, clock: Any) -> dict:
    """The row of a pair."""
    if name == MMPRETRAIN:
        theirs, ours = pair_of_mmpretrain(depth)
    elif name == FULL:
        theirs, ours = pair_of_full(depth)
    else:
        theirs, ours = pair_of_peft(name, depth)
    theirs, ours = theirs.to(x.device), ours.to(x.device)
    check_equal(theirs, ours, x)
    steps = {'theirs': Step(theirs.train(), x), 'ours': Step(ours.train(), x)}
    kept = {who: step.kept_bytes() for who, step in steps.items()}
    times = time_rounds(steps, rounds, clock=clock)
    most = {who: allocated(step) for who, step in steps.items()}
    counts = {
        who: sum(p.numel() for p in model.parameters() if p.requires_grad)
        for who, model in (('theirs', theirs), ('ours', ours))
    }
    return {
        'method': name,
        'parameters': counts,
        'kept_bytes': kept,
        'allocated_bytes': most,
        'step': list(vars(ratio(times, 'ours', 'theirs')).values()),
    }


def table(rows: list[Mapping[str, Any]]) -> str:
    """Rows as Markdown: ours over theirs."""
    head = 'ours / theirs, step, kept, allocated, trainable (ours), trainable (theirs)'
    lines = [head.split(', ')]
    for row in rows:
        kept, most = row['kept_bytes'], row['allocated_bytes']
        lines.append(
            [
                row['method'],
                text_of(row['step']),
                f'{kept["ours"] / kept["theirs"]:.2f}',
                f'{most["ours"] / most["theirs"]:.2f}',
                f'{row["parameters"]["ours"]:,}',
                f'{row["parameters"]["theirs"]:,}',
            ]
        )
    return markdown(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*TYPES, MMPRETRAIN, FULL]
    parser.add_argument('--only', nargs='+', choices=every, default=every)
    parser.add_argument('--depth', type=int, default=12, help='blocks')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--wall', action='store_true', help='time by the clock')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/peers.jsonl'))
    parser.add_argument('--again', action='store_true', help='also what is done')
    parser.add_argument('--write', action='store_true', help='write docs/speed.md')
    args = parser.parse_args()
    import peft

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    wall = args.wall or device == 'cuda'
    case = {
        'blocks': args.depth,
        'batch': args.batch,
        'rounds': args.rounds,
        'time': 'wall' if wall else 'processor',
        'device': device_name(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'peft': peft.__version__,
    }
    rows = {r['method']: r for r in read_rows(args.out) if r.get('case') == case}
    missing = [name for name in args.only if args.again or name not in rows]
    MMLogger.get_current_instance().setLevel('ERROR')
    x = torch.randn(args.batch, 3, 224, 224, device=device)
    clock = time.perf_counter if wall else time.process_time
    for number, name in enumerate(missing, 1):
        row = measure(name, args.depth, x, args.rounds, clock)
        rows[name] = {'case': case, **row}
        keep(args.out, rows[name])
        print(f'{number}/{len(missing)} {name}: {text_of(row["step"])}', flush=True)
    shown = [rows[name] for name in args.only if name in rows]
    print(f'\n{case}\n\n{table(shown)}')
    if args.write:
        write_table('peers', case, table(shown))


if __name__ == '__main__':
    main()
