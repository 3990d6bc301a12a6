"""The runs of the kill series: what is trained, and what must be equal at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / 'configs' / 'mini'
METHOD = 'model.backbone.method'
DATA = ('vtab-1k/digits', 'nyud_mt')

SHORT = {
    f'{METHOD}.type': 'LoRA',
    'train_cfg.max_epochs': 4,
    'train_dataloader.batch_size': 6,
    'test_dataloader.batch_size': 16,
    'param_scheduler': [
        {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 7},
        {'type': 'CosineAnnealingLR', 'T_max': 4, 'by_epoch': True},
    ],
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
    'default_hooks.logger.interval': 1,
}
"""Thirty pictures: an epoch has five steps, a run twenty."""

INSIDE = {
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 3,
}
WORKERS = {
    'train_dataloader.num_workers': 2,
    'train_dataloader.persistent_workers': True,
    'train_dataloader.prefetch_factor': 2,
}
BEST = {
    'train_cfg.val_interval': 1,
    'val_dataloader.batch_size': 4,
    'default_hooks.checkpoint.save_best': 'auto',
}
"""Ten pictures to validate on: three batches."""
# The stage that chooses settings has no test set.
HONEST = {key: value for key, value in SHORT.items() if 'test_' not in key}
EMA = [{'type': 'mmpetl.TrainableEMAHook', 'decay': 0.9}]
STEPS = {
    'train_cfg': {
        '_delete_': True,
        'type': 'IterBasedTrainLoop',
        'max_iters': 20,
        'val_interval': 4,
    },
    'train_dataloader.sampler': {
        '_delete_': True,
        'type': 'InfiniteSampler',
        'shuffle': True,
    },
    'param_scheduler': [{'type': 'CosineAnnealingLR', 'T_max': 20, 'by_epoch': False}],
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 3,
}
STEPS_BEST = {
    'val_dataloader.batch_size': 4,
    'default_hooks.checkpoint.save_best': 'auto',
}
NOAH = {
    'num_tokens': 10,
    'rank': 10,
    'hidden_dims': 10,
    'space': {'widths': [1, 5, 10], 'depths': [2, 4, 6]},
}
EVOLUTION = {
    'generations': 3,
    'population': 6,
    'parents': 3,
    'mutations': 3,
    'crossovers': 2,
}


@dataclass(frozen=True)
class Scenario:
    """One kind of run.

    Attributes:
        name: Its name in the table.
        run: Called with the folder and whether it goes on; trains to the end.
        ends: What its end is, by name; None for :func:`run_end`.
        processes: How many train together.
        kills: How often it is killed in the whole series.
        at: Where it is killed first: ``('step', 4)``; other kills are spread.
    """

    name: str
    run: Callable[[Path, bool], None]
    ends: Callable[[Path], dict[str, Any]] | None = None
    processes: int = 1
    kills: int = 3
    at: tuple[tuple[str, int], ...] = ()


def train(
    options: Mapping[str, Any],
    config: str = 'digits.py',
    base: Mapping[str, Any] = SHORT,
    hooks: list[dict[str, Any]] | None = None,
    processes: int = 1,
    **how: Any,
) -> Callable[[Path, bool], None]:
    """A run of ``apis.train``, which tools/train.py calls."""

    def run(folder: Path, resume: bool) -> None:
        from mmpetl import apis

        changes = {**base, **options}
        whole = {k: changes.pop(k) for k in ('param_scheduler',) if k in changes}
        made = apis.load_config(MINI / config, changes, folder, **how)
        for key, value in whole.items():
            made[key] = value
        made.custom_hooks = [*(made.get('custom_hooks') or ()), *(hooks or ())]
        made.log_level = 'WARNING'
        made.resume = resume
        apis.train(made, launcher='pytorch' if processes > 1 else 'none')

    return run


def run_end(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, schedules and the choice of the best of a run."""
    import torch

    from mmpetl.engine.best import read_best
    from mmpetl.engine.latest import newest_checkpoint

    last, _ = newest_checkpoint(folder)
    if last is None:
        raise FileNotFoundError(f'{folder} holds no checkpoint')
    content = torch.load(last, map_location='cpu', weights_only=True)
    best = read_best(folder)
    kept = sorted(p.name for p in folder.glob('best_*.pth'))
    end = {
        'last': last.name,
        'checkpoints': sorted(p.name for p in folder.glob('*.pth')),
        'progress': [content['meta'][key] for key in ('epoch', 'iter')],
        'weights': dict(content['state_dict']),
        'own values': content.get('own_values'),
        'optimizer': content.get('optimizer'),
        'schedules': content.get('param_schedulers'),
        'best': [[b.file, b.metric, b.score, b.epoch, b.iter] for b in best],
        'best files': kept,
        'left over': sorted(p.name for p in folder.glob('*.part')),
    }
    for name in kept:
        saved = torch.load(folder / name, map_location='cpu', weights_only=True)
        end[f'weights of {name}'] = dict(saved['state_dict'])
    return end


