"""A fair search: the same budget for every method, and the test set read once.

Trials train on the part of the training data that stage ``tune`` leaves, and are
scored on the held-out part (train800 and val200 of VTAB-1k). The first trial of every
method is its default setting, so that the best trial is never worse on validation data.
A setting is tried once: the budget is one of different settings, and a search whose
space has no more of them ends and says so. After that the best setting trains on all
training data, once per seed, and each of these runs reads the test set once. Their
records hold the budget and every trial. A search that goes on with a larger budget
replaces its final runs, and what they read counts on (:mod:`mmpetl.benchmark.finals`).

Optuna proposes (TPE) and prunes (median). Its study lies in a journal file beside the
records; a search that was killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpetl.benchmark.executors import Executor
from mmpetl.benchmark.finals import (
    VARIANT,
    check_finals,
    renew,
    replace_finals,
    search_folder,
)
from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.optuna_study import load_study, optuna, propose
from mmpetl.benchmark.records import (
    Job,
    Record,
    RecordStore,
    setting_key,
    write_json,
)
from mmpetl.benchmark.spaces import (
    check_in_space,
    decode,
    encode,
    holds,
    num_settings,
    settings_in,
    space_of,
    suggest_from,
    value_at,
)
from mmpetl.benchmark.sweep import Dispatcher, Sweep, environment
from mmpetl.benchmark.task import Task
from mmpetl.config.protocols import check_ranked
from mmpetl.core import PETLError, check_range
from mmpetl.core.boundary import read_json
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'FALLBACK': 'mmpetl.benchmark.spaces',
        'FileLock': 'mmpetl.benchmark.optuna_study',
        'PruningHook': 'mmpetl.benchmark.optuna_study',
    },
)

READINGS = 10
"""Validations of a trial, about, if its recipe counts epochs."""


@dataclass
class Trial:
    """One setting that was tried.

    Attributes:
        number: 0 is the method's default.
        options: What was searched.
        job: Its run.
        status: ``running``, then as the record says.
        value: The metric on validation data; None where it failed or was pruned.
        seconds: What it took.
    """

    number: int
    options: dict[str, Any]
    job: Job
    status: str = 'running'
    value: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            'number': self.number,
            'options': self.options,
            'status': self.status,
            'value': self.value,
            'seconds': self.seconds,
            'run': self.job.id,
        }


@dataclass
class MethodSearch:
    """The trials of one method.

    Args:
        method: Its name.
        recipe: The recipe.
        base: Options that all trials share.
        budget: Different settings to try, the default included.
        out: The benchmark's folder.
        seed: Of the trials' runs and of the sampler.
        warn: Called with a line where something is not as asked.

    Attributes:
        settings: How many different settings there are, the default among them; None
            where the space has no end.
    """

    method: str
    recipe: str
    base: Mapping[str, Any]
    budget: int
    out: Path
    seed: int = 42
    warn: Callable[[str], None] = print
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.space, self.space_from = space_of(self.method, self.warn)
        default = self._job({})
        config = compose_job(default, self.folder / 'unused')
        check_ranked(config)
        self.tune_options = validate_often(config)
        self.warmup = _warmup(config)
        self.default = {k: value_at(config, k) for k in self.space}
        inside = num_settings(self.space)
        if inside is not None and not holds(self.space, self.default):
            inside += 1
        self.settings = inside
        if self.aim < self.budget:
            self.warn(
                f'{self.method} has {self.settings} different settings, the default '
                f'among them, in {self.space_from}: it gets {self.settings} trials, '
                f'not {self.budget}'
            )
        self.split = splits_of(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / 'journal.log'
        self._study: Any = None
        self._check_same()

    @property
    def folder(self) -> Path:
        """Where the study lies."""
        return search_folder(self.out, self.recipe, self.method)

    @property
    def study(self) -> Any:
        """Optuna's."""
        if self._study is None:
            self._study = load_study(self.journal, self.budget, self.seed, self.warmup)
        return self._study

    @property
    def aim(self) -> int:
        """Trials that there will be: the budget, or all settings there are."""
        return min(self.budget, self.settings or self.budget)

    def _check_same(self) -> None:
        """Refuse to go on with trials of another space or other options."""
        check_finals(self.folder, Job(self.recipe, self.method))
        path = self.folder / 'settings.json'
        now = json.loads(
            json.dumps(
                {
                    'space': self.space,
                    'base': dict(self.base),
                    'seed': self.seed,
                    'recipe': self.recipe,
                }
            )
        )
        if path.is_file():
            was = read_json(path, dict[str, Any], 'settings of a search')
            for key in now:
                if was.get(key) != now[key]:
                    raise PETLError(
                        f'{self.folder} holds a search with another {key}; search '
                        'in another folder, or with the same'
                    )
        else:
            write_json(path, now)

    def _job(self, options: Mapping[str, Any]) -> Job:
        tune = getattr(self, 'tune_options', {})
        return Job(
            self.recipe,
            self.method,
            seed=self.seed,
            stage='tune',
            options={**self.base, **tune, **options},
            variant='trial',
        )

    def begin(self) -> list[Trial]:
        """Trials that an earlier call has left: the default, and what was cut short.

        A setting that a journal of an earlier version proposes twice counts once.
        """
        left = [Trial(0, dict(self.default), self._job({}))]
        seen = {setting_key(self.default)}
        for frozen in self.study.get_trials(deepcopy=False):
            options = {k: decode(v) for k, v in frozen.params.items()}
            check_in_space(options, self.space, f'{self.journal}, {frozen.number}')
            if setting_key(options) in seen:
                if not frozen.state.is_finished():
                    fail = optuna().trial.TrialState.FAIL
                    self.study.tell(frozen.number, state=fail)
                continue
            seen.add(setting_key(options))
            left.append(Trial(frozen.number + 1, options, self._job(options)))
        self.trials = {trial.number: trial for trial in left}
        return left

    @property
    def wants(self) -> bool:
        """Whether the budget, and the space, have room for another trial."""
        return len(self.trials) < self.aim

    def ask(self) -> Trial:
        """The next trial, of a setting that was not tried yet."""
        tried = {setting_key(trial.options) for trial in self.trials.values()}
        tried.add(setting_key(self.default))

        def is_new(options: Mapping[str, Any]) -> bool:
            return setting_key(options) not in tried

        number, options = propose(
            self.study,
            lambda proposal: suggest_from(proposal, self.space),
            self.budget,
            self.seed,
            is_new,
            lambda: [
                {key: encode(value) for key, value in options.items()}
                for options in settings_in(self.space)
                if is_new(options)
            ],
        )
        trial = Trial(number + 1, options, self._job(options))
        self.trials[trial.number] = trial
        return trial

    def pruner(self, trial: Trial) -> dict[str, Any] | None:
        """What the run of a trial needs to prune itself; the default is never cut."""
        if trial.number == 0:
            return None
        return {
            'journal': str(self.journal.absolute()),
            'trial': trial.number - 1,
            'budget': self.budget,
            'warmup': self.warmup,
        }

    def tell(self, trial: Trial, record: Record) -> None:
        """Take a trial's record."""
        trial.status, trial.seconds = record.status, record.seconds
        trial.value = record.score if record.status == 'done' else None
        if trial.status == 'done' and trial.value is None:
            trial.status = 'failed'
        if trial.number == 0:
            return
        states = optuna().trial.TrialState
        state = {'done': states.COMPLETE, 'pruned': states.PRUNED}.get(
            trial.status, states.FAIL
        )
        known = self.study.get_trials(deepcopy=False)[trial.number - 1]
        if not known.state.is_finished():
            value = trial.value if state == states.COMPLETE else None
            self.study.tell(trial.number - 1, value, state=state)

    @property
    def best(self) -> Trial:
        """The best trial; of equal ones the first, so that a tie keeps the default.

        Raises:
            PETLError: Every trial failed.
        """
        done = [t for t in self.trials.values() if t.value is not None]
        if not done:
            raise PETLError(
                f'all {len(self.trials)} trials of {self.method} failed; see '
                f'{self.out}/runs/{self.trials[0].job.id}/console.log'
            )
        return min(done, key=lambda t: (-t.value, t.number))

    def to_json(self) -> dict[str, Any]:
        """What the records of the final runs hold."""
        best = self.best
        return {
            'budget': max(self.budget, len(self.trials)),
            'tried': len(self.trials),
            'settings': self.settings,
            'dimensions': len(self.space),
            'split': self.split,
            'sampler': 'TPE',
            'pruner': 'median',
            'seed': self.seed,
            'space': self.space,
            'space_from': self.space_from,
            'default_value': self.trials[0].value,
            'best': best.number,
            'best_value': best.value,
            'trials': [self.trials[n].to_json() for n in sorted(self.trials)],
        }

    def final_jobs(self, seeds: Iterable[int]) -> list[Job]:
        """Runs of the best setting on all training data."""
        best = self.best
        # The default is what the base options say already.
        chosen = best.options if best.number else {}
        return [
            Job(
                self.recipe,
                self.method,
                seed=seed,
                options={**self.base, **chosen},
                variant=VARIANT,
            )
            for seed in seeds
        ]


