"""How settings were found: a row for each search that a final run came out of."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmpetl.benchmark.records import Record
from mmpetl.benchmark.scores import metric_of, search_budget, with_facts

HEAD = ('Method', 'Task', 'Trials', 'Searched on', 'Default', 'Best', 'Chosen setting')
TEXTS = ('Method', 'Task', 'Searched on', 'Chosen setting')


def searches(records: Sequence[Record]) -> str:
    """HTML of the searches behind final runs, by task and method."""
    final = [r for r in with_facts(records) if r.job.stage == 'final']
    found: dict[tuple[str, ...], Record] = {}
    for record in final:
        if record.search:
            # Runs of one search differ in their seed alone.
            job = replace(record.job, seed=0)
            found.setdefault((record.task, job.method, record.backbone, job.id), record)
    leaves = sum(r.job.leaf for r in final if not r.search)
    plain = sum(not r.job.leaf for r in final if not r.search)
    words = []
    if plain:
        words.append(
            f'{plain:,} of {len(final):,} runs took the settings of the plan, the same '
            'recipe for every method: a method whose best setting is another one '
            'stands lower than it could.'
        )
    if leaves:
        words.append(
            f'{leaves:,} of {len(final):,} runs took the settings published for their '
            'method and task, which others chose, maybe on test data.'
        )
    if found:
        words.append(
            'A search spends its trials on validation data alone. The first is the '
            'default setting, so the best is never below it. These scores choose; they '
            'are not results.'
        )
    lead = f'<p class="lead">{" ".join(words)}</p>'
    if not found:
        return lead
    head = ''.join(
        f'<th scope="col"{_class(name)}>{html.escape(name)}</th>' for name in HEAD
    )
    rows = ''.join(_row(found[key]) for key in sorted(found))
    return (
        f'{lead}<div class="scroll long" tabindex="0" role="region" '
        'aria-labelledby="h-search"><table id="search-table">'
        f'<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(record: Record) -> str:
    search = record.search or {}
    trials = search.get('trials', ())
    states = Counter(trial.get('status') for trial in trials)
    cut = [f'{states[name]} {name}' for name in ('pruned', 'failed') if states[name]]
    scale = metric_of(record.primary).scale
    count = str(search_budget(record)) + (f' ({", ".join(cut)})' if cut else '')
    cells = (
        record.job.method,
        record.task,
        count,
        str(search.get('split', '')),
        _score(search.get('default_value'), scale),
        _score(search.get('best_value'), scale),
        _chosen(search),
    )
    return '<tr>{}</tr>'.format(
        ''.join(
            f'<td{_class(name)}>{html.escape(cell)}</td>'
            for name, cell in zip(HEAD, cells, strict=True)
        )
    )


def _class(name: str) -> str:
    return ' class="l"' if name in TEXTS else ''


def _score(value: float | None, scale: float) -> str:
    return '–' if value is None else f'{value * scale:.1f}'


def _chosen(search: Mapping[str, Any]) -> str:
    """The best trial's setting, by the last part of each key."""
    for trial in search.get('trials', ()):
        if trial.get('number') == search.get('best'):
            if trial['number'] == 0:
                return 'the default'
            options = trial.get('options', {})
            return ', '.join(
                f'{key.rpartition(".")[2]} = {_short(value)}'
                for key, value in options.items()
            )
    return ''


def _short(value: Any) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)
