"""Records as columns: small enough that thousands of runs load at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmpetl.benchmark import published
from mmpetl.benchmark.cards import Measured
from mmpetl.benchmark.latex import TEX
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.report.choices import choice, draws
from mmpetl.benchmark.report.details import details
from mmpetl.benchmark.report.pairs import pairs
from mmpetl.benchmark.scores import (
    labels_of,
    metric_of,
    percent,
    suite_of,
    with_facts,
)
from mmpetl.benchmark.statistics import (
    cliques,
    critical_difference,
    friedman,
    mean_ranks,
    shared_tasks,
)
from mmpetl.benchmark.table_parts import Table
from mmpetl.benchmark.tables import build_tables

MAX_POINTS = 32
"""Points of a learning curve that the page carries; longer ones are thinned."""


def page_data(
    records: Sequence[Record],
    verdicts: Mapping[str, str] | None = None,
    cards: Mapping[str, Measured] | None = None,
) -> dict[str, Any]:
    """What the page's script reads, curves apart from the rest.

    Args:
        records: All that it should show.
        verdicts: Standing of runs by their ids, where they were verified.
        cards: What the scorecard has measured of runs, by their ids.

    Returns:
        ``main`` with columns, tables, statistics and published figures, ``curves``, and
        ``details`` of every run.
        Only final runs become rows; the number of others is in ``main['left_out']``.

    Raises:
        PETLError: There is no final run.
    """
    records = with_facts(records)
    tables = build_tables(records, verdicts=verdicts)
    final = [r for r in records if r.job.stage == 'final']
    names = {}
    for place, table in enumerate(tables):
        for row in table.rows:
            for task in table.tasks:
                key = table.protocol, table.suite, table.backbone, row.label, task
                names[key] = place
    # Two tables of one suite and backbone are told apart by metric.
    many = _ambiguous(tables)
    rows, labels = [], labels_of(final)
    for record in final:
        label, protocol = labels[record.job.id], record.job.protocol
        key = protocol, suite_of(record), record.backbone, label, record.task
        rows.append(_row(record, label, _suite(tables[names[key]], many)))
    return {
        'main': {
            'columns': {key: _column([row[key] for row in rows]) for key in rows[0]},
            'count': len(rows),
            'left_out': len(records) - len(final),
            'suites': _suites(tables, many),
            'statistics': [_statistics(table, many, final, cards) for table in tables],
            'published': [item for table in tables for item in _published(table, many)],
            'scale': 1e7,
            'tex': TEX,
            'draws': draws(),
        },
        'curves': _curves(final),
        'details': details(final, verdicts),
    }


def to_script(data: Any) -> str:
    """JSON that may stand inside a script element.

    ``<`` can end the element or open a comment in it, and U+2028 and U+2029 end a line
    in old scripts; JSON can spell all of them in ASCII.
    """
    text = json.dumps(data, allow_nan=False, separators=(',', ':'))
    for char in '<>&\u2028\u2029':
        text = text.replace(char, f'\\u{ord(char):04x}')
    return text


def _ambiguous(tables: Sequence[Table]) -> set[str]:
    """Suites with more than one metric."""
    metrics: dict[str, set[str]] = {}
    for table in tables:
        metrics.setdefault(table.suite, set()).add(table.metric.label)
    return {suite for suite, found in metrics.items() if len(found) > 1}


def _suite(table: Table, many: Iterable[str]) -> str:
    return (
        f'{table.suite}, {table.metric.label}' if table.suite in many else table.suite
    )


def _row(record: Record, label: str, suite: str) -> dict[str, Any]:
    score = percent(record)
    error = None
    if record.status != 'done':
        lines = [x for x in (record.error or '').splitlines() if x.strip()]
        error = (lines[-1] if lines else 'no message')[:400]
    known = bool(record.counts) and score is not None
    return {
        'id': record.job.id,
        'protocol': record.job.protocol,
        'suite': suite,
        'group': record.group,
        'task': record.task,
        'label': label,
        'method': record.job.method,
        'family': record.family,
        'backbone': record.backbone,
        'seed': record.job.seed,
        'score': _short(score, 9),
        'trainable': record.trainable if known else None,
        'step': _short(record.step_seconds, 4),
        'memory': record.peak_memory_bytes,
        'seconds': _short(record.seconds, 4),
        'device': record.device,
        'error': error,
    }


def _short(value: float | None, digits: int) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f'{value:.{digits}g}')


def _column(values: list[Any]) -> Any:
    """Texts as levels and codes, numbers as they are."""
    if not any(isinstance(value, str) for value in values):
        return values
    levels = list(dict.fromkeys(values))
    codes = {level: i for i, level in enumerate(levels)}
    return {'levels': levels, 'codes': [codes[value] for value in values]}


def _suites(tables: Sequence[Table], many: set[str]) -> dict[str, Any]:
    """Suite to its metric and its tasks in the order of columns, with their group."""
    suites: dict[str, Any] = {}
    for table in tables:
        suite = suites.setdefault(
            _suite(table, many), {'metric': table.metric.label, 'tasks': {}}
        )
        suite['tasks'].update(table.tasks)
    return {
        name: {'metric': suite['metric'], 'tasks': list(suite['tasks'].items())}
        for name, suite in suites.items()
    }


def _statistics(
    table: Table,
    many: set[str],
    records: Sequence[Record],
    cards: Mapping[str, Measured] | None,
) -> dict[str, Any]:
    scores = table.scores()
    tasks = shared_tasks(scores)
    result: dict[str, Any] = {
        'protocol': table.protocol,
        'suite': _suite(table, many),
        'backbone': table.backbone,
        'tasks': len(tasks),
        'left_out': [label for label in table.runs() if label not in scores],
        'warnings': list(table.warnings),
        'marks': {row.label: list(row.marks) for row in table.rows if row.marks},
        **pairs(table.runs()),
        'labels_all': [row.label for row in table.rows],
        'choice': choice(table, records, cards),
        'verified': {row.label: row.verified for row in table.rows if row.verified},
    }
    if len(scores) > 2 and len(tasks) > 1:
        ranks = mean_ranks(scores)
        gap = critical_difference(len(ranks), len(tasks))
        test = friedman(scores)
        result |= {
            'ranks': list(ranks.items()),
            'difference': gap,
            'cliques': cliques(ranks, gap),
            'chi2': test.chi2,
            'p': test.p,
        }
    return result


def _published(table: Table, many: set[str]) -> list[dict[str, Any]]:
    methods = dict.fromkeys(row.method for row in table.rows)
    return [
        {
            'suite': _suite(table, many),
            'protocol': table.protocol,
            'backbone': table.backbone,
            'method': item.method,
            'name': item.printed_method,
            'source': item.source,
            'scores': {task: float(text) for task, text in item.scores.items()},
            'mean': item.mean,
            'ppt': {
                task: [check.figure.value, check.note]
                for task, check in item.ppt.items()
            },
        }
        for item in published.rows_for(
            table.tasks, table.backbone, table.metric.key, methods
        )
    ]


def _curves(records: Sequence[Record]) -> dict[str, Any]:
    """Curves by name and place of the run; the lists of steps are shared."""
    steps: dict[tuple[float, ...], int] = {}
    found: dict[str, dict[str, Any]] = {}
    thinned = False
    for place, record in enumerate(records):
        for name, points in record.curves.items():
            if len(points) > MAX_POINTS:
                points, thinned = thin(points, MAX_POINTS), True
            key = tuple(step for step, _ in points)
            code = steps.setdefault(key, len(steps))
            scale = _scale(name)
            values = [None if y is None else _short(y * scale, 4) for _, y in points]
            found.setdefault(name, {})[str(place)] = [code, values]
    return {
        'names': found,
        'steps': [list(key) for key in steps],
        'thinned': MAX_POINTS if thinned else None,
    }


def _scale(name: str) -> float:
    """Validation curves are shown in percent, as the scores are."""
    return metric_of(name.removeprefix('val/')).scale


def thin(points: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` points at even distance, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def summary(records: Sequence[Record]) -> Mapping[str, Any]:
    """Facts for the head of the page."""
    final = [r for r in with_facts(records) if r.job.stage == 'final']
    return {
        'runs': len(final),
        'failed': sum(r.status != 'done' for r in final),
        'methods': len({r.job.method for r in final}),
        'tasks': len({(r.job.recipe.partition('/')[0], r.task) for r in final}),
        'seeds': len({r.job.seed for r in final}),
        'hours': sum(r.seconds for r in final) / 3600,
        'devices': sorted({r.device for r in final if r.device}),
        'commits': sorted({r.commit for r in final if r.commit}),
        'finished': max((r.finished for r in final), default=''),
    }
