"""A run that is none: its record is made up, and says so. For ``speed/scale.py``."""

from __future__ import annotations

import math
import random
from pathlib import Path

from mmpetl.benchmark.records import Record
from mmpetl.benchmark.task import Task

STEPS = [100 * i for i in range(1, 41)]
CURVES = {
    'loss': [
        [s, 3.5 * math.exp(-s / 700) + random.Random(s).random() / 30] for s in STEPS
    ],
    'lr': [[s, 1e-3 * (1 - s / 4001)] for s in STEPS],
}
"""One for all: what is measured is the price of a record, not of making one up."""


def run(task: Task, folder: Path) -> Record:
    """A record of the usual size, of a made-up score."""
    job = task.job
    rng = random.Random(job.id)
    level = random.Random(job.recipe).uniform(40, 90)
    gain = random.Random(job.method).gauss(0, 2)
    score = min(99.0, max(1.0, level + gain + rng.gauss(0, 0.5)))
    return Record(
        job,
        'done',
        family='synthetic',
        task=job.recipe.rpartition('/')[2],
        group='natural',
        backbone='ViT-B/16',
        metrics={'accuracy/top1': score},
        primary='accuracy/top1',
        counts={'delta': 300_000, 'selected': 0, 'head': 76_900},
        curves=CURVES,
        base={'file': 'simulated, not measured', 'fingerprint': 'simulated'},
        test_reads=1,
        seconds=rng.uniform(300, 2400),
        step_seconds=0.08,
        peak_memory_bytes=3 * 2**30,
        device='simulated',
        versions={'mmpetl': '0'},
        started='2026-01-05T00:00:00+00:00',
        finished='2026-01-05T00:10:00+00:00',
    )
