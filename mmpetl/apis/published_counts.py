"""Our parameter counts beside published ones.

A row of the table names a figure, the method at the setting behind it, such as
``LoRA(rank=16)``, and where the source counts by a convention, an expression for that:
``ours + head('fgvc')``. Every name is counted: methods by injecting them into the
full-size backbone of the row, heads by the classes of the data sets. What a row is
follows from the result:

- exact: what trains in the backbone at the setting rounds to the printed digits;
- explained: it does not, and what the convention gives does (a head on top, biases left
  out, a mean over tasks);
- not reproducible: neither does.
"""

from __future__ import annotations

import ast
import copy
import csv
import io
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mmpetl.apis.counting import FULL_SIZE, without_memory
from mmpetl.config.scope import build_backbone
from mmpetl.core import (
    Owner,
    PETLError,
    build_method,
    count_trainable,
    inject,
    owners,
    registered_methods,
    suggest,
)
from mmpetl.core.boundary import read_utf8

Mark = Literal['exact', 'explained', 'not reproducible']

MARKS: tuple[Mark, ...] = ('exact', 'explained', 'not reproducible')

FOUR_MAPS = {'out_indices': (0, 1, 2, 3)}
"""Dense tasks read four maps, each behind a norm of its own."""

BACKBONES: dict[str, dict[str, Any]] = {
    'vit_b16': FULL_SIZE['vit_b16'],
    'clip_vit_b16': {
        **FULL_SIZE['vit_b16'],
        'pre_norm': True,
        'patch_cfg': {'bias': False},
    },
    'videomae_b': FULL_SIZE['videomae_b'],
    'swin_b_dense': {**FULL_SIZE['swin_b'], **FOUR_MAPS},
    'swin_l_dense': {**FULL_SIZE['swin_l'], **FOUR_MAPS},
    'video_swin_b': FULL_SIZE['video_swin_b'],
}
"""Configs of the backbones that figures were published for."""


@dataclass(frozen=True)
class Published:
    """A published figure and the setting that should give it."""

    table: str
    """Where it is printed: a benchmark's table, or a study."""
    backbone: str
    """Key of :data:`BACKBONES`."""
    label: str
    """The method as the source calls it."""
    figure: str
    """Millions of parameters, with the digits that are printed."""
    setting: str
    """The method at the setting behind the figure."""
    counted_as: str
    """How the source counts, an expression; empty where that is what trains."""
    mark: Mark
    """What the row is known to be; a check compares it with what comes out."""
    setting_from: Literal['source', 'figure']
    """Whether the source states the setting, or the figure alone led to it."""
    why: str
    """The convention, or what has been tried in vain."""
    source: str


@dataclass(frozen=True)
class Compared:
    """A published figure beside our count."""

    row: Published
    ours: int
    """What trains in the backbone at the setting, heads excluded."""
    value: float
    """``ours``, or what the convention makes of it."""
    found: Mark
    """What the row is, as computed."""

    @property
    def holds(self) -> bool:
        """Whether the row is what it is marked as."""
        return self.found == self.row.mark


def read_published(path: str | Path) -> list[Published]:
    """Rows of a table of published figures.

    Raises:
        PETLError: A column lacks or a mark is none of :data:`MARKS`.
    """
    names = [field.name for field in fields(Published)]
    try:
        with io.StringIO(read_utf8(path, 'table'), newline='') as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except csv.Error as error:
        raise PETLError(f'{path} is no table of commas ({error})') from None
    if header != names:
        raise PETLError(f'{path} has columns {header}, not {names}')
    rows = []
    for number, line in enumerate(filter(None, lines), 1):
        if len(line) != len(names):
            raise PETLError(
                f'{path}: row {number} has {len(line)} columns, not {len(names)}'
            )
        rows.append(Published(*line))
    for row in rows:
        if row.mark not in MARKS:
            raise PETLError(
                f'{path} marks {row.label} ({row.table}) as {row.mark!r}. '
                f'There are: {", ".join(MARKS)}'
            )
    return rows


def compare(rows: Iterable[Published], root: str | Path = '.') -> Iterator[Compared]:
    """Count what every row's setting trains.

    Args:
        rows: As of :func:`read_published`.
        root: Folder that paths in settings start from.

    Raises:
        PETLError: A setting is not one method, or a convention is unknown.
    """
    for row in rows:
        count = _Counter(row, Path(root))
        ours = value = count.ours
        if row.counted_as:
            value = count(row.counted_as)
        if rounds_to(ours, row.figure):
            found: Mark = 'exact'
        else:
            found = 'explained' if rounds_to(value, row.figure) else 'not reproducible'
        yield Compared(row, ours, value, found)


def rounds_to(count: float, figure: str) -> bool:
    """Whether ``count`` parameters print as ``figure`` millions; zero must be zero."""
    if float(figure) == 0:
        return count == 0
    return as_printed(count, figure) == figure


