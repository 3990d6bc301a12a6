"""Optuna's part in a search: the study in its journal, and trials that end early."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine.hooks import Hook

from mmpetl.benchmark.collect import primary_of
from mmpetl.core import PETLError

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
        raise PETLError(
            'the search needs Optuna: pip install mmpetl[benchmark]'
        ) from None
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
    """
    package = optuna()
    backend = package.storages.journal.JournalFileBackend(
        str(journal), lock_obj=FileLock(str(journal))
    )
    pruner = package.pruners.MedianPruner(
        n_startup_trials=_startup(budget), n_warmup_steps=warmup
    )
    try:
        storage = package.storages.JournalStorage(backend)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise PETLError(
            f'the journal {journal} is damaged ({type(error).__name__}: {reason}); '
            'remove the folder of this search to begin it anew'
        ) from None
    return package.create_study(
        storage=storage,
        sampler=_sampler(budget, seed),
        pruner=pruner,
        study_name='search',
        direction='maximize',
        load_if_exists=True,
    )


def propose(
    study: Any, suggest: Callable[[Any], T], budget: int, seed: int
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

    Returns:
        Number of the trial, and what ``suggest`` has drawn.
    """
    package = optuna()
    known = study.get_trials(deepcopy=False)
    draft = package.create_study(
        sampler=_sampler(budget, seed + len(known)), direction='maximize'
    )
    draft.add_trials(known)
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
        name, step = primary_of(found), runner.iter
        if name not in found or found[name] != found[name]:
            return
        if step not in self.reported:
            self.trial.report(found[name], step)
            self.reported.add(step)
        if step < runner.max_iters and self.trial.should_prune():
            raise Pruned
