"""From a job to the config of its run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.benchmark.records import Job

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: ``configs`` lies below it."""

METHOD = 'model.backbone.method.'
"""What a key of a method's argument begins with."""

UNRELATED = (
    'auto_resume',
    'custom_hooks',
    'default_hooks',
    'env_cfg',
    'experiment_name',
    'launcher',
    'load_from',
    'log_level',
    'log_processor',
    'resume',
    'vis_backends',
    'visualizer',
    'work_dir',
)
"""Top-level keys that say where a run lives and what it logs, not what it computes."""


def compose_job(job: Job, folder: str | os.PathLike) -> Any:
    """The resolved config of a job.

    Args:
        job: What is asked.
        folder: Where the run lives.

    Raises:
        PETLError: No such recipe, method or argument.
    """
    from mmpetl.config.compose import compose

    args, rest = split_options(job.options)
    rest['randomness.seed'] = job.seed
    return compose(
        job.recipe,
        {'type': job.method, **args},
        rest,
        protocol=job.protocol,
        stage=job.stage,
        work_dir=folder,
        leaf=job.leaf,
    )


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


def config_hash(config: Any) -> str:
    """Digest of what decides a run's result; folders of this machine do not count."""
    kept = {k: v for k, v in config.to_dict().items() if k not in UNRELATED}
    text = json.dumps(kept, sort_keys=True, default=str)
    folders = {
        '{data}': os.environ.get('MMPETL_DATA', ''),
        '{weights}': os.environ.get('MMPETL_WEIGHTS', ''),
        '{root}': str(ROOT),
    }
    for name, folder in folders.items():
        if folder:
            text = text.replace(folder, name)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe_digest(config: Any) -> str:
    """Digest of what a run takes from its recipe and options: no method, no seed.

    Two methods that were trained in the same way share it.
    """
    from mmengine.config import Config

    from mmpetl.config.nodes import is_petl_model, petl_backbone_of

    plain = Config(config.to_dict())
    if is_petl_model(plain.get('model')):
        plain.model.pop('petl', None)
    else:
        (petl_backbone_of(plain) or {}).pop('method', None)
    for key in ('phases', 'randomness'):
        plain.pop(key, None)
    return config_hash(plain)