def as_printed(count: float, figure: str) -> str:
    """``count`` in millions, with as many digits as ``figure``."""
    digits = len(figure.partition('.')[2])
    return f'{count / 1e6:.{digits}f}'


def _is_method(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in registered_methods()
    )


OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


class _Counter:
    """Counts a row's setting, and what its convention makes of that."""

    def __init__(self, row: Published, root: Path) -> None:
        self.row = row
        self.root = root
        self.conventions: dict[str, Callable[..., float]] = {
            'head': mean_head,
            'final_norm': self.final_norm,
            'without_biases': self.without_biases,
            'delta_of': self.delta_of,
            'mean_of': self.mean_of,
        }

    @cached_property
    def ours(self) -> int:
        """What trains at the setting."""
        node = _parse(self.row.setting)
        if not _is_method(node):
            raise PETLError(f'the setting {self.row.setting!r} is not one method')
        return count_trainable(self.injected(node)).backbone

    def __call__(self, text: str) -> float:
        """The value of a convention."""
        return self.value(_parse(text))

    def value(self, node: ast.AST) -> float:
        """The value of a part of it."""
        if isinstance(node, ast.Name) and node.id == 'ours':
            return self.ours
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](
                self.value(node.left), self.value(node.right)
            )
        if _is_method(node):
            return count_trainable(self.injected(node)).backbone
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in self.conventions:
                # A method in an argument stays a node: conventions count it.
                args = [a if _is_method(a) else ast.literal_eval(a) for a in node.args]
                return self.conventions[name](*args, **_literals(node))
            known = [*registered_methods(), *self.conventions]
            raise PETLError(
                f'{self.row.counted_as!r} asks for {name!r}, which is neither a method '
                f'nor a convention.{suggest(name, known)}'
            )
        raise PETLError(
            f'{self.row.counted_as!r} holds {ast.unparse(node)!r}; it is made of ours, '
            f'methods, conventions, integers and + - * / **'
        )

    def injected(self, node: ast.Call) -> nn.Module:
        """The backbone with a method in it."""
        return self.inject(node.func.id, **_literals(node))

    def inject(self, name: str, **args: Any) -> nn.Module:
        """The same for a method by name."""
        plain = _backbone(self.row.backbone)
        with without_memory():
            return inject(copy.deepcopy(plain), build_method(dict(type=name, **args)))

    def final_norm(self) -> float:
        """The norm behind the last block."""
        sizes = [
            count_trainable(self.inject('PartialK', include_final_norm=norm)).backbone
            for norm in (True, False)
        ]
        return sizes[0] - sizes[1]

    def without_biases(self, method: ast.Call) -> float:
        """Of what a method adds, all but the biases."""
        model = self.injected(method)
        params = dict(model.named_parameters())
        return sum(
            params[name].numel()
            for name, owner in owners(model).items()
            if owner is Owner.DELTA and not name.endswith('bias')
        )

    def delta_of(self, method: ast.Call) -> float:
        """What a method adds, without what it selects of the base."""
        return count_trainable(self.injected(method)).delta

    def mean_of(self, method: str, path: str) -> float:
        """Mean over the settings per task in a file."""
        file = self.root / path
        if not file.is_file():
            raise FileNotFoundError(
                f'{self.row.counted_as!r} needs {file}, which is not there; give the '
                f'root of a checkout'
            )
        settings = json.loads(file.read_text(encoding='utf-8'))['subnets'].values()
        each = [count_trainable(self.inject(method, **s)).backbone for s in settings]
        return sum(each) / len(each)


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode='eval').body
    except SyntaxError as error:
        raise PETLError(f'{text!r} is not an expression: {error.msg}') from error


def _literals(node: ast.Call) -> dict[str, Any]:
    return {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}


@cache
def _backbone(stem: str) -> nn.Module:
    if stem not in BACKBONES:
        raise PETLError(
            f'unknown backbone {stem!r}.{suggest(stem, BACKBONES)} '
            f'There are: {", ".join(BACKBONES)}'
        )
    with without_memory():
        return build_backbone(BACKBONES[stem])


def mean_head(benchmark: Literal['fgvc', 'vtab'], width: int = 768) -> float:
    """Parameters of a linear head, mean over the data sets of a benchmark.

    Args:
        benchmark: Whose data sets.
        width: Of the feature; 768 is that of ViT-B.
    """
    from mmpetl.datasets.fgvc import FGVC_SETS
    from mmpetl.datasets.vtab import VTAB_TASKS

    tasks = {'fgvc': FGVC_SETS, 'vtab': VTAB_TASKS}
    if benchmark not in tasks:
        raise PETLError(f'no head of {benchmark!r}. There are: {", ".join(tasks)}')
    classes = [task.num_classes for task in tasks[benchmark].values()]
    return sum((width + 1) * n for n in classes) / len(classes)
