"""Figures that others printed, read from the CSV files beside this module.

The printed digits are kept, so that what was printed can be held against what follows
from it: PPT from score and parameters, means from the tasks. See ``README.md`` here for
sources and for what to know before comparing.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmpetl.core import PETLError
from mmpetl.evaluation.ppt import ppt

FOLDER = Path(__file__).parent

BENCH_FILES = ('vtab', 'fgvc', 'video', 'dense')
STUDY_FILE = 'lessons_learned'
FILES = (*BENCH_FILES, STUDY_FILE)

SHORT_SOURCES: Mapping[str, str] = {
    'V-PETL Bench README': 'V-PETL Bench',
    'ViT_PEFT_Vision tune_output': 'Lessons Learned, last epoch',
}
"""Beginning of a source to the name that tables use."""

OURS: Mapping[str, str] = {
    'Full fine-tuning': 'Full',
    'Linear probing': 'LinearProbe',
    'Frozen': 'LinearProbe',
    'LN-Tune': 'LNTune',
    'Partial-1': 'PartialK',
    'Prefix Tuning': 'Prefix',
    'U-Tuning': 'UTuning',
    'VPT-Deep': 'VPTDeep',
    'VPT-Shallow': 'VPTShallow',
    'FacT': 'FacTTK',
    'FacT-TK': 'FacTTK',
    'FacT-TT': 'FacTTT',
    'Adapter (Pfeiffer, LoRA init)': 'Adapter',
}
"""A source's name of a method to ours, where they differ.

