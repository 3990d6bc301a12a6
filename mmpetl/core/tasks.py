"""Which task a forward pass is for: what multi-task methods and models share.

A multi-task method has one :class:`TaskSwitch`, shared by its deltas. Who runs the
backbone asks it for tasks; a :class:`TaskEntry` in front of the first block writes the
answer into the context of that pass, where the other deltas read it. The switch itself
is not read again, so that activation checkpointing, which runs blocks anew during
backward, meets the tasks of the pass and not those of a later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmpetl.core.context import Context
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError, suggest
from mmpetl.core.injection import find_submodule, injections


def check_tasks(user: object, tasks: Iterable[str]) -> tuple[str, ...]:
    """``tasks`` as a tuple of distinct names that can be names of modules.

    Args:
        user: The method or model that they are for, named in errors.
        tasks: Names; one name alone may stand without a list.

    Raises:
        PETLError: There is none, one stands twice, or one cannot name a module.
    """
    who = type(user).__name__
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise PETLError(f'{who} needs at least one task')
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise PETLError(f'{who} needs identifiers as task names, got {name!r}')
        if hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name):
            raise PETLError(f'{who} cannot call a task {name!r}; choose another name')
        if names.count(name) > 1:
            raise PETLError(f'{who} got the task {name!r} twice')
    return names


class TaskSwitch(nn.Module):
    """The tasks of a method and those that are asked for.

    Args:
        tasks: Names, in the order in which their features leave.
        once_for_all: Whether one pass serves all tasks, whose features then leave
            stacked along the batch axis. Otherwise a pass serves one task.
    """

    def __init__(self, tasks: Sequence[str], once_for_all: bool) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.once_for_all = once_for_all
        self._asked: tuple[str, ...] | None = None

    def check(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """``tasks`` as a tuple.

        Raises:
            PETLError: One of them is unknown.
        """
        names = tuple(tasks)
        for name in names:
            if name not in self.tasks:
                raise PETLError(
                    f'unknown task {name!r}.{suggest(str(name), self.tasks)} '
                    f'The method has: {", ".join(self.tasks)}'
                )
        return names

    @contextmanager
    def asking(self, tasks: Iterable[str]) -> Iterator[None]:
        """Forward passes inside of it are for these tasks."""
        before, self._asked = self._asked, self.check(tasks)
        try:
            yield
        finally:
            self._asked = before

    def asked(self) -> tuple[str, ...]:
        """The tasks of this pass; a method with one task need not be asked.

        Raises:
            PETLError: It is not clear which task is meant.
        """
        asked = self.tasks if self._asked is None else self._asked
        if len(asked) > 1 and (self._asked is None or not self.once_for_all):
            raise PETLError(
                f'{len(asked)} tasks ({", ".join(asked)}) share this backbone; get '
                'their features from mmpetl.core.tasks.task_features'
            )
        return asked


class TaskEntry(Delta):
    """Writes the tasks of this pass into the notes; features stay as they are."""

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        self.notes(ctx)['tasks'] = self.shared.asked()
        return y


def task_switch(model: nn.Module) -> TaskSwitch | None:
    """The switch of the method that acts in ``model``, None if it knows of no tasks.

    Raises:
        PETLError: Several such methods act at once.
    """
    found = []
    for _, module, record in injections(model):
        for name, slot in record.slots.items():
            shared = find_submodule(module, f'petl.shared.{name}')
            if slot.enabled and shared is not None:
                found += [m for m in shared.modules() if isinstance(m, TaskSwitch)]
    if len(found) > 1:
        raise PETLError(
            f'{len(found)} multi-task methods act in one backbone; disable all but one'
        )
    return found[0] if found else None


def task_features(
    backbone: nn.Module, x: Tensor, tasks: Iterable[str]
) -> dict[str, tuple[Any, ...]]:
    """What leaves the backbone for each task: its outputs, one behind the other.

    An output is a tensor, or a tuple of tensors where the backbone gives several at one
    place (class and distillation token, say).

    Args:
        backbone: With a method or without. Where the method knows of no tasks, one
            pass serves all, and they get the same features.
        x: What the backbone takes.
        tasks: Names.

    Raises:
        PETLError: The method does not know one of the tasks, or no output has a part
            for each of several, as where a backbone shapes its maps by the images.
    """
    tasks, switch = tuple(tasks), task_switch(backbone)
    if switch is None:
        return dict.fromkeys(tasks, _as_tuple(backbone(x)))
    switch.check(tasks)
    if not switch.once_for_all:
        features = {}
        for task in tasks:
            with switch.asking((task,)):
                features[task] = _as_tuple(backbone(x))
        return features
    with switch.asking(tasks):
        outs = _as_tuple(backbone(x))
    rows = [len(y) for y in tree_leaves(outs) if isinstance(y, Tensor)]
    if len(tasks) > 1 and len(tasks) * len(x) not in rows:
        raise PETLError(
            f'{type(backbone).__name__} gives outputs with {rows} rows for {len(x)} '
            f'inputs and {len(tasks)} tasks, none with a part for each task; ask for '
            'one task at a time'
        )
    part = partial(_part, num_inputs=len(x), count=len(tasks))
    return {task: part(outs, i) for i, task in enumerate(tasks)}


def _as_tuple(outs: Any) -> tuple[Any, ...]:
    """What a backbone gives, its outputs by name without the names."""
    if isinstance(outs, Tensor):
        return (outs,)
    return tuple(outs.values() if isinstance(outs, Mapping) else outs)


def _part(outs: Any, index: int, num_inputs: int, count: int) -> Any:
    """One of ``count`` equal parts of every tensor, cut along the batch axis.

    What leaves before streams part, as the patches in front of the first block, has as
    many rows as went in: it is that of all tasks.
    """
    if isinstance(outs, Tensor):
        return outs if len(outs) == num_inputs else outs.chunk(count)[index]
    return tuple(_part(y, index, num_inputs, count) for y in _as_tuple(outs))
