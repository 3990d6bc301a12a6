"""How large a run checkpoint is, and what importing mmpetl adds.

Example: python speed/footprint.py
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys

import torch

import mmpetl


def checkpoint_bytes() -> tuple[int, int]:
    """LoRA (rank 8) on ViT-B/16: bytes of the saved delta, and of its numbers."""
    from mmpretrain.models import VisionTransformer

    model = VisionTransformer(arch='base')
    mmpetl.inject(model, {'type': 'LoRA', 'rank': 8})
    state = mmpetl.delta_state(model)
    file = io.BytesIO()
    torch.save({'state_dict': state, 'meta': {}}, file)
    return file.tell(), sum(t.numel() * t.element_size() for t in state.values())


def import_seconds(statement: str, rounds: int = 5) -> float:
    """Median seconds that a fresh interpreter takes for some imports."""
    code = f'import time; t = time.perf_counter(); {statement}; '
    code += 'print(time.perf_counter() - t)'
    times = []
    for _ in range(rounds):
        out = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        )
        times.append(float(out.stdout.splitlines()[-1]))
    return statistics.median(times)


def main() -> None:
    """Print both."""
    total, numbers = checkpoint_bytes()
    print(f'LoRA r=8 on ViT-B/16: {total:,} bytes saved, {numbers:,} bytes of numbers')
    base = import_seconds('import torch, mmengine, mmengine.registry')
    ours = import_seconds('import torch, mmengine, mmengine.registry, mmpetl')
    print(f'import torch, mmengine: {base:.2f} s; with mmpetl: {ours:.2f} s')


if __name__ == '__main__':
    main()
