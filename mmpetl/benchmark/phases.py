"""NOAH's first two phases, before the run that is recorded.

The supernet trains and the search scores on the data that choose settings (stage
``tune``); the test set is not there. What they leave lies below ``phases`` in the run's
folder. How long they go on is the config's key ``phases``::

    phases = dict(supernet=dict(max_epochs=20), search=dict(limit=20_000, evolution={}))
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mmpetl.benchmark.compose import compose_job
from mmpetl.benchmark.records import Job


def run_phases(job: Job, config: Any, folder: Path) -> None:
    """Train the supernet, search it, and set the config's method to what it found.

    Each phase continues where it was killed; what is found is not searched again.
    """
    from mmpetl.apis.run import build_runner
    from mmpetl.methods.noah import read_found

    found = folder / 'phases' / 'search' / 'found.json'
    settings = config.pop('phases', None) or {}
    if not found.is_file():
        for name in ('supernet', 'search'):
            place = found.parents[1] / name
            phase = _tuning(job, place)
            change = {'supernet': _supernet, 'search': _search}[name]
            change(phase, dict(settings.get(name) or {}), found.parents[1])
            phase.resume = (place / 'last_checkpoint').is_file() or name == 'search'
            phase.experiment_name = f'{folder.name}-{name}'
            build_runner(phase, check_data=('train', 'val')).train()
    # The widths themselves, so that config and delta of the run can be moved.
    method = {k: v for k, v in config.model.backbone.method.items() if k != 'space'}
    config.model.backbone.method = {**method, **read_found(str(found)).as_dict()}


def _tuning(job: Job, folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    config = compose_job(dataclasses.replace(job, stage='tune'), folder)
    config.pop('phases', None)
    config.work_dir = str(folder)
    return config


def _supernet(config: Any, settings: dict[str, Any], root: Path) -> None:
    was = config.train_cfg.max_epochs
    epochs = settings.pop('max_epochs', was)
    for phase in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        config[phase] = None
    config.train_cfg = {
        'type': 'mmpetl.NOAHSupernetLoop',
        'max_epochs': epochs,
        **settings,
    }
    # A step trains one subnet, so a wrapper must not wait for the others.
    config.merge_from_dict({'model_wrapper_cfg.find_unused_parameters': True})
    for scheduler in config.get('param_scheduler') or ():
        for key in ('begin', 'end', 'T_max'):
            if key in scheduler:
                scheduler[key] = round(scheduler[key] * epochs / was)


def _search(config: Any, settings: dict[str, Any], root: Path) -> None:
    config.train_cfg = {
        'type': 'mmpetl.NOAHSearchLoop',
        'supernet': str(root / 'supernet'),
        **settings,
    }
    config.param_scheduler = None
