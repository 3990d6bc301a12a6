"""A run that is verified: its record, and what the record was made of."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmpetl.benchmark.collect import LOG, Efficiency
from mmpetl.benchmark.config_digest import config_hash, roots_there
from mmpetl.benchmark.job_config import METHOD, compose_job
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.trust import check_trusted
from mmpetl.benchmark.verdicts import Check, Found
from mmpetl.config.literal import read_literal_config
from mmpetl.core import PETLError
from mmpetl.core.boundary import parse_json, read_bytes, read_json

FILES = (
    'config.py',
    'delta.json',
    'delta.safetensors',
    'efficiency.json',
    'log.jsonl',
    'phases/method.json',
    'predictions.npz',
    'results.json.gz',
)
"""Files that a verification may read beside the record."""


class Unknown(Exception):
    """Something could not be looked at; the text says why."""


@dataclass
class Run:
    """A run's folder.

    Args:
        folder: Where it lies.
        trust: Whether the options of its job may name what no toolbox registers.
    """

    folder: Path
    trust: bool = False

    @cached_property
    def bytes(self) -> bytes:
        """The record as it lies on disk."""
        return read_bytes(self.folder / 'record.json', 'record')

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the record."""
        return hashlib.sha256(self.bytes).hexdigest()

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The record as plain data."""
        path = self.folder / 'record.json'
        return parse_json(self.bytes, dict[str, Any], f'{path}')

    @cached_property
    def record(self) -> Record:
        """The record."""
        return Record.from_json(self.raw, f'{self.folder / "record.json"}')

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log.

        Raises:
            Unknown: There is none.
        """
        from mmpetl.engine.hooks.run_log import read_run_log

        path = self.folder / LOG
        if not path.is_file():
            raise Unknown(f'there is no {LOG}')
        return list(read_run_log(path))

    @cached_property
    def efficiency(self) -> Efficiency:
        """Counts as the run wrote them.

        Raises:
            Unknown: There is no such file.
        """
        path = self.folder / 'efficiency.json'
        if not path.is_file():
            raise Unknown('there is no efficiency.json')
        return read_json(path, Efficiency, 'record of costs')

    @cached_property
    def asked(self) -> Any:
        """The config that the record's job composes to, in this checkout.

        What runs is this one, never the file in the folder, which anybody may have
        written.

        Raises:
            Unknown: The job cannot be composed.
        """
        job = self.record.job
        try:
            if not self.trust:
                check_trusted(job.options, self._scope, f'the job {job.id}')
            return compose_job(job, self.folder)
        except PETLError as error:
            raise Unknown(f'its job cannot be composed: {error}') from None

    def _scope(self) -> str:
        from mmpetl.config.compose import compose

        config = compose(self.record.job.recipe, 'LinearProbe')
        return config.get('default_scope') or 'mmengine'

    @cached_property
    def written(self) -> Any:
        """``config.py`` as data, as it was asked for: before phases found arguments.

        Raises:
            Unknown: There is none.
            PETLError: It holds what only running it would tell.
        """
        from mmengine.config import Config

        path = self.folder / 'config.py'
        if not path.is_file():
            raise Unknown('there is no config.py')
        config = Config(read_literal_config(path))
        found = self.found_method
        if found is not None:
            # The hash is of what was asked for.
            config.model.backbone.method = copy.deepcopy(
                self.asked.model.backbone.method
            )
            if self.asked.get('phases') is not None:
                config.phases = copy.deepcopy(self.asked.phases)
        return config

    @cached_property
    def roots(self) -> dict[str, str]:
        """Where data, weights and package lay on the machine that ran it."""
        return roots_there(self.folder, self.written)

    @cached_property
    def found_method(self) -> dict[str, Any] | None:
        """Arguments that phases found for the method; None where it has none."""
        path = self.folder / 'phases' / 'method.json'
        if not path.is_file():
            return None
        return read_json(path, dict[str, Any], 'method that phases have found')

    @cached_property
    def config(self) -> Any:
        """The config that the run itself was built from: with what phases found.

        Raises:
            Unknown: The job cannot be composed.
            PETLError: Its method names a file, a module or what no toolbox registers.
        """
        config = copy.deepcopy(self.asked)
        config.pop('phases', None)
        found = self.found_method
        if found is not None:
            if not self.trust:
                options = {f'{METHOD}{key}': value for key, value in found.items()}
                check_trusted(options, self._scope, f'{self.folder.name}: phases')
            method = config.model.backbone.method
            config.model.backbone.method = {'type': method['type'], **found}
        return config

    @cached_property
    def model(self) -> Any:
        """The model as the run began with it, on its base.

        Raises:
            Unknown: The base is not there, or the config builds no model.
        """
        node = self.config.model.backbone
        base = node.get('checkpoint')
        if base and not Path(base).is_file():
            raise Unknown(f'the base weights {Path(base).name} are not there')
        try:
            return _model(_text(self.config.model), _Same(self.config))
        except (PETLError, OSError) as error:
            raise Unknown(f'its model cannot be built: {error}') from None

    @cached_property
    def delta(self) -> Any:
        """The delta, tensors by the keys of its file.

        Raises:
            Unknown: There is none.
            PETLError: It is damaged.
        """
        from mmpetl.core.delta_file import read_delta_file

        try:
            return read_delta_file(self.folder / 'delta')
        except FileNotFoundError as error:
            raise Unknown(str(error)) from None

    @property
    def test_set(self) -> Any:
        """The data set that the run was tested on; see :meth:`dataset`."""
        return self.dataset('test')

    def dataset(self, phase: str) -> Any:
        """The data set that a phase of the run read.

        Raises:
            Unknown: Its files are not there.
        """
        node = (self.asked.get(f'{phase}_dataloader') or {}).get('dataset')
        if not node:
            raise Unknown(f'its config has no data for {phase}')
        try:
            return _dataset(_text(node), _Same((self.asked, node)))
        except (PETLError, OSError) as error:
            raise Unknown(f'its data for {phase} are not there: {error}') from None

    def digests(self) -> dict[str, str]:
        """SHA-256 of the files beside the record, by name."""
        from mmpetl.benchmark.verdicts import digest_of

        paths = {name: self.folder / name for name in FILES}
        return {n: digest_of(path) for n, path in paths.items() if path.is_file()}


