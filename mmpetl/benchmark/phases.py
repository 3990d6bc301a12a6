"""What a method trains before the run that is recorded: its phases, one after another.

They see the data that choose settings (stage ``tune``); the test set is not there. What
they leave lies below ``phases`` in the run's folder. Their settings are what the config
says under ``phases``, by the name of each::

    phases = dict(supernet=dict(max_epochs=20), search=dict(limit=20_000, evolution={}))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.records import Job, write_json
from mmpetl.core import PETLError, build_entries, build_method, suggest
from mmpetl.core.boundary import read_json
from mmpetl.registry import LOOPS


def phases_of(config: Any) -> dict[Any, Mapping[str, Any]]:
    """The loops that a config's method asks for, in their order, with their settings.

    Raises:
        PETLError: The config has settings for a phase that the method does not have.
    """
    settings = config.get('phases') or {}
    methods = [e.method for e in build_entries(config.model.backbone.method)]
    names = [name for method in methods for name in method.phases]
    if names and len(methods) > 1:
        asks = next(type(m).__name__ for m in methods if m.phases)
        raise PETLError(
            f'{asks} has training phases of its own before the run, which nothing '
            'shares; run it alone'
        )
    loops = {loop: settings.get(loop.phase) or {} for loop in map(LOOPS.get, names)}
    known = [loop.phase for loop in loops]
    for name in settings if loops else ():
        if name not in known:
            raise PETLError(
                f'phases has settings for {name!r}, which the method does not have.'
                f'{suggest(name, known)} There are: {", ".join(known)}'
            )
    return loops


def run_phases(job: Job, config: Any, folder: Path) -> bool:
    """Run the phases, and give the config's method the arguments that they found.

    Each phase continues where it was killed; what is found is not searched again.

    Returns:
        Whether the method has phases.
    """
    loops = phases_of(config)
    config.pop('phases', None)
    if not loops:
        return False
    method = config.model.backbone.method.to_dict()
    found = folder / 'phases' / 'method.json'
    if not found.is_file():
        folders = {loop.phase: found.parent / loop.phase for loop in loops}
        for loop, settings in loops.items():
            _run_phase(job, loop, settings, folders)
        last = folders[list(loops)[-1].phase]
        kind = type(build_method(method))
        args = {key: value for key, value in method.items() if key != 'type'}
        write_json(found, kind.after_phases(args, last))
    args = read_json(found, dict[str, Any], 'method that phases have found')
    config.model.backbone.method = {'type': method['type'], **args}
    return True


def _run_phase(
    job: Job, loop: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
) -> None:
    from mmpetl.apis.run import build_runner
    from mmpetl.engine.latest import newest_checkpoint
    from mmpetl.engine.run_names import forget

    folder = folders[loop.phase]
    folder.mkdir(parents=True, exist_ok=True)
    config = compose_job(dataclasses.replace(job, stage='tune'), folder)
    config.pop('phases', None)
    config.work_dir = str(folder)
    config.resume = newest_checkpoint(folder)[0] is not None
    config.experiment_name = f'{folder.parents[1].name}-{loop.phase}'
    loop.prepare(config, settings, folders)
    try:
        build_runner(config, check_data=('train', 'val')).train()
    finally:
        forget(config.experiment_name)