FacT without a suffix is FacT-TK: its printed 0.07M parameters are the mean over the
ranks that its authors chose per task in Tucker form. The study's adapter after both
halves of a block (Houlsby) is another setting than our default and stands beside none.
"""

SUMMARIES = (
    'mean',
    'group_mean',
    'natural_mean',
    'specialized_mean',
    'structured_mean',
)


@dataclass(frozen=True)
class Figure:
    """One printed number.

    Attributes:
        source: Where it is printed.
        table: Which table of the source.
        backbone: As the source calls it.
        pretraining: What the backbone has seen.
        method: As the source calls it.
        dataset: Id of the task, or the kind of mean.
        metric: ``top1``, ``ap_box``, ...; with ``ppt_`` in front it is a PPT.
        value: Percent, or PPT in [0, 1], with the printed digits.
        params_m: Millions of trainable parameters without the head, as printed.
        memory_mb: Training memory as printed, or empty.
    """

    source: str
    table: str
    backbone: str
    pretraining: str
    method: str
    dataset: str
    metric: str
    value: str
    params_m: str = ''
    memory_mb: str = ''

    @property
    def ours(self) -> str:
        """Our name of the method, whether it is registered or not."""
        return OURS.get(self.method, self.method)

    @property
    def short_source(self) -> str:
        """The name of the source that tables use."""
        for start, name in SHORT_SOURCES.items():
            if self.source.startswith(start):
                return name
        return self.source

    @property
    def params(self) -> int | None:
        """Trainable parameters, as exactly as they are printed."""
        return round(float(self.params_m) * 1e6) if self.params_m else None


@cache
def load(name: str) -> tuple[Figure, ...]:
    """The figures of one file.

    Args:
        name: One of :data:`FILES`.

    Raises:
        PETLError: There is no such file.
    """
    if name not in FILES:
        raise PETLError(f'no published table {name!r}; there are {", ".join(FILES)}')
    with open(FOLDER / f'{name}.csv', encoding='utf-8', newline='') as file:
        return tuple(Figure(**row) for row in csv.DictReader(file))


@dataclass(frozen=True)
class PPTCheck:
    """A printed PPT against the printed score and parameters it should follow from.

    Attributes:
        figure: The printed PPT.
        score: The printed score, in percent.
        recomputed: PPT of the printed score and parameters.
        agrees: Whether it rounds to the printed digits, a half either way.
        rounding_explains: Whether some score and count that round to the printed ones
            give a PPT that rounds to the printed one.
    """

    figure: Figure
    score: str
    recomputed: float
    agrees: bool
    rounding_explains: bool

    @property
    def note(self) -> str:
        """What a reader of a table must know; empty where the value agrees."""
        if self.agrees:
            return ''
        note = (
            f'{self.figure.method}: printed PPT {self.figure.value}, but the printed '
            f'score {self.score} and {self.figure.params_m}M parameters give '
            f'{self.recomputed:.4f}'
        )
        if self.rounding_explains:
            note += ' (rounding of what is printed can explain it)'
        return note


def half_digit(printed: str) -> float:
    """Half of the last printed digit: ``'0.10'`` gives 0.005."""
    return 0.5 * 10.0 ** -len(printed.partition('.')[2])


def check_ppt(figures: Iterable[Figure]) -> list[PPTCheck]:
    """Every printed PPT, recomputed.

    Raises:
        PETLError: A printed PPT stands without a score or without a count.
    """
    figures = list(figures)
    scores = {_cell(f): f.value for f in figures if not f.metric.startswith('ppt_')}
    checks = []
    for figure in figures:
        if not figure.metric.startswith('ppt_'):
            continue
        score = scores.get(_cell(figure))
        if score is None or not figure.params_m:
            raise PETLError(
                f'{figure.table}: the PPT of {figure.method} on {figure.dataset} has '
                f'no score or no parameters to recompute it from'
            )
        percent, millions = float(score), float(figure.params_m)
        slack, slack_m = half_digit(score), half_digit(figure.params_m)
        value = ppt(percent / 100, round(millions * 1e6))
        low = ppt((percent - slack) / 100, round((millions + slack_m) * 1e6))
        high = ppt(
            min((percent + slack) / 100, 1.0), round(max(millions - slack_m, 0) * 1e6)
        )
        printed, reach = float(figure.value), half_digit(figure.value)
        checks.append(
            PPTCheck(
                figure,
                score,
                value,
                abs(value - printed) <= reach + 1e-9,
                low <= printed + reach and high >= printed - reach,
            )
        )
    return checks


@dataclass(frozen=True)
class MeanCheck:
    """A printed mean against the tasks it is over."""

    figure: Figure
    recomputed: float
    num_tasks: int
    agrees: bool


def check_means(figures: Iterable[Figure]) -> list[MeanCheck]:
    """Every printed mean, recomputed as the plain mean over the tasks of its row."""
    rows: dict[tuple[str, ...], list[Figure]] = defaultdict(list)
    for figure in figures:
        if not figure.metric.startswith('ppt_'):
            rows[_cell(figure)[:-2] + (figure.metric,)].append(figure)
    checks = []
    for row in rows.values():
        tasks = [float(f.value) for f in row if f.dataset not in SUMMARIES]
        for figure in row:
            if figure.dataset == 'mean' and tasks:
                mean = sum(tasks) / len(tasks)
                error = abs(mean - float(figure.value))
                agrees = error <= half_digit(figure.value) + 1e-9
                checks.append(MeanCheck(figure, mean, len(tasks), agrees))
    return checks


@dataclass(frozen=True)
class PublishedRow:
    """What one source printed of one method on one backbone.

    Attributes:
        method: Our name of the method.
        printed_method: The name that the source uses.
        source: Short name of the source.
        scores: Task to printed score, in percent.
        params: Task to printed number of trainable parameters.
        mean: The printed mean over tasks, or None.
        ppt: Task, or ``mean``, to the printed PPT and its check.
    """

    method: str
    printed_method: str
    source: str
    scores: Mapping[str, str]
    params: Mapping[str, int]
    mean: str | None
    ppt: Mapping[str, PPTCheck]


def rows_for(
    tasks: Iterable[str], backbone: str, metric: str, methods: Iterable[str]
) -> list[PublishedRow]:
    """Published rows that may stand beside runs of ours.

    Args:
        tasks: Ids of tasks.
        backbone: Our name of the backbone: ``ViT-B/16``.
        metric: ``top1``, ``ap_box``, ``ap_mask`` or ``miou``.
        methods: Our names of the methods.

    Returns:
        One row per method and source, in the order of ``methods``, the benchmark before
        the study. Of the study, the VTAB table at the last epoch.
    """
    tasks, methods = set(tasks), list(methods)
    groups: dict[tuple[str, str, str], list[Figure]] = defaultdict(list)
    for name in FILES:
        wanted = (
            'top1_last_epoch' if name == STUDY_FILE and metric == 'top1' else metric
        )
        figures = load(name)
        if name == STUDY_FILE:
            figures = tuple(f for f in figures if f.table == 'vtab1k')
        # The means of a table stand beside ours only where its tasks do.
        tables = {f.table for f in figures if f.dataset in tasks}
        for figure in figures:
            if (
                figure.table in tables
                and (figure.dataset in tasks or figure.dataset == 'mean')
                and figure.metric in (wanted, f'ppt_{wanted}')
                and figure.ours in methods
                and same_backbone(figure.backbone, backbone)
            ):
                if figure.source.startswith('computed'):
                    continue
                key = figure.ours, figure.short_source, figure.method
                groups[key].append(figure)
    order = {method: i for i, method in enumerate(methods)}
    rows = []
    for (method, source, printed), figures in groups.items():
        scores = [f for f in figures if not f.metric.startswith('ppt_')]
        rows.append(
            PublishedRow(
                method,
                printed,
                source,
                {f.dataset: f.value for f in scores if f.dataset in tasks},
                {f.dataset: f.params for f in scores if f.params is not None},
                next((f.value for f in scores if f.dataset == 'mean'), None),
                {check.figure.dataset: check for check in check_ppt(figures)},
            )
        )
    return sorted(rows, key=lambda r: (order[r.method], r.source != 'V-PETL Bench'))


def same_backbone(printed: str, ours: str) -> bool:
    """Whether a printed name means our backbone.

    ``ViT-B`` is ``ViT-B/16``, the only patch that is printed without its size.
    """
    short, full = (
        ''.join(c for c in name.lower() if c.isalnum()) for name in (printed, ours)
    )
    return bool(short) and (full == f'{short}16' or full.endswith(short))


def _cell(figure: Figure) -> tuple[str, ...]:
    metric = figure.metric.removeprefix('ppt_')
    return (
        figure.source,
        figure.table,
        figure.backbone,
        figure.pretraining,
        figure.method,
        figure.dataset,
        metric,
    )
