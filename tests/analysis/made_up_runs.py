"""A benchmark folder that nobody ran: records and predictions with known properties."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.core import registered_methods
from mmpetl.engine.hooks.predictions import write_predictions

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'analysis_tools'
METHODS = ('LinearProbe', 'Full', 'LoRA', 'Adapter', 'SSF', 'VPTDeep')


def make_bench(
    out: Path,
    *,
    tasks: Iterable[str] = ('digits', 'letters'),
    methods: Iterable[str] = METHODS,
    seeds: Iterable[int] = (42, 43),
    samples: int = 60,
    classes: int = 4,
    trials: bool = False,
) -> RecordStore:
    """Write one; accuracies differ by method, noise by method, seed and task."""
    store = RecordStore(out)
    for t, task in enumerate(tasks):
        labels = np.random.default_rng(t).integers(classes, size=samples)
        for m, method in enumerate(methods):
            for seed in seeds:
                rng = np.random.default_rng((t, m, seed))
                logits = rng.normal(size=(samples, classes))
                logits[np.arange(samples), labels] += 0.6 + 0.25 * m
                job = Job(recipe=f'mini/{task}', method=method, seed=seed)
                accuracy = 100 * float((logits.argmax(1) == labels).mean())
                record = Record(
                    job=job,
                    status='done',
                    family=registered_methods()[method].family,
                    task=task,
                    group='mini',
                    backbone='mini ViT',
                    metrics={'accuracy/top1': accuracy},
                    primary='accuracy/top1',
                    counts={'delta': 100 * m, 'selected': 0, 'head': 10, 'base': 1000},
                )
                if trials:
                    record.search = {
                        'trials': [
                            {
                                'number': i,
                                'status': 'done',
                                'options': {'lr': 10.0**-i},
                                'value': accuracy / (1 + i),
                            }
                            for i in range(3)
                        ]
                    }
                store.write(record)
                path = store.folder(job) / 'predictions.npz'
                write_predictions(path, logits.astype(np.float32), labels)
    return store


def run_tool(monkeypatch, name: str, *argv: object) -> None:
    """Run a tool as the command line does."""
    path = TOOLS / f'{name}.py'
    monkeypatch.setattr(sys, 'argv', [str(path), *map(str, argv)])
    try:
        runpy.run_path(str(path), run_name='__main__')
    except SystemExit as error:
        if error.code:
            raise


def refused(monkeypatch, capsys, name: str, *argv: object) -> str:
    """The one line with which a tool refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as info:
        run_tool(monkeypatch, name, *argv)
    assert info.value.code == 1
    lines = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
    assert len(lines) == 1
    return lines[0]


def check_picture(path: Path) -> None:
    """A whole PNG and the words beside it."""
    import json

    from PIL import Image

    with Image.open(path) as picture:
        picture.verify()
        assert picture.format == 'PNG'
    words = json.loads(path.with_suffix('.json').read_text())
    assert set(words) == {'title', 'caption', 'alt', 'section'}
    assert all(words.values())
    assert 'nan' not in words['alt']


DIGITS_METHODS = ('LinearProbe', 'LoRA', 'VPTDeep')


def make_runs(out: Path, data: Path) -> Path:
    """A benchmark folder of runs on tiny digits whose models were never trained.

    ``MMPETL_DATA`` must name ``data``, which is also linked into the folder.
    """
    from mmpetl.datasets.mini import make

    make(data, names=['vtab-1k/digits'], size='tiny')
    (out / 'data').symlink_to(data)
    jobs = [Job(recipe='mini/digits', method=m, seed=42) for m in DIGITS_METHODS]
    fake_runs(jobs, out, '')
    return out


def fake_runs(jobs, out, title, executor='local', workers=None) -> list[Record]:
    """What a run leaves, with a model whose trained tensors are drawn."""
    import torch
    from tiny import shake_

    from mmpetl.apis.building import build_model
    from mmpetl.apis.delta import export_delta
    from mmpetl.benchmark.job_config import compose_job

    store, found = RecordStore(out), []
    for job in jobs:
        folder = store.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        config = compose_job(job, folder)
        (folder / 'config.py').write_text(config.pretty_text)
        torch.manual_seed(job.seed)
        model = build_model(config, quiet=True)
        shake_(model, seed=job.seed)
        export_delta(model, config, folder / 'delta', metrics={})
        record = Record(
            job=job,
            status='done',
            family=registered_methods()[job.method].family,
            task='digits',
            group='mini',
            backbone='mini ViT',
            metrics={'accuracy/top1': 10.0},
            primary='accuracy/top1',
        )
        store.write(record)
        found.append(record)
    return found
