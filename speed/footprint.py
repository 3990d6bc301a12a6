"""How large a run checkpoint is, and what imports take.

Models of mmpretrain and mmaction2 are imported as runs of pictures and clips do it, and
with mmdet's, as without ``mmpetl.compat.detection``.

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
    """Median seconds of processor that a fresh interpreter takes for some imports."""
    code = f'import time; {statement}; print(time.process_time())'
    times = []
    for _ in range(rounds):
        out = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', code],
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(float(out.stdout.splitlines()[-1]))
    return statistics.median(times)


def main() -> None:
    """Print all."""
    total, numbers = checkpoint_bytes()
    print(f'LoRA r=8 on ViT-B/16: {total:,} bytes saved, {numbers:,} bytes of numbers')
    base = import_seconds('import torch, mmengine, mmengine.registry')
    ours = import_seconds('import torch, mmengine, mmengine.registry, mmpetl')
    print(f'import torch, mmengine: {base:.2f} s; with mmpetl: {ours:.2f} s')
    for package in ('mmpretrain', 'mmaction'):
        apart = import_seconds(f'import mmpetl, {package}.models')
        whole = import_seconds(f'import mmpetl, mmdet.models, {package}.models')
        print(f'import {package}.models: {apart:.2f} s; with mmdet: {whole:.2f} s')


if __name__ == '__main__':
    main()
