"""What training, validation and test really read, kept in the run's folder.

``data.json`` says it, by phase::

    {"format": 1, "phases": {"train": {"digest": "9f...", "count": 1000,
     "kind": "VTAB", "by": "content", "copies": null}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmpetl.core import PETLError
from mmpetl.core.boundary import Count
from mmpetl.datasets.identity import Read, copies, read_of, shared_files
from mmpetl.engine.by_phase import read_by_phase, write_by_phase
from mmpetl.engine.resuming import rng_state, set_rng_state
from mmpetl.registry import HOOKS

NAME = 'data.json'


class PhaseRead(msgspec.Struct):
    """What is kept of a phase; see :class:`mmpetl.datasets.identity.Read`.

    Attributes:
        digest: Over identities and labels; empty where samples name no file.
        count: Samples that were read in one pass.
        kind: Class of the data set.
        by: ``content``, ``size``, or empty.
        copies: Samples whose file has the content of one that trains; None unknown.
    """

    digest: str = ''
    count: Count = 0
    kind: str = ''
    by: str = ''
    copies: Count | None = None


def read_data_file(folder: str | Path) -> dict[str, PhaseRead]:
    """What the phases of a run have read; empty where no file says it.

    Raises:
        PETLError: The file is damaged or of another format.
    """
    path = Path(folder) / NAME
    return read_by_phase(path, PhaseRead, 'record of the data that were read')


@HOOKS.register_module()
class DataReadHook(Hook):
    """Keeps what each phase reads, and refuses what the honest protocol does.

    Before the first step the data sets of training and validation, and the one that
    the test will read, are looked at. Under the protocol ``honest`` no file may both
    train, or choose a checkpoint, and test; where settings are chosen (stage ``tune``)
    none may both train and validate. A run that goes on must train on what it began
    with.

    Args:
        test: Config of the data set that is tested in the end, where the config of the
            run has none: in stage ``tune``.
    """

    priority = 'VERY_HIGH'

    def __init__(self, test: Mapping[str, Any] | None = None) -> None:
        self.test = test
        self._seen = 0

    def before_train(self, runner: Runner) -> None:
        before = rng_state()  # building a data set must not move the run's generators
        error, found = '', {}
        if is_main_process():
            try:
                found = self._look(runner)
            except PETLError as wrong:
                error = str(wrong)
        told = [error]
        broadcast_object_list(told)
        set_rng_state(before)
        if told[0]:
            raise PETLError(told[0])
        if is_main_process():
            _write(runner, found)

    def _look(self, runner: Runner) -> dict[str, PhaseRead]:
        config, reads = runner.cfg, {}
        for phase in ('train', 'val'):
            loader = getattr(getattr(runner, f'{phase}_loop'), 'dataloader', None)
            if loader is not None:  # a loop that searches has none of its own
                reads[phase] = read_of(loader.dataset)
        if 'train' not in reads:
            return {}
        kept = {phase: _kept(read) for phase, read in reads.items()}
        known = read_data_file(runner.work_dir).get('train') if runner._resume else None
        if known is not None and known.digest != kept['train'].digest:
            raise PETLError(
                f'the run began on {known.count:,} training samples and would go on '
                f'with {kept["train"].count:,} others or under other labels; bring the '
                f'data back, or begin anew in another folder than {runner.work_dir}'
            )
        if config.get('protocol') != 'honest':
            return kept
        if config.get('stage') == 'tune' and 'val' in reads:
            refuse_overlap(reads['train'], reads['val'], 'training', 'validation')
        test = self.test or (config.get('test_dataloader') or {}).get('dataset')
        if not test:
            return kept
        try:
            tested = read_of(DATASETS.build(_without_pipelines(test)))
        except (PETLError, OSError):
            if self.test is None:
                raise
            # Settings may be chosen where the test set is not: nothing reads it there.
            return kept
        refuse_overlap(reads['train'], tested, 'training', 'test')
        if 'val' in reads:
            refuse_overlap(reads['val'], tested, 'validation', 'test')
        if self.test is None:
            kept['test'] = _kept(tested, copies(reads['train'], tested))
        return kept

    def before_test_epoch(self, runner: Runner) -> None:
        self._seen = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        self._seen += len(outputs or ())

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        if not is_main_process():
            return
        read = read_of(runner.test_loop.dataloader.dataset)
        known = read_data_file(runner.work_dir).get('test')
        same = known is not None and known.digest == read.digest
        kept = _kept(read, known.copies if known and same else None)
        world = get_world_size()
        if self._seen < read.count // world:
            # A loader may be told to stop early; what it left out was not tested.
            kept = msgspec.structs.replace(kept, digest='', count=self._seen * world)
        _write(runner, {'test': kept})


def refuse_overlap(one: Read, other: Read, name: str, against: str) -> None:
    """Raise PETLError where two phases read one file."""
    both = shared_files(one, other)
    if both:
        raise PETLError(
            f'{name} reads {len(both):,} of the {len(other.places):,} files of the '
            f'{against} data, {both[0]!r} for one; the honest protocol keeps them '
            f"apart: mend {name}'s dataset, or take --protocol published"
        )


def _kept(read: Read, copied: int | None = None) -> PhaseRead:
    return PhaseRead(read.digest, read.count, read.kind, read.by, copied)


def _without_pipelines(node: Any) -> Any:
    """A config of a data set whose transforms are not needed."""
    if isinstance(node, list | tuple):
        return [_without_pipelines(part) for part in node]
    found = dict(node)
    for key in ('dataset', 'datasets'):
        if isinstance(found.get(key), Mapping | list | tuple):
            found[key] = _without_pipelines(found[key])
    if 'pipeline' in found:
        found['pipeline'] = []
    return found


def _write(runner: Runner, phases: Mapping[str, PhaseRead]) -> None:
    """Put what phases read into the file; of other phases it keeps what it has."""
    found = {**read_data_file(runner.work_dir), **phases}
    write_by_phase(Path(runner.work_dir) / NAME, found)
