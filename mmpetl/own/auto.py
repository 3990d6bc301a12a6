"""Which method to take: a fair search on validation pictures, within a time.

The search is that of the benchmark (:mod:`mmpetl.benchmark.search`): the first trial of
every method is its defaults, later ones are proposed by Optuna, and the test pictures
are not read. Here it goes by rounds: in each, every method gets one trial more, of as
many epochs as every other, and a round is only begun if the time is enough for it. So
whatever the time, all methods had as many trials.

The best trial of each method is compared. Methods within one standard error of the best
are not told apart by so few pictures, and the one of them that trains the fewest
parameters is taken (the one-standard-error rule of Breiman et al., "Classification and
Regression Trees", 1984, section 3.4.3).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mmpetl.benchmark.executors.inline import InlineExecutor
from mmpetl.benchmark.job_config import METHOD
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.search import MethodSearch, Search, alone
from mmpetl.benchmark.task import Task as Work
from mmpetl.benchmark.worker import work
from mmpetl.config.names import config_root
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.own.results import Share, share
from mmpetl.own.task import Task
from mmpetl.own.train import method_name, why_not

PILOT_STEPS = 10
"""Steps of the run that tells how fast trials are."""

MARGIN = 1.5
"""How much longer a trial may be than that run says. The slowest of the methods of
``configs/own/auto.py`` took 1.4 times the time of the first on the mini ViT."""

BUDGETS = {'s': 1, 'm': 60, 'h': 3600}

SEARCH = 'search'
"""Folder of the search below the work folder, as the benchmark has it."""


@dataclass(frozen=True)
class Tried:
    """The trials of one method.

    Attributes:
        method: Its name.
        best: Validation accuracy of the best trial.
        default: That of its defaults, in [0, 1].
        trials: How many settings it had.
        trained: Parameters of the trunk that the best trial trains.
        seconds: What all of its trials took.
        options: Dotted keys of the best trial; none where its defaults are the best.
        settings: These in words.
    """

    method: str
    best: Share
    default: float
    trials: int
    trained: int
    seconds: float
    options: dict[str, Any]
    settings: str


@dataclass(frozen=True)
class Choice:
    """What a search chose.

    Attributes:
        method: Name of the method.
        options: Dotted keys of its best trial.
        tried: All methods, the best first.
        left_out: Methods that had no part, with the reason.
        why: Why this one, in a sentence or two.
        how: What the search did.
    """

    method: str
    options: dict[str, Any]
    tried: list[Tried]
    left_out: dict[str, str]
    why: str
    how: str


def read_budget(text: str) -> float:
    """Seconds of ``90s``, ``20m`` or ``1.5h``.

    Raises:
        PETLError: It is none of these.
    """
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * BUDGETS[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise PETLError(f'a budget is written 90s, 20m or 1.5h, got {text!r}')
    return seconds


def choose_method(
    task: Task,
    budget_s: float,
    methods: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Choice:
    """Search over methods on the validation pictures, within a time.

    Called again it goes on: trials on record are not run again, and count.

    Args:
        task: Of :func:`mmpetl.own.prepare`.
        budget_s: Seconds that all trials may take, those on record included.
        methods: Names; by default those of ``configs/own/auto.py`` that the trunk can
            serve.
        say: Called with a line where one is due.

    Raises:
        PETLError: No method is left, the time does not hold one epoch of each, the
            search on record was asked for other epochs, or another process searches in
            the work folder.
    """
    names, left_out = _candidates(task, methods)
    _set_aside(task, say)
    kept = _kept_length(task)
    pace = _pace(task, names[0])
    epochs = kept.epochs if kept else _fitting(task, pace, budget_s, len(names))
    if epochs < task.settings.epochs:
        why = f'so many fit into the budget for {len(names)} methods'
        if kept:
            why = (
                'those on record have as many, and others would not compare; remove '
                f'{task.folder / SEARCH} to begin anew'
            )
        say(f'trials have {epochs} epochs, not {task.settings.epochs}: {why}')
    searches = _rounds(task, names, epochs, budget_s, pace, say)
    tried = []
    for one in searches:
        try:
            tried.append(_tried(task, one))
        except PETLError as error:  # all of its trials failed
            left_out[one.method] = str(error)
    if not tried:
        raise PETLError(f'no trial came to its end: {next(iter(left_out.values()))}')
    tried.sort(key=lambda one: -one.best.value)
    chosen, why = _choose(tried)
    spent = pace.seconds + sum(one.seconds for one in tried)
    counts = {part: len(entries) for part, entries in task.splits.parts.items()}
    later = ' first, then settings that Optuna proposed from its search space'
    how = (
        f'Every method had {_counted(tried)} of {epochs} epochs on {counts["train"]:,} '
        f'training pictures, scored on {counts["val"]:,} validation pictures: its '
        f'defaults{later * any(one.trials > 1 for one in tried)}. {budget_s / 60:.3g} '
        f'min were given, {spent / 60:.2g} min taken. The test pictures were not read.'
    )
    return Choice(chosen.method, chosen.options, tried, left_out, why, how)


def _counted(tried: list[Tried]) -> str:
    counts = sorted({one.trials for one in tried})
    # A method whose space has no more settings ends before the others.
    text = f'{counts[0]}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
    return f'{text} trial{"s" * (counts[-1] > 1)}'


def _candidates(task: Task, methods: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Methods to try, and those that the trunk cannot serve, with the reason."""
    from mmengine.config import Config

    most = len(methods)
    if not methods:
        listed = Config.fromfile(config_root() / 'own' / 'auto.py')
        methods, most = listed.methods, listed.most
    names = list(dict.fromkeys(map(method_name, methods)))
    reasons = why_not(task, names)
    left_out = {name: reason for name, reason in reasons.items() if reason}
    serving = [name for name in names if name not in left_out]
    if not serving:
        name, reason = next(iter(left_out.items()))
        raise PETLError(
            f'no method that was named can be trained on {task.trunk.name}; '
            f'{name}: {reason}'
        )
    return serving[:most], left_out


