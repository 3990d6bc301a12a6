"""Optuna's part in a search: the study in its journal, and trials that end early."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmpetl.benchmark.collect import primary_of
from mmpetl.compat.extras import pip_line
from mmpetl.core import PETLError
from mmpetl.core.boundary import checked, read_json_lines, regular_file

T = TypeVar('T')


class Pruned(Exception):
    """A trial was stopped since others did better at the same step."""


def optuna() -> Any:
    """The package, or one line that says how to get it.

    Raises:
        PETLError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise PETLError(f'the search needs Optuna: {pip_line("benchmark")}') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)
    return optuna


class FileLock:
    """A lock for Optuna's journal that the system drops when its holder dies."""

    def __init__(self, path: str) -> None:
        self._path = f'{path}.lock'
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        file = open(self._path, 'a', encoding='ascii')
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()
            self._file = None


def load_study(journal: str | os.PathLike, budget: int, seed: int, warmup: int) -> Any:
    """The study in a journal, made if it is not there.

    Args:
        journal: The file.
        budget: Trials in all; the sampler's and pruner's first phase depend on it.
        seed: Seed of the sampler.
        warmup: Steps before which nothing is pruned.

    Raises:
        PETLError: The journal is damaged, or a trial in it says what none can.
    """
    package = optuna()
    check_journal(journal)
    backend = package.storages.journal.JournalFileBackend(
        str(journal), lock_obj=FileLock(str(journal))
    )
    pruner = package.pruners.MedianPruner(
        n_startup_trials=_startup(budget), n_warmup_steps=warmup
    )
    try:
        study = package.create_study(
            storage=package.storages.JournalStorage(backend),
            sampler=_sampler(budget, seed),
            pruner=pruner,
            study_name='search',
            direction='maximize',
            load_if_exists=True,
        )
        # Optuna takes what a journal says as it is, and meets it here first.
        for trial in study.get_trials(deepcopy=False):
            checked(_facts_of(trial), _Trial, f'trial {trial.number}')
    except OSError:
        raise
    except Exception as error:  # Optuna answers a damaged journal with any
        reason = ' '.join(str(error).split())[:200]
        kind = '' if isinstance(error, PETLError) else f'{type(error).__name__}: '
        raise PETLError(
            f'the journal {journal} is damaged ({kind}{reason}); remove the folder of '
            'this search to begin it anew'
        ) from None
    return study


class _Trial(msgspec.Struct):
    """What a trial of a journal may say."""

    params: dict[str, None | bool | int | float | str]
    values: list[float] | None
    reported: dict[str, float]


def _facts_of(trial: Any) -> dict[str, Any]:
    reported = {str(step): value for step, value in trial.intermediate_values.items()}
    return {'params': trial.params, 'values': trial.values, 'reported': reported}


REDRAWS = 16
"""How often a proposal that was tried before is drawn anew."""


def propose(
    study: Any,
    suggest: Callable[[Any], T],
    budget: int,
    seed: int,
    is_new: Callable[[T], bool] = lambda setting: True,
    rest: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
) -> tuple[int, T]:
    """The next setting of a study, which its journal then holds whole.

    It follows from the seed and from the trials that there are. A search that was
    killed proposes what it would have proposed without that, and never finds half a
    proposal in its journal.

    Args:
        study: As of :func:`load_study`.
        suggest: Draws a setting from a trial of Optuna.
        budget: As of :func:`load_study`.
        seed: Seed of the search.
        is_new: Whether a setting was not tried yet; one that was is drawn anew.
        rest: Called then: the parameters of all settings that were not tried, as Optuna
            keeps them. One of them is drawn.

    Returns:
        Number of the trial, and what ``suggest`` has drawn.
    """
    package = optuna()
    known = study.get_trials(deepcopy=False)
    draft = package.create_study(
        sampler=_sampler(budget, seed + len(known)), direction='maximize'
    )
    draft.add_trials(known)
    for _ in range(REDRAWS):
        trial = draft.ask()
        setting = suggest(trial)
        if is_new(setting):
            break
    else:
        draft.enqueue_trial(random.Random(seed + len(known)).choice(rest()))
        trial = draft.ask()
        setting = suggest(trial)
    study.add_trial(
        package.trial.create_trial(
            state=package.trial.TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
        )
    )
    return len(known), setting


def _startup(budget: int) -> int:
    """Trials before the sampler and the pruner go by what others have reached."""
    return max(2, budget // 4)


def _sampler(budget: int, seed: int) -> Any:
    return optuna().samplers.TPESampler(
        n_startup_trials=_startup(budget), seed=seed, constant_liar=True
    )


class Operation(msgspec.Struct):
    """What every line of a journal says, whatever it does.

    Attributes:
        op_code: What is done, as Optuna numbers it.
        worker_id: Who does it.
        study_id: With which study.
        trial_id: With which trial.
    """

    op_code: Annotated[int, msgspec.Meta(ge=0, le=20)]
    worker_id: str
    study_id: int | None = None
    trial_id: int | None = None


def check_journal(path: str | os.PathLike) -> None:
    """Hold the lines of a journal to their form before Optuna acts on them.

    Half a line at the end is what a kill leaves. It is taken out, for what is written
    next would go on in it.

    Raises:
        PETLError: A line is something else; it says which.
    """
    if not os.path.exists(path):
        return
    try:
        regular_file(path, 'journal of a search')
        _cut_half_a_line(path)
        # Optuna writes NaN where a value is none.
        for line in read_json_lines(path, Operation, 'journal', finite=False):
            if isinstance(line, PETLError):
                raise line
    except PETLError as error:
        raise PETLError(
            f'the journal of the search is damaged: {error}; take the line out, or '
            'remove the folder of this search to begin it anew'
        ) from None


def _cut_half_a_line(path: str | os.PathLike) -> None:
    lock = FileLock(str(path))
    lock.acquire()
    try:
        with open(path, 'rb+') as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - (1 << 20)))
            last = file.read().rpartition(b'\n')[2]
            if last:
                file.truncate(size - len(last))
                print_log(
                    f'{path}: half of a last line is taken out, which a kill has left',
                    logger='current',
                    level=logging.WARNING,
                )
    finally:
        lock.release()


class PruningHook(Hook):
    """Reports a trial's validations, and stops it where others did better.

    Args:
        journal: Journal of the study.
        trial: Number of the trial.
        budget: As of :func:`load_study`.
        warmup: As of :func:`load_study`.
    """

    # After the hook that writes the validation down, and like it before a checkpoint.
    priority = 'LOW'

    def __init__(self, journal: str, trial: int, budget: int, warmup: int) -> None:
        package = optuna()
        study = load_study(journal, budget, 0, warmup)
        known = study.get_trials(deepcopy=False)[trial]
        self.trial = package.trial.Trial(study, known._trial_id)
        self.reported = set(known.intermediate_values)

    def after_val_epoch(
        self, runner: Any, metrics: dict[str, float] | None = None
    ) -> None:
        from mmpetl.engine.hooks.run_log import plain_metrics

        found = plain_metrics(metrics or {})
        name, step = primary_of(found, runner.cfg), runner.iter
        if name not in found or found[name] != found[name]:
            return
        if step not in self.reported:
            self.trial.report(found[name], step)
            self.reported.add(step)
        if step < runner.max_iters and self.trial.should_prune():
            raise Pruned