def bench_end(folder: Path) -> dict[str, Any]:
    """Metrics, trials and deltas of the records of a sweep or search."""
    from safetensors.torch import load_file

    end: dict[str, Any] = {}
    for path in sorted(folder.glob('runs/*/record.json')):
        record = json.loads(path.read_text(encoding='utf-8'))
        name = path.parent.name
        keys = ('status', 'metrics', 'primary', 'search', 'test_reads')
        end[name] = {key: record.get(key) for key in keys}
        for trial in (record.get('search') or {}).get('trials', ()):
            trial.pop('seconds')
        delta = path.parent / 'delta.safetensors'
        if delta.is_file():
            end[f'{name}: delta'] = load_file(delta)
    return end


def search_end(folder: Path) -> dict[str, Any]:
    """What NOAH's search has written, without where its files lie."""
    found = json.loads((folder / 'found.json').read_text(encoding='utf-8'))
    lines = (folder / 'search.jsonl').read_text(encoding='utf-8').splitlines()
    return {'found': found, 'candidates': [json.loads(line) for line in lines]}


JOB = {
    'train_cfg.max_epochs': 2,
    'train_dataloader.batch_size': 6,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'param_scheduler.1.end': 2,
    'param_scheduler.1.T_max': 1,
}


def sweep(folder: Path, resume: bool) -> None:
    """Three jobs of the benchmark, one of them under the published protocol."""
    from mmpetl.benchmark.executors import make_executor
    from mmpetl.benchmark.records import Job
    from mmpetl.benchmark.sweep import Sweep

    often = {
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 1,
        'train_dataloader.batch_size': 6,
        'param_scheduler.0.T_max': 2,
        'param_scheduler.0.warmup': 1,
    }
    jobs = [
        Job('mini/digits', 'BitFit', seed=1, options=JOB),
        Job('mini/digits', 'LoRA', seed=1, options=JOB),
        Job('mini/digits', 'BitFit', seed=2, protocol='published', options=often),
    ]
    executor = make_executor('inline')
    Sweep(jobs, folder, executor, toolboxes=('mmpretrain',), poll_s=0.05).run()


def noah_job(folder: Path, resume: bool) -> None:
    """NOAH's three phases as one job."""
    from mmpetl.benchmark.executors import make_executor
    from mmpetl.benchmark.records import Job
    from mmpetl.benchmark.sweep import Sweep

    phases = {'supernet': {'max_epochs': 2}, 'search': {'evolution': EVOLUTION}}
    phases['search']['limit'] = 20_000
    options = {f'{METHOD}.{key}': value for key, value in NOAH.items()}
    job = Job(
        'mini/digits', 'NOAH', seed=1, options={**JOB, **options, 'phases': phases}
    )
    executor = make_executor('inline')
    Sweep([job], folder, executor, toolboxes=('mmpretrain',), poll_s=0.05).run()


def search(folder: Path, resume: bool) -> None:
    """A search of three trials and a run of what it found."""
    from mmpetl.benchmark.executors import make_executor
    from mmpetl.benchmark.search import Search

    executor = make_executor('inline')
    made = Search(
        ('BitFit',),
        'mini/digits',
        folder,
        executor,
        trials=3,
        seeds=(1,),
        base={'BitFit': JOB},
        poll_s=0.05,
        toolboxes=('mmpretrain',),
    )
    made.run()


def noah_search(folder: Path, resume: bool) -> None:
    """NOAH's search alone, in a supernet that is trained for a few steps."""
    supernet = folder.parents[1] / 'supernet'
    options = {
        'train_cfg.supernet': str(supernet),
        'train_cfg.evolution': EVOLUTION,
        'val_dataloader.batch_size': 20,
    }
    train(options, 'noah_digits_search.py', base={})(folder, True)


