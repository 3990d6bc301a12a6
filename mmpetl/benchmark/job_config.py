"""From a job to the config of its run."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

from mmpetl.benchmark.records import Job
from mmpetl.core import PETLError
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'ROOT': 'mmpetl.benchmark.config_digest',
        'UNRELATED': 'mmpetl.benchmark.config_digest',
        'config_hash': 'mmpetl.benchmark.config_digest',
    },
)

METHOD = 'model.backbone.method.'
"""What a key of a method's argument begins with; of several its number follows."""

PROCESSES = 'processes'
"""Option that says in how many processes a job trains."""


def compose_job(job: Job, folder: str | os.PathLike) -> Any:
    """The resolved config of a job.

    Args:
        job: What is asked.
        folder: Where the run lives.

    Raises:
        PETLError: No such recipe, method or argument, options that undo the protocol,
            or a batch of the recipe that cannot be made up.
    """
    from mmpetl.config.batch import reach_batch
    from mmpetl.config.compose import compose
    from mmpetl.config.protocols import check_honest
    from mmpetl.core import with_arguments

    args, rest = split_options(job.options)
    processes = rest.pop(PROCESSES, 1)
    rest['randomness.seed'] = job.seed
    config = compose(
        job.recipe,
        with_arguments(job.method, args),
        rest,
        protocol=job.protocol,
        stage=job.stage,
        work_dir=folder,
        leaf=job.leaf,
    )
    check_honest(config, test_data(job) if job.stage == 'tune' else None)
    reach_batch(config, processes)
    return config


def test_data(job: Job) -> Any:
    """Config of the data set that a job's recipe is tested on, by the final stage.

    Options that speak of the test are not laid over it: what they would hide is what
    must not be read.
    """
    from mmpetl.config.compose import compose

    # Data are the recipe's; the method's own defaults need not fit its trunk.
    method = job.method if job.leaf else 'LinearProbe'
    final = compose(job.recipe, method, protocol=job.protocol, leaf=job.leaf)
    loader = final.get('test_dataloader') or {}
    return loader.get('dataset')


def passes_of_job(job: Job) -> int:
    """Passes behind one step of the optimizer, by what a job composes to here.

    What cannot be composed, or reaches further than data may, has what its options say.
    """
    rest = split_options(job.options)[1]
    # Passes are the recipe's; seeds, methods and their arguments share them.
    method = job.method if job.leaf else 'LinearProbe'
    like = Job(job.recipe, method, 0, job.protocol, job.stage, rest, leaf=job.leaf)
    return _passes(json.dumps(dataclasses.asdict(like), sort_keys=True, default=str))


@functools.lru_cache(maxsize=256)
def _passes(text: str) -> int:
    from mmpetl.benchmark.collect import passes_of
    from mmpetl.benchmark.trust import check_trusted
    from mmpetl.config.compose import compose

    job = Job(**json.loads(text))

    def scope() -> str:
        return compose(job.recipe, 'LinearProbe').get('default_scope') or 'mmengine'

    try:
        check_trusted(job.options, scope, f'the job {job.id}')
        found = passes_of(compose_job(job, 'unused'))
    except (PETLError, AttributeError, LookupError, TypeError, ValueError):
        found = job.options.get('optim_wrapper.accumulative_counts')
    return found if isinstance(found, int) and found > 0 else 1


def split_options(
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the method, and the other options."""
    args, rest = {}, {}
    for key, value in options.items():
        if key.startswith(METHOD):
            args[key.removeprefix(METHOD)] = value
        else:
            rest[key] = value
    return args, rest
