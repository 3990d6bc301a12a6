"""Features of a frozen trunk are computed once and read from disk from then on.

``features.json`` in the folder of the run says it, by phase::

    {"format": 1, "phases": {"train": {"key": "5c...", "pictures": 1000,
     "bytes": 384000, "computed": 0, "checked": 104, "difference": 0.0, "why": ""}}}
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmpetl.core import PETLError
from mmpetl.core.boundary import Count
from mmpetl.engine.by_phase import read_by_phase, write_by_phase
from mmpetl.engine.feature_files import FeatureSet, Rows, key_of, make_room
from mmpetl.engine.features import (
    NumberedPipeline,
    Readers,
    StoredPipeline,
    Trunk,
    difference,
    facts_of,
    inner_set,
    refusal_of_model,
)
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.resuming import rng_state, set_rng_state
from mmpetl.registry import HOOKS

NAME = 'features.json'
FOLDER = 'MMPETL_FEATURES'
GIB = 2**30
PIECE_BYTES = 32 * 2**20
PIECE_SECONDS = 30.0
"""A piece is written where so much, or for so long, has been computed."""


class PhaseFeatures(msgspec.Struct):
    """What is kept of a phase.

    Attributes:
        key: Of the set that was read; empty where none was.
        pictures: Pictures of the set.
        bytes: Of its features.
        computed: Pictures that this run had to compute.
        checked: Pictures that were computed once more and compared.
        difference: The largest that was found there.
        why: Why no set is read; empty where one is.
    """

    key: str = ''
    pictures: Count = 0
    bytes: Count = 0
    computed: Count = 0
    checked: Count = 0
    difference: float = 0.0
    why: str = ''


def read_features_file(folder: str | Path) -> dict[str, PhaseFeatures]:
    """Where the phases of a run had their features from; empty where nothing says it.

    Raises:
        PETLError: The file is damaged or of another format.
    """
    path = Path(folder) / NAME
    return read_by_phase(path, PhaseFeatures, 'record of stored features')


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Reads the trunk's features of training and validation pictures from disk.

    They are computed where they are not there, and kept for other epochs, seeds, rates
    and trials. The key is over the base, the pictures, the preprocessing, precision,
    device and versions. Before a run reads a set, the trunk computes some of the
    pictures once more, in the batches that the run has, and the rows must agree; what
    differs is made anew once. Test pictures always go through the trunk.

    Args:
        folder: Where the sets are; by default that which the variable
            ``MMPETL_FEATURES`` names, else ``work_dirs/features``.
        limit_gib: What all sets may take on disk, GiB (2^30 bytes). The least recently
            used go first. Where one set alone takes more, none is kept, and it is said.
        tolerance: Largest difference of a feature that is taken for none. At 0, rows
            are bit-equal where they are looked at, or the run does without.

    Raises:
        PETLError: The model trains in its trunk, the pictures are drawn at random, or
            several processes train.
    """

    priority = 'LOW'

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        limit_gib: float = 10.0,
        tolerance: float = 0.0,
    ) -> None:
        for name, value in (('limit_gib', limit_gib), ('tolerance', tolerance)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise PETLError(f'FeatureCacheHook: {name} is >= 0, got {value!r}')
        chosen = folder or os.environ.get(FOLDER) or 'work_dirs/features'
        self.folder = Path(chosen).expanduser()
        self.limit = int(limit_gib * GIB)
        self.tolerance = float(tolerance)
        self._undo: list[Callable[[], None]] = []

    def before_train(self, runner: Runner) -> None:
        if get_world_size() > 1:
            raise PETLError('features are stored by one process; leave out --gpus')
        model = plain_model(runner)
        why = refusal_of_model(model)
        if why is not None:
            raise PETLError(f'no features can be stored: {why}')
        before = rng_state()  # what is computed here must not move the run's generators
        readers, kept = Readers(model), {}
        try:
            for phase in ('train', 'val'):
                loop = getattr(runner, f'{phase}_loop')
                loader = getattr(loop, 'dataloader', None)
                if loader is not None:
                    kept[phase] = self._phase(runner, phase, loader, readers)
        finally:
            set_rng_state(before)
        if readers.sets:
            readers.attach()
            self._undo.append(readers.detach)
        write_by_phase(Path(runner.work_dir) / NAME, kept)

    def after_train(self, runner: Runner) -> None:
        while self._undo:
            self._undo.pop()()

    def _phase(
        self, runner: Runner, phase: str, loader: Any, readers: Readers
    ) -> PhaseFeatures:
        """Make or find the set of a phase, and let its loader hand on numbers."""
        model = readers.model
        dataset, why = inner_set(loader.dataset)
        if isinstance(runner.train_loop, IterBasedTrainLoop) and loader.num_workers:
            why = why or (
                'an iteration-based loop has begun its data workers already; set '
                'num_workers=0'
            )
        batch = _batch_of(loader)
        if batch is None:
            why = why or 'the loader does not say its batch size'
        if why or dataset is None or batch is None:
            if phase == 'train':
                raise PETLError(
                    f'no features can be stored of the training data: {why}'
                )
            return self._without(runner, phase, why)
        mixed = _mixed(runner) if phase == 'train' else _mixed_loop(runner.val_loop)
        training = phase == 'train'
        trunk = Trunk(model, dataset, loader, training, _context(runner, phase))
        try:
            if any(p.requires_grad for p in model.backbone.parameters()):
                trunk.find_blocks(batch)
        except ValueError as error:
            raise PETLError(f'no features can be stored: {error}') from None
        readers.blocks = trunk.blocks
        facts = facts_of(model, dataset, batch, training, mixed, trunk.blocks)
        if facts is None:
            return self._without(runner, phase, 'its samples name no file')
        stored = FeatureSet(self.folder / key_of(facts), len(dataset), facts)
        try:
            found = self._filled(runner, phase, stored, trunk, batch)
        except (OSError, ValueError) as error:
            return self._without(runner, phase, str(error))
        if found.why:
            return found
        readers.sets[phase], readers.specs[phase] = stored, trunk.spec
        if trunk.blocks:
            some = _checked_batches(loader, stored.count, batch)[0]
            most = difference(*trunk.outputs(some, readers, phase))
            if most > self.tolerance:
                del readers.sets[phase]
                return self._without(
                    runner,
                    phase,
                    f'what leaves the backbone differs by up to {most:.3g} where '
                    'blocks hand on what is stored',
                )
        pipeline = dataset.pipeline
        dataset.pipeline = (
            NumberedPipeline(pipeline)
            if trunk.blocks
            else StoredPipeline(pipeline.transforms[-1])
        )

        def restore() -> None:
            dataset.pipeline = pipeline
            loader._iterator = None  # workers that persist hold the other pipeline

        self._undo.append(restore)
        return found

    def _filled(
        self, runner: Runner, phase: str, stored: FeatureSet, trunk: Trunk, batch: int
    ) -> PhaseFeatures:
        """Complete a set and hold it against the trunk."""
        log = runner.logger
        stored.open()
        for name in stored.damaged:
            log.warning(
                f'{stored.folder / name} is damaged; its features are made anew'
            )
        batches = _checked_batches(trunk.loader, stored.count, batch)
        checked = sum(map(len, batches))
        computed = 0
        for again in (False, True):
            missing = stored.missing()
            if missing:
                started = time.perf_counter()
                why = self._fill(stored, trunk, missing, batch)
                if why:
                    return self._without(runner, phase, why)
                computed = len(missing)
                log.info(
                    f'features of {computed:,} {phase} pictures computed in '
                    f'{time.perf_counter() - started:.1f} s and kept in {stored.folder}'
                )
            most = 0.0
            for numbers, rows in zip(batches, trunk.batches(batches), strict=True):
                most = max(most, difference(rows, stored.rows(numbers)))
            if most <= self.tolerance:
                break
            if again or computed == stored.count:
                return self._without(
                    runner,
                    phase,
                    f'{checked} pictures that were computed once more differ by up to '
                    f'{most:.3g} from what is stored, and tolerance is '
                    f'{self.tolerance:g}',
                )
            log.warning(
                f'{stored.folder} differs from the trunk by up to {most:.3g}; its '
                'features are made anew'
            )
            stored.clear()
        log.info(
            f'{phase} features of {stored.count:,} pictures are read from '
            f'{stored.folder} ({stored.nbytes / 2**20:.1f} MiB); {checked} compared, '
            f'largest difference {most:g}'
        )
        return PhaseFeatures(
            stored.folder.name, stored.count, stored.nbytes, computed, checked, most
        )

    def _fill(
        self, stored: FeatureSet, trunk: Trunk, missing: list[int], batch: int
    ) -> str:
        """Compute the rows that are missing; why that cannot be, else empty."""
        windows = _windows(missing, stored.count, batch)
        if not windows:
            return 'there are no pictures'
        pending: list[Rows] = []
        start, since, fits = windows[0][1][0], time.monotonic(), False

        def write() -> None:
            nonlocal pending, since
            if pending:
                parts = zip(*pending, strict=True)
                stored.add(start, tuple(torch.cat(part) for part in parts))
            pending, since = [], time.monotonic()

        given = trunk.batches([window for window, _ in windows])
        for (window, wanted), rows in zip(windows, given, strict=True):
            if not fits:
                each = sum(p[0].numel() * p.element_size() for p in rows)
                whole = each * stored.count
                if not make_room(self.folder, stored.folder.name, whole, self.limit):
                    return (
                        f'they would take {whole / GIB:.2f} GiB, and the limit is '
                        f'{self.limit / GIB:.2f} GiB (cache_features.limit_gib)'
                    )
                fits = True
            size = sum(p.numel() * p.element_size() for r in pending for p in r)
            late = time.monotonic() - since > PIECE_SECONDS
            done = start + sum(len(r[0]) for r in pending)
            if pending and (wanted[0] != done or late or size >= PIECE_BYTES):
                write()
            if not pending:
                start = wanted[0]
            first = wanted[0] - window[0]
            pending.append(tuple(p[first : first + len(wanted)] for p in rows))
        write()
        return ''

    def _without(self, runner: Runner, phase: str, why: str) -> PhaseFeatures:
        runner.logger.warning(
            f'no {phase} features are stored, and the trunk computes them each time: '
            f'{why}'
        )
        return PhaseFeatures(why=why)


def _batch_of(loader: Any) -> int | None:
    size = getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size
    return size if isinstance(size, int) else None


def _windows(
    missing: list[int], count: int, batch: int
) -> list[tuple[list[int], list[int]]]:
    """Batches that go through the trunk, each with the rows that are taken of it.

    All have the size of the run's, the last included, which reaches back for that.
    """
    lacks, found = set(missing), []
    for start in range(0, count, batch):
        rows = range(start, min(start + batch, count))
        wanted = [row for row in rows if row in lacks]
        if not wanted:
            continue
        first = max(0, min(start, count - batch))
        window = list(range(first, min(first + batch, count)))
        # Rows of one stretch, so that they make one piece.
        found.append((window, list(range(wanted[0], wanted[-1] + 1))))
    return found


def _checked_batches(loader: Any, count: int, batch: int) -> list[list[int]]:
    """Batches to compare: one of each size that an epoch has, of pictures at random."""
    generator = torch.Generator().manual_seed(time.time_ns() % 2**31)
    order = torch.randperm(count, generator=generator).tolist()
    whole, rest = order[: min(batch, count)], len(loader.dataset) % batch
    found = [whole]
    drops = getattr(loader.batch_sampler, 'drop_last', loader.drop_last)
    if rest and not drops and rest != len(whole):
        found.append(order[-rest:] if rest <= count else order)
    return found


def _mixed(runner: Runner) -> str:
    """Precision that the optimizer's wrapper casts to in training."""
    wrapper = runner.optim_wrapper
    if 'Amp' not in type(wrapper).__name__:
        return ''
    return f'{type(wrapper).__name__} {getattr(wrapper, "cast_dtype", None)}'


def _mixed_loop(loop: Any) -> str:
    return 'fp16' if getattr(loop, 'fp16', False) else ''


def _context(runner: Runner, phase: str) -> Callable[[], Any]:
    """A maker of the context in which a phase runs the model."""
    if phase == 'train':
        return lambda: runner.optim_wrapper.optim_context(runner.model)

    @contextlib.contextmanager
    def validation() -> Iterator[None]:
        from mmengine.runner.amp import autocast

        with autocast(enabled=bool(getattr(runner.val_loop, 'fp16', False))):
            yield

    return validation


def with_features(runner: Runner, asked: Any) -> None:
    """Register the hook that a config's ``cache_features`` asks for.

    Args:
        runner: The runner.
        asked: True, or arguments of :class:`FeatureCacheHook`; false for none.

    Raises:
        PETLError: It is neither, or an argument is unknown or out of range.
    """
    if asked in (None, False):
        return
    known = ('folder', 'limit_gib', 'tolerance')
    given = {} if asked is True else asked
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise PETLError(
            f'cache_features is true or a dict of {", ".join(known)}, got {asked!r}'
        )
    if any(isinstance(hook, FeatureCacheHook) for hook in runner.hooks):
        raise PETLError(
            'cache_features and custom_hooks both ask for a FeatureCacheHook; leave '
            'one of them out'
        )
    runner.register_hook(FeatureCacheHook(**given))