# ---- how long trials may be ----------------------------------------------------------
@dataclass(frozen=True)
class _Pace:
    """How fast runs are here.

    Attributes:
        start_s: Seconds before and behind the training.
        step_s: Seconds of a step, with its loading, and a share of a validation.
        seconds: What it took to find out.
    """

    start_s: float
    step_s: float
    seconds: float

    def trial_s(self, epochs: int, steps: int) -> float:
        """Seconds of a trial of so many epochs of so many steps."""
        return self.start_s + epochs * steps * self.step_s


class _Costs(msgspec.Struct):
    """What is read of ``efficiency.json``."""

    train_s: float
    steps: int


def _pace(task: Task, method: str) -> _Pace:
    """Measure a run of some steps; one that is on record is read."""
    pictures = PILOT_STEPS * task.settings.batch_size
    options = {
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.dataset.indices': min(
            pictures, len(task.splits.parts['train'])
        ),
    }
    job = task.job(method, stage='tune', variant='pilot', options=options)
    record = _work(task, job)
    path = task.store.folder(job) / 'efficiency.json'
    costs = read_json(path, _Costs, 'record of costs')
    seconds = record.total_seconds or record.seconds
    return _Pace(
        max(0.0, seconds - costs.train_s), costs.train_s / max(1, costs.steps), seconds
    )


def _work(task: Task, job: Any) -> Record:
    """Do a job and give its record.

    Raises:
        PETLError: It failed, or another process is at it.
    """
    outcome = work(Work(job, str(task.folder.resolve()), retries=0))
    record = task.store.read(job)
    if outcome.status != 'done' or record is None:
        raise PETLError(
            f'a first run of {job.method} ended {outcome.status}: '
            f'{outcome.note or "-"} ({task.store.folder(job)}/console.log)'
        )
    return record


