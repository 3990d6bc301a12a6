"""What one line asks for: a method or ``auto``, a run, and maybe its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmpetl.benchmark.job_config import METHOD
from mmpetl.core import PETLError, build_entries, with_arguments
from mmpetl.datasets.own.kinds import PICTURES
from mmpetl.own.auto import choose_method, read_budget
from mmpetl.own.page import write_page
from mmpetl.own.task import Task
from mmpetl.own.train import OwnRun, method_name, train_own

AUTO = 'auto'
BUDGET = '20m'


def check_line(
    method: str,
    *,
    petl_options: Mapping[str, Any] | None = None,
    budget: str = BUDGET,
    methods: Sequence[str] = (),
) -> None:
    """Refuse what is wrong with a line before pictures are read; see `run_line`.

    Raises:
        PETLError: A name or value is wrong, or what is asked does not go together.
    """
    read_budget(budget)
    if method == AUTO and petl_options:
        raise PETLError(
            f'{AUTO} chooses the arguments of methods itself; leave out '
            f'{", ".join(petl_options)}, or name a method'
        )
    if methods and method != AUTO:
        raise PETLError(f'methods are named for {AUTO} to try, and {method} is asked')
    for name in methods if method == AUTO else [method]:
        build_entries(with_arguments(method_name(name), petl_options or {}))


def run_line(
    task: Task,
    method: str,
    *,
    petl_options: Mapping[str, Any] | None = None,
    budget: str = BUDGET,
    methods: Sequence[str] = (),
    report: bool = False,
    say: Callable[[str], None] = print,
) -> OwnRun:
    """Choose a method where none is named, train it, and write the page if asked to.

    Args:
        task: Of :func:`mmpetl.own.prepare`.
        method: Name or stem, several with ``+``, or ``auto``.
        petl_options: Arguments of the method; of several ``0.rank`` and the like.
        budget: Of all trials of ``auto``: ``90s``, ``20m``, ``1.5h``.
        methods: What ``auto`` tries; by default those of ``configs/own/auto.py``.
        report: Whether to write the page.
        say: Called with a line where one is due.

    Raises:
        PETLError: A name or value is wrong, or what is asked does not go together.
    """
    check_line(method, petl_options=petl_options, budget=budget, methods=methods)
    if method == AUTO and task.kind != PICTURES:
        raise PETLError(
            f'{AUTO} compares methods on validation pictures of classifiers, and '
            f'{task.data} holds {task.kind}; name a method'
        )
    if method == AUTO and task.options.get('cache_features'):
        raise PETLError(
            f'{AUTO} tries methods that train inside of the trunk, whose features '
            'cannot be stored; leave cache_features out, or name a method'
        )
    options = {f'{METHOD}{key}': value for key, value in (petl_options or {}).items()}
    for line in task.in_words():
        say(line)
    choice = None
    if method == AUTO:
        choice = choose_method(task, read_budget(budget), methods, say)
        method, options = choice.method, choice.options
        say(f'taken is {method}: {choice.why}')
    run = train_own(task, method, options, say)
    say(run.results.in_words())
    say(f'delta: {run.delta}')
    say(f'config: {run.config}')
    if report:
        say(f'page: {write_page(run, choice)}')
    return run