def validate_often(config: Any) -> dict[str, Any]:
    """Options that give a trial a curve to be pruned by."""
    epochs = config.train_cfg.get('max_epochs')
    if not epochs:
        return {}
    return {'train_cfg.val_interval': max(1, epochs // READINGS)}


def _warmup(config: Any) -> int:
    """Steps before which nothing is pruned: a third, where steps are counted."""
    steps = config.train_cfg.get('max_iters')
    return steps // 3 if steps else 1


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Refuse a second search in a benchmark's folder: budgets are counted by one."""
    path = out / 'search' / 'lock'
    with open(path, 'a', encoding='ascii') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PETLError(
                f'another process searches in {out}; wait for it, or search in another '
                'folder'
            ) from None
        yield


def splits_of(config: Any) -> str:
    """Names of the data that trials train on and are scored on."""
    names = []
    for phase in ('train', 'val'):
        dataset = config[f'{phase}_dataloader']['dataset']
        names.append(str(dataset.get('split') or dataset.get('part') or phase))
    return ' / '.join(names)


class Search:
    """Searches of several methods on one recipe, then their final runs.

    Args:
        methods: Names of methods.
        recipe: Name of the recipe.
        out: The benchmark's folder.
        executor: Where trials run.
        trials: Different settings that each method tries, its default included; fewer
            where its space has no more.
        seeds: Of the final runs.
        base: Options by method that all of its runs share.
        seed: Of trials and samplers.
        retries: Of a run that failed.
        toolboxes: Packages that the runs use.
        warn: Called with a line where something is not as asked.
        watch: Called with the search now and then.
        poll_s: Seconds between looks at a run that another process holds.
        run: What does the work of a task; see :class:`mmpetl.benchmark.task.Task`.

    Raises:
        PETLError: A method or the recipe is unknown, or the budget is too small.
    """

    def __init__(
        self,
        methods: Sequence[str],
        recipe: str,
        out: str | os.PathLike,
        executor: Executor,
        trials: int = 12,
        seeds: Sequence[int] = (42, 43, 44),
        base: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 42,
        retries: int = 1,
        toolboxes: Sequence[str] = (),
        warn: Callable[[str], None] = print,
        watch: Callable[[Search], None] | None = None,
        poll_s: float = 2.0,
        run: str = Task.run,
    ) -> None:
        check_range('the search', 'trials', trials, 1)
        optuna()
        self.out = Path(out).absolute()
        self.executor = executor
        self.seeds = tuple(seeds)
        self.retries = retries
        self.toolboxes = tuple(toolboxes)
        self.watch = watch or (lambda search: None)
        self.poll_s = poll_s
        self.run_name = run
        self.store = RecordStore(self.out)
        self.finals: Sweep | None = None
        self.searches = [
            MethodSearch(
                name, recipe, (base or {}).get(name, {}), trials, self.out, seed, warn
            )
            for name in methods
        ]

    def run(self) -> dict[str, list[Record]]:
        """Tune every method, then train and test; records by method.

        An interrupt ends the workers and is passed on; the next call continues.
        """
        with alone(self.out):
            self.tune()
            return self.finish()

    def tune(self) -> None:
        """Spend the budgets; what is on record is not run again."""
        sweep = Sweep([], self.out, self.executor, self.retries)
        self.dispatcher = Dispatcher(
            self.executor, self.retries, self.poll_s, sweep.log
        )
        self._pending: dict[str, list[tuple[MethodSearch, Trial]]] = {}
        self.executor.start(self.toolboxes, self.retries)
        try:
            for search in self.searches:
                for trial in search.begin():
                    self._put(search, trial)
            while True:
                self._fill()
                if not self.dispatcher.busy:
                    break
                for task, _ in self.dispatcher.step():
                    self._end(task)
                self.watch(self)
        finally:
            self.executor.close()

    def _fill(self) -> None:
        """Propose while workers are idle: later proposals know more."""
        progress = True
        while progress:
            progress = False
            for search in self.searches:
                if len(self._pending) >= self.executor.slots:
                    return
                if search.wants:
                    self._put(search, search.ask())
                    progress = True

    def _put(self, search: MethodSearch, trial: Trial) -> None:
        record = self.store.read(trial.job)
        if record is not None and record.status != 'failed':
            search.tell(trial, record)
            return
        waiting = self._pending.setdefault(trial.job.id, [])
        waiting.append((search, trial))
        if len(waiting) == 1:
            self.dispatcher.put(
                Task(
                    trial.job,
                    str(self.out),
                    self.retries,
                    env=environment(),
                    pruner=search.pruner(trial),
                    run=self.run_name,
                )
            )

    def _end(self, task: Task) -> None:
        record = self.store.read(task.job)
        for search, trial in self._pending.pop(task.job.id):
            if record is None:
                raise PETLError(f'the run {task.job.id} has left no record')
            search.tell(trial, record)

    def finish(self) -> dict[str, list[Record]]:
        """Train the best settings on all data, and read the test set once each."""
        jobs = {s.method: s.final_jobs(self.seeds) for s in self.searches}
        found = {}
        for search in self.searches:
            earlier = replace_finals(self.store, search.folder, jobs[search.method])
            found[search.method] = {**search.to_json(), 'earlier': earlier}
            write_json(search.folder / 'trials.json', found[search.method])
            renew(self.store, search.folder, found[search.method])
        self.finals = _FinalSweep(
            [job for some in jobs.values() for job in some],
            self.out,
            self.executor,
            self.retries,
            self.toolboxes,
            self.run_name,
            poll_s=self.poll_s,
            watch=lambda sweep: self.watch(self),
        )
        self.finals.found = found
        self.finals.run()
        return {
            method: [r for job in some if (r := self.store.read(job)) is not None]
            for method, some in jobs.items()
        }


class _FinalSweep(Sweep):
    """A sweep whose records hold the search that chose their settings."""

    found: Mapping[str, Any]

    def task(self, job: Job) -> Task:
        return dataclasses.replace(super().task(job), search=self.found[job.method])


@contextmanager
def shown(title: str) -> Any:
    """A live table of a search; gives what :class:`Search` takes as ``watch``."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout)
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda search: live.update(table_of(title, search))
    if not console.is_terminal:
        console.print()  # a table in a file does not end its line


def table_of(title: str, search: Search) -> Any:
    """Trials and best values so far."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column('method')
    for column in ('trials', 'pruned', 'failed', 'default', 'best', 'final runs'):
        table.add_column(column, justify='right')
    for one in search.searches:
        over = [t for t in one.trials.values() if t.status != 'running']
        values = [t.value for t in over if t.value is not None]
        first = one.trials.get(0)
        finals, ends = (), {}
        if search.finals is not None:
            finals, ends = search.finals.jobs, search.finals.ends
        mine = [ends.get(job.id) for job in finals if job.method == one.method]
        done = sum(end is not None and end.status == 'done' for end in mine)
        table.add_row(
            one.method,
            f'{len(over)}/{one.aim}',
            str(sum(t.status == 'pruned' for t in over)),
            str(sum(t.status == 'failed' for t in over)),
            _number(first.value if first else None),
            _number(max(values, default=None)),
            f'{done}/{len(search.seeds)}',
        )
    return table


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'