class _Same:
    """What a cache does not look at, since a text beside it says the same."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=1)
def _model(text: str, config: _Same) -> Any:
    """Runs of one cell, which differ by their seed, share the model."""
    from mmpetl.apis.building import build_model

    return build_model(config.config, quiet=True)


@functools.lru_cache(maxsize=6)
def _dataset(text: str, what: _Same) -> Any:
    """Runs of one task share the data set."""
    from mmengine.registry import DATASETS

    from mmpetl.config.scope import scope_of

    config, node = what.config
    with scope_of(config):
        dataset = DATASETS.build(copy.deepcopy(node))
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    return dataset


def _text(node: Any) -> str:
    return json.dumps(node.to_dict(), sort_keys=True, default=str)


def same(
    field: str, recorded: Any, found: Any, note: str = '', near: float = 0.0
) -> Check:
    """Compare what is recorded with what was found; ``near`` is relative."""
    return Check(
        field,
        'holds' if equal(recorded, found, near) else 'falsified',
        recorded,
        found,
        note,
    )


def equal(one: Any, other: Any, near: float = 0.0) -> bool:
    """Whether two values are the same, numbers within a relative difference."""
    import math

    numbers = int | float
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, numbers) and isinstance(other, numbers):
        return one == other or math.isclose(one, other, rel_tol=near, abs_tol=near)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            equal(one[key], other[key], near) for key in one
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(
            equal(a, b, near) for a, b in zip(one, other, strict=True)
        )
    return one == other


def checks_of(field: str, look: Any, run: Run) -> Iterator[Check]:
    """The checks that a function makes of a run; what stops it becomes one of them."""
    try:
        yield from look(run)
    except Unknown as error:
        yield Check(field, 'unchecked', note=str(error))
    except FileNotFoundError as error:
        yield Check(field, 'unchecked', note=str(error))
    except PETLError as error:
        yield Check(field, 'falsified', 'as the run left it', str(error))


def holds(field: str, good: bool, recorded: Any, found: Any, note: str = '') -> Check:
    """A check by any other test than equality."""
    state: Found = 'holds' if good else 'falsified'
    return Check(field, state, recorded, found, note)


def hash_of(config: Any, roots: Mapping[str, str] | None = None) -> str:
    """The hash that records give to a config; ``roots`` are those of its machine."""
    return config_hash(config, roots)