SUPERNET = {
    'train_cfg.max_epochs': 4,
    'train_dataloader.batch_size': 6,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'param_scheduler.1.end': 4,
    'param_scheduler.1.T_max': 3,
}
TASKS = {
    f'{METHOD}': {'type': 'PolyhistorLite', 'rank': 6},
    'model.backbone.checkpoint': None,
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 2,
    'default_hooks.checkpoint.interval': 1,
}
GPS = {f'{METHOD}': {'_delete_': True, 'type': 'GPS'}}
SCT = {f'{METHOD}': {'_delete_': True, 'type': 'SCT'}}
FIRST = (('step', 2), ('before', 1))
"""Before there is any checkpoint: the run begins anew."""
OPEN = (('step', 4), ('step', 8), ('step', 10), ('step', 16))
"""Behind the checkpoints 3, 6, 9, all inside an epoch, and 15, which ends one. With
gradients of two steps added up, one step waits at 3, 9 and 15."""
COUNTS = 'optim_wrapper.accumulative_counts'
TUNE = {'stage': 'tune'}
PUBLISHED = {'protocol': 'published'}


def _both(
    name: str,
    options: Mapping[str, Any],
    at: tuple[tuple[str, int], ...] = (),
    **how: Any,
) -> Scenario:
    """A run of two processes; an epoch has three steps, a run twelve."""
    made = train(options, processes=2, **how)
    kills = max(2, len(at))
    return Scenario(f'{name}, 2 processes', made, processes=2, kills=kills, at=at)


SCENARIOS = [
    Scenario('epochs', train({}), kills=4, at=FIRST),
    Scenario('epochs, workers', train(WORKERS)),
    Scenario('epochs, accumulation', train({COUNTS: 3})),
    Scenario('epochs, EMA', train(BEST, hooks=EMA, **PUBLISHED)),
    Scenario('best, published', train(BEST, **PUBLISHED), kills=6),
    Scenario('best, honest', train(BEST, base=HONEST, **TUNE), kills=4),
    Scenario('inside epochs', train(INSIDE), kills=5, at=OPEN),
    Scenario(
        'inside epochs, accumulation', train({**INSIDE, COUNTS: 2}), kills=6, at=OPEN
    ),
    Scenario('inside epochs, workers', train({**INSIDE, **WORKERS}), at=OPEN[1:3]),
    Scenario(
        'inside epochs, EMA and best',
        train({**INSIDE, **BEST, COUNTS: 4}, hooks=EMA, **PUBLISHED),
        kills=4,
    ),
    Scenario('steps', train(STEPS)),
    Scenario('steps, accumulation', train({**STEPS, COUNTS: 4})),
    Scenario('steps, workers', train({**STEPS, **WORKERS}), kills=2),
    Scenario(
        'steps, best, published',
        train({**STEPS, **STEPS_BEST}, **PUBLISHED),
        kills=4,
    ),
    Scenario('GPS', train(GPS), at=FIRST[:1]),
    Scenario('SCT', train(SCT), at=FIRST[:1]),
    Scenario('NOAH, supernet', train(SUPERNET, 'noah_digits_supernet.py', base={})),
    Scenario('NOAH, search', noah_search, search_end, kills=2),
    # In the supernet, in the search, and in the run of what was found.
    Scenario(
        'NOAH, a job of three phases',
        noah_job,
        bench_end,
        kills=5,
        at=(('step', 6), ('before', 9), ('after', 10), ('step', 15)),
    ),
    Scenario('multi-task', train(TASKS, 'nyud_mt.py', base={}), kills=2),
    Scenario('sweep', sweep, bench_end, kills=4),
    Scenario('search', search, bench_end),
    _both('epochs', {}),
    _both('epochs, workers', WORKERS),
    # Saved behind 2, 4, 8 and 10, inside of epochs, with 2, 1, 2 and 1 steps that wait.
    _both(
        'inside epochs, accumulation',
        {**INSIDE, 'default_hooks.checkpoint.interval': 2, COUNTS: 3},
        at=(('step', 3), ('step', 10), ('before', 5)),
    ),
    _both('best, published', BEST, **PUBLISHED),
    _both('GPS', GPS),
    _both('steps', STEPS),
]
