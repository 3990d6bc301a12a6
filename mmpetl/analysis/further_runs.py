"""Further runs of a benchmark's pairs: other sizes, fewer images, validation held out.

They live in a benchmark folder of their own, so that tables of the first one stay what
they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmpetl.analysis.selection import choose, plain
from mmpetl.benchmark.job_config import METHOD, split_options
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.core import PETLError, build_method, registered_methods, suggest
from mmpetl.shipped import mini_data


@dataclass(frozen=True)
class Variant:
    """A method with settings of its own.

    Attributes:
        method: Name in the registry.
        settings: Arguments that replace those of the benchmark's run.
    """

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """``rank16``; empty without settings."""
        return '-'.join(f'{k}{v}' for k, v in self.settings)


def parse_variants(texts: Iterable[str]) -> list[Variant]:
    """Methods as the command line names them: ``SSF``, ``LoRA:rank=1,4,16``.

    Raises:
        PETLError: An unknown method or argument, or no number behind it.
    """
    found = []
    known = registered_methods()
    for text in texts:
        name, _, rest = text.partition(':')
        if name not in known:
            raise PETLError(f'unknown method {name!r}.{suggest(name, known)}')
        if not rest:
            found.append(Variant(name))
            continue
        key, equals, values = rest.partition('=')
        if not equals or not values:
            raise PETLError(f'{text!r} is not METHOD:argument=value,value')
        for value in values.split(','):
            setting = (key, _number(value, text))
            build_method({'type': name, **dict([setting])})
            found.append(Variant(name, (setting,)))
    return found


def _number(value: str, text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise PETLError(f'{text!r} holds {value!r}, which is no number')


def template(records: Sequence[Record], task: str, method: str) -> Job:
    """The job of a benchmark's run, to be varied.

    A method that the benchmark has not run takes the options of one that it has,
    without the arguments of that method, and not what a search has chosen for it.

    Raises:
        PETLError: The benchmark has no run of the task, or of this method and otherwise
            only of settings that were searched.
    """
    rows = choose(plain(records), tasks=[task])
    if not rows:
        raise PETLError(f'the benchmark has no finished run of {task}')
    own = [r for r in rows if r.job.method == method]
    if own:
        return own[0].job  # by_family: of the recipe, before what a search chose
    lent = [r for r in rows if not r.job.variant]
    if not lent:
        raise PETLError(
            f'the benchmark has no finished run of {method} on {task}, and those of '
            'other methods have the settings that a search chose for them; run '
            f'{method} first'
        )
    job = lent[0].job
    _, rest = split_options(job.options)
    return replace(job, method=method, options=rest, leaf=False)


def varied(job: Job, variant: Variant, options: Mapping[str, Any], name: str) -> Job:
    """A job with settings and options of its own, under a variant's name."""
    settings = {f'{METHOD}{k}': v for k, v in variant.settings}
    label = '-'.join(filter(None, (variant.label, name)))
    options = {**job.options, **settings, **options}
    return replace(job, options=options, variant=label or job.variant)


def config_of(job: Job, stage: str = 'final') -> Any:
    """The resolved config of a job that is not run here."""
    from mmengine.logging import MMLogger

    from mmpetl.benchmark.job_config import compose_job

    use_mini_data(job.recipe)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # reading a config says where it found its folders
    try:
        return compose_job(replace(job, stage=stage), Path('work_dirs') / 'unused')
    finally:
        logger.setLevel(level)


def use_mini_data(recipe: str) -> None:
    """Let mini recipes find the mini sets where nothing else is said."""
    if recipe.startswith('mini/') and 'MMPETL_DATA' not in os.environ:
        os.environ['MMPETL_DATA'] = str(mini_data())


def run_jobs(
    jobs: Sequence[Job],
    out: str | os.PathLike,
    title: str,
    executor: str = 'local',
    workers: int | None = None,
) -> list[Record]:
    """Records of jobs, those run that have none yet.

    Args:
        jobs: What is asked.
        out: A benchmark folder; what is finished in it is kept.
        title: What the progress table is called.
        executor: ``local``, or ``inline`` for this process.
        workers: Jobs at a time, for ``local``.

    Raises:
        PETLError: A job failed.
    """
    from mmpetl.benchmark.executors import make_executor
    from mmpetl.benchmark.progress import Progress
    from mmpetl.benchmark.sweep import Sweep

    for job in jobs:
        use_mini_data(job.recipe)
    options = {} if workers is None or executor == 'inline' else {'workers': workers}
    with Progress(title).show() as watch:
        sweep = Sweep(
            jobs,
            out,
            make_executor(executor, **options),
            toolboxes=('mmpretrain',),
            watch=watch,
        )
        summary = sweep.run()
    if summary.failed:
        name, note = next(iter(summary.failed.items()))
        raise PETLError(
            f'{len(summary.failed)} of {len(jobs)} jobs failed; {name} for one: '
            f'{note[:300]} ({out}/runs/{name}/console.log)'
        )
    store = RecordStore(out)
    found = [store.read(job) for job in jobs]
    return [record for record in found if record is not None]