class _Length(msgspec.Struct, frozen=True):
    """What ``epochs.json`` holds of a search.

    Attributes:
        epochs: Of a trial.
        asked: Epochs of the task, which are more where the time did not hold them.
        division: Digest of the division of the pictures; empty where an earlier version
            searched, which kept none.
    """

    epochs: int
    asked: int
    division: str


def _length_file(task: Task) -> Path:
    return task.folder / SEARCH / 'epochs.json'


def _read_length(task: Task) -> _Length | None:
    path = _length_file(task)
    if not path.is_file():
        return None
    try:
        kept = read_json(path, _Length | int, 'length of trials')
    except PETLError as error:
        raise PETLError(f'{error}; remove {path.parent} to begin anew') from None
    # Earlier versions kept epochs alone.
    return _Length(kept, kept, '') if isinstance(kept, int) else kept


def _set_aside(task: Task, say: Callable[[str], None]) -> None:
    """Move the search of another division away: its scores do not compare.

    So goes one of an earlier version, which does not say its division. One of this
    division that was moved away before comes back.
    """
    kept = _read_length(task)
    division = kept.division if kept else ''
    if division == task.splits.digest:
        return
    folder = task.folder / SEARCH
    back = folder.with_name(f'{SEARCH}-{task.splits.digest[:12]}')
    if kept is None and not back.is_dir():
        return
    said = []
    if folder.is_dir():
        aside = _free(folder.with_name(f'{SEARCH}-{division[:12] or "earlier"}'))
        with alone(task.folder):
            folder.rename(aside)
        anew = 'the pictures are divided anew'
        why = anew if division else 'no division is on record'
        said.append(f'{why}; {aside} was the search')
    if back.is_dir():
        back.rename(folder)
        said.append(f'the search of this division, which was {back}, goes on')
    else:
        said.append('all is searched anew')
    say('; '.join(said))


def _free(folder: Path) -> Path:
    """A folder, with a number behind its name where there is one already."""
    names = (folder.with_name(f'{folder.name}-{n}') for n in itertools.count(2))
    return next(one for one in itertools.chain([folder], names) if not one.exists())


def _kept_length(task: Task) -> _Length | None:
    """Length of the trials on record; None where there are none.

    Raises:
        PETLError: Others were asked for.
    """
    kept = _read_length(task)
    asked = task.settings.epochs
    if kept and kept.asked != asked:
        raise PETLError(
            f'the search in {task.folder / SEARCH} was asked for {kept.asked} epochs '
            f'and now for {asked}, and trials of both do not compare; remove that '
            f'folder to begin anew, or give --epochs {kept.asked}'
        )
    return kept


def _fitting(task: Task, pace: _Pace, budget_s: float, count: int) -> int:
    """Epochs of a trial: those of the task, or as many as fit; they are kept."""
    steps = math.ceil(len(task.splits.parts['train']) / task.settings.batch_size)
    each = (budget_s - pace.seconds) / count
    fit = math.floor((each / MARGIN - pace.start_s) / (steps * pace.step_s))
    if fit < 1:
        least = (pace.seconds + count * MARGIN * pace.trial_s(1, steps)) / 60
        raise PETLError(
            f'{budget_s / 60:.3g} min do not hold one epoch of each of {count} '
            f'methods, which takes some {least:.2g} min here; give more, or name fewer '
            'methods'
        )
    epochs = min(fit, task.settings.epochs)
    length = _Length(epochs, task.settings.epochs, task.splits.digest)
    text = json.dumps(msgspec.structs.asdict(length))
    AtomicLocalBackend().put_text(text + '\n', _length_file(task))
    return epochs


