"""Made-up records: enough of them, and odd enough, to try tables and the report on.

Nothing here was measured. Every record says so in its device and its base file. As a
program it fills a benchmark folder with them::

    python tests/benchmark/synthetic.py work_dirs/bench/synthetic
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from mmpetl.benchmark.records import DataRead, Job, Record, RecordStore
from mmpetl.datasets.vtab import VTAB_TASKS
from mmpetl.evaluation.ppt import ppt

METHODS: dict[str, tuple[str, int, float]] = {
    'Full': ('baseline', 85_798_656, -4.0),
    'LinearProbe': ('baseline', 0, -9.0),
    'BitFit': ('specification', 102_912, 0.0),
    'DiffFit': ('specification', 140_544, 1.0),
    'GPS': ('specification', 167_424, 2.5),
    'LNTune': ('specification', 38_400, -1.0),
    'PartialK': ('baseline', 7_089_408, -3.5),
    'Adapter': ('adapter', 156_768, 1.4),
    'AdaptFormer': ('adapter', 156_768, 1.8),
    'Convpass': ('adapter', 327_552, 2.6),
    'LoRand': ('adapter', 915_456, 0.2),
    'Mona': ('adapter', 2_684_928, 2.2),
    'SCT': ('adapter', 111_744, 2.0),
    'SNF': ('adapter', 258_192, 1.7),
    'UTuning': ('adapter', 377_976, 1.2),
    'BAPAT': ('prefix', 4_748_544, 0.6),
    'Prefix': ('prefix', 184_320, -0.8),
    'VQT': ('prefix', 92_160, -2.2),
    'VPTDeep': ('prompt', 460_800, 0.8),
    'VPTShallow': ('prompt', 76_800, -4.4),
    'LoRA': ('reparameterisation', 294_912, 1.6),
    'FacTTK': ('reparameterisation', 86_528, 1.9),
    'FacTTT': ('reparameterisation', 38_144, 1.7),
    'Hydra': ('reparameterisation', 276_480, 2.1),
    'RepAdapter': ('reparameterisation', 239_808, 2.3),
    'SSF': ('reparameterisation', 205_056, 1.8),
    'E3VA': ('side', 1_195_008, -0.5),
    'DTL': ('side', 36_864, 2.0),
    'HST': ('side', 780_000, 2.2),
    'LAST': ('side', 660_000, 2.1),
    'LST': ('side', 2_380_000, -0.2),
}

FGVC = {
    'cub_200_2011': 88.5,
    'nabirds': 83.9,
    'oxford_flowers': 98.9,
    'stanford_cars': 86.0,
    'stanford_dogs': 90.2,
}

START = datetime(2026, 1, 5, tzinfo=timezone.utc)


def records(number: int = 2500, seed: int = 0) -> list[Record]:
    """Made-up records: VTAB and FGVC on ViT-B/16, the rest on Swin-B, 3 seeds.

    About one in sixty fails, some cells are missing, some methods have variants.
    """
    rng = random.Random(seed)
    found = []
    for place, job_facts in enumerate(_cells()):
        if place >= number:
            break
        found.append(_record(rng, place, *job_facts))
    if len(found) < number:
        raise ValueError(f'{number} records were asked for, {len(found)} are possible')
    return found


Facts = tuple[str, str, str, float, str, int, str, str]


def _cells() -> Iterator[Facts]:
    """Recipe, task, group, level, method, seed, backbone, variant."""
    levels = random.Random('levels')
    vtab = [
        (f'vtab/{task.id}', task.id, task.group, levels.uniform(35, 92))
        for task in VTAB_TASKS.values()
    ]
    fgvc = [
        (f'fgvc/{name}', name, 'fine-grained', level) for name, level in FGVC.items()
    ]
    for seed in (42, 43, 44):
        for method in METHODS:
            for recipe, task, group, level in (*vtab, *fgvc):
                # Holes: a method that was never run on these.
                if method == 'HST' and task in ('kitti', 'dmlab'):
                    continue
                yield recipe, task, group, level, method, seed, 'ViT-B/16', ''
    for seed in (42, 43, 44):
        for method in ('LoRA', 'Mona', 'BitFit', 'Adapter', 'LinearProbe', 'SSF'):
            for recipe, task, group, level in (*vtab, *fgvc):
                yield recipe, task, group, level + 1, method, seed, 'Swin-B', 'swin'
    for seed in (42, 43, 44):
        for method in ('LoRA', 'Adapter'):
            for recipe, task, group, level in vtab:
                yield recipe, task, group, level, method, seed, 'ViT-B/16', 'small'


def _record(
    rng: random.Random,
    place: int,
    recipe: str,
    task: str,
    group: str,
    level: float,
    method: str,
    seed: int,
    backbone: str,
    variant: str,
) -> Record:
    family, count, gain = METHODS[method]
    protocol = 'published' if recipe.startswith('fgvc') and backbone == 'Swin-B' else ''
    options = {'method.rank': 2} if variant == 'small' else {}
    job = Job(recipe, method, seed, protocol or 'honest', 'final', options, variant)
    count = count // 4 if variant == 'small' else count
    seconds = rng.uniform(300, 2400)
    started = START + timedelta(minutes=7 * place)
    common = dict(
        family=family,
        task=task,
        group=group,
        backbone=backbone,
        config_hash=f'{rng.getrandbits(64):016x}',
        base={'file': 'synthetic, not measured', 'fingerprint': backbone},
        seconds=seconds,
        device='synthetic',
        versions={'mmpetl': '0'},
        started=started.isoformat(timespec='seconds'),
        finished=(started + timedelta(seconds=seconds)).isoformat(timespec='seconds'),
    )
    if method != 'LST':  # records of an earlier format do not know these
        common |= dict(
            data=_data(task),
            recipe_digest=hashlib.sha256(recipe.encode()).hexdigest()[:16],
            batch=64,
            processes=1,
            threads=2,
            host='made-up',
            shared=1,
            total_seconds=1.1 * seconds,
        )
    if rng.random() < 1 / 60:
        return Record(
            job,
            'failed',
            attempts=3,
            error='RuntimeError: made up: loss is not finite at step 311',
            **common,
        )
    own = random.Random(f'{method}-{task}').gauss(gain, 2.2)
    score = min(99.5, max(2.0, level + own + rng.gauss(0, 0.5)))
    memory = 2.2e9 + 55 * count + (0 if family == 'side' else 2.6e9) + rng.gauss(0, 4e7)
    top = score + rng.uniform(0, 1)
    steps = [100 * i for i in range(1, 41)]
    return Record(
        job,
        'done',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        ppt=ppt(score / 100, count),
        counts={'delta': count, 'selected': 0, 'head': 76_900},
        curves={
            'loss': [
                [s, 0.1 + 3.5 * math.exp(-s / 700) + rng.gauss(0, 0.03)] for s in steps
            ],
            'accuracy/top1': [
                [s, top * (1 - math.exp(-s / 500)) + rng.gauss(0, 0.4)]
                for s in steps[::4]
            ],
        },
        test_reads=1,
        step_seconds=0.08 + count * 8e-10 + rng.gauss(0, 0.002),
        peak_memory_bytes=int(memory),
        delta_bytes=None if method == 'LST' else 4 * count + 4096,
        settings={'rank': 2} if variant == 'small' else {},
        **common,
    )


def _data(task: str) -> dict[str, DataRead]:
    """What a run on a task would have read; the same for every method."""
    sizes = {'train': 800, 'val': 200, 'test': 5000}
    return {
        phase: DataRead(
            hashlib.sha256(f'{task} {phase}'.encode()).hexdigest(),
            size,
            'VTAB',
            'content',
        )
        for phase, size in sizes.items()
    }


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit('usage: python tests/benchmark/synthetic.py FOLDER')
    store = RecordStore(sys.argv[1])
    for record in records():
        store.write(record)


if __name__ == '__main__':
    main()
