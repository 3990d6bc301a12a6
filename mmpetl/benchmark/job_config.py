"""From a job to the config of its run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmpetl.benchmark.records import Job
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