# ---- the search ----------------------------------------------------------------------
def _rounds(
    task: Task,
    names: list[str],
    epochs: int,
    budget_s: float,
    pace: _Pace,
    say: Callable[[str], None],
) -> list[MethodSearch]:
    """Rounds of one trial more for every method, as long as there is time for one."""
    base = {**task.base_options('tune'), 'train_cfg.max_epochs': epochs}
    said: set[str] = set()
    longest, spent, number = 0.0, pace.seconds, 0
    while True:
        number += 1
        search = Search(
            names,
            task.recipe,
            task.folder,
            InlineExecutor(),
            trials=number,
            base=dict.fromkeys(names, base),
            seed=task.seed,
            warn=said.add,
            watch=lambda search: _tell(search, said, say),
        )
        with alone(task.folder):
            search.tune()
        took = [_seconds_of(task, one, number - 1) for one in search.searches]
        longest, spent = max(longest, sum(took)), spent + sum(took)
        best = ', '.join(f'{one.method} {_best(one)}' for one in search.searches)
        say(f'round {number} ({spent / 60:.2g} of {budget_s / 60:.3g} min): {best}')
        if spent + longest > budget_s or all(
            one.aim < number for one in search.searches
        ):
            return search.searches


def _tell(search: Search, said: set[str], say: Callable[[str], None]) -> None:
    """A line for every trial that has come to its end since."""
    for one in search.searches:
        for number, trial in one.trials.items():
            name = f'{one.method}, trial {number + 1}'
            if trial.status == 'running' or name in said:
                continue
            said.add(name)
            score = trial.status if trial.value is None else f'{trial.value:.1f} %'
            say(f'{name}: {score} in {trial.seconds:.0f} s')


def _seconds_of(task: Task, one: MethodSearch, number: int) -> float:
    """What a trial took; nothing where there is none of that number."""
    trial = one.trials.get(number)
    record = task.store.read(trial.job) if trial else None
    return (record.total_seconds or record.seconds) if record else 0.0


def _best(one: MethodSearch) -> str:
    values = [t.value for t in one.trials.values() if t.value is not None]
    return f'{max(values):.1f} %' if values else 'failed'


def _tried(task: Task, one: MethodSearch) -> Tried:
    best = one.best
    record = task.store.read(best.job)
    count = len(task.splits.parts['val'])
    options = best.options if best.number else {}
    default = one.trials[0].value
    return Tried(
        one.method,
        share(round(best.value * count / 100), count),
        (default or 0.0) / 100,
        len(one.trials),
        record.trainable if record else 0,
        sum(_seconds_of(task, one, number) for number in one.trials),
        options,
        _in_words(options),
    )


def _in_words(options: dict[str, Any]) -> str:
    def value(given: Any) -> str:
        return f'{given:.3g}' if isinstance(given, float) else f'{given}'

    return ', '.join(
        f'{key.removeprefix(METHOD).rpartition("optimizer.")[2]}={value(given)}'
        for key, given in options.items()
    )


def _choose(tried: list[Tried]) -> tuple[Tried, str]:
    """The method to take, of all from the best on, and why."""
    best = tried[0]
    value, count = best.best.value, best.best.of
    error = math.sqrt(value * (1 - value) / count)
    near = [one for one in tried if one.best.value >= value - error]
    chosen = min(near, key=lambda one: one.trained)  # of equal ones the best
    has = f'{best.method} has the most, {100 * value:.1f} % of {count:,} pictures'
    if len(near) == 1:
        return best, (
            f'{has}, and no other comes within one standard error '
            f'({100 * error:.1f} points) of it.'
        )
    others = ', '.join(one.method for one in near if one is not best)
    return chosen, (
        f'{has}; within one standard error ({100 * error:.1f} points) of it, and so '
        f'not told apart by these pictures, {"is" if len(near) == 2 else "are"} '
        f'{others}. Of these {len(near)}, {chosen.method} trains the fewest parameters '
        f'of the trunk ({chosen.trained:,}).'
    )
