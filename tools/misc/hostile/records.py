"""Rows of records, of tables and of report pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostile.case import (
    Area,
    Bench,
    all_kinds,
    drop_at,
    jsons,
    junk,
    set_at,
    texts,
)

AREA = Area('records, tables, report', 'table')

RECORD = 'bench/runs/mini-digits--lora--s1/record.json'
SAYS = r'record\.json|--lora--s1'
"""One bad record never stops the reading of the others, and is named."""
FACTS = {'want': 'refuse', 'says': SAYS}


def put(place: str, value: Any) -> Callable:
    return lambda b: b.edit_json(RECORD, lambda d: set_at(d, place, value))


def drop(place: str) -> Callable:
    return lambda b: b.edit_json(RECORD, lambda d: drop_at(d, place))


def row(label: str, spoil: Callable, base: str = '', **facts: Any) -> None:
    AREA.add(label, spoil, base, **{**FACTS, **facts})


for case_area in (Area('x', 'table'),):
    all_kinds(case_area, 'record', RECORD)
    texts(case_area, 'record', RECORD)
    jsons(case_area, 'record', RECORD)
    for case in case_area.cases:
        name = case.input.removeprefix('record: ')
        label = name if name == '100,000 nested lists' else case.input
        if case.want == 'take':
            row(label, case.spoil, want='take')
        elif name == 'missing':
            row(label, case.spoil, want='take', differs=True)
        else:
            row(label, case.spoil)

row('metric is a string', put('metrics.accuracy/top1', 'x'))
row('metric 10^400', put('metrics.accuracy/top1', 10**400))
row('metric is null', put('metrics.accuracy/top1', None))
row('metric is true', put('metrics.accuracy/top1', True))
row('metric is a list', put('metrics.accuracy/top1', [1.0]))
row('metric 1e308', put('metrics.accuracy/top1', 1e308), want='take', differs=True)
row('metric -5', put('metrics.accuracy/top1', -5), want='take', differs=True)
row('counts is null', put('counts', None))
row('counts.delta is a string', put('counts.delta', 'x'))
row('counts.delta is 1.5', put('counts.delta', 1.5))
row('counts.delta is -1', put('counts.delta', -1))
row('counts.delta is 10^400', put('counts.delta', 10**400))
row('seed is a string', put('job.seed', 'x'))
row('backbone is a number', put('backbone', 7))
TYPES = {
    'format': ('a number',),
    'job': ('an object',),
    'job.recipe': ('a text',),
    'job.method': ('a text',),
    'job.seed': ('a number',),
    'job.protocol': (),
    'job.stage': (),
    'job.options': ('an object',),
    'job.leaf': ('true',),
    'status': (),
    'family': ('a text',),
    'settings': ('an object',),
    'task': ('a text',),
    'group': ('a text',),
    'metrics': (),
    'primary': (),
    'ppt': ('a number', 'null'),
    'counts': (),
    'curves': (),
    'test_reads': ('a number',),
    'seconds': ('a number',),
    'search': ('null',),
    'device': ('a text',),
    'attempts': ('a number',),
    'error': ('a text', 'null'),
}
SEEN = {case.input for case in AREA.cases}
for field, fitting in TYPES.items():
    for name, value in list(junk(*fitting))[:3]:
        label = f'{field} is {name}'
        if label not in SEEN:
            row(label, put(field, value), want='refuse')
for field in ('format', 'job', 'status', 'job.recipe', 'job.method'):
    row(f'no {field}', drop(field))
row('format is 99', put('format', 99))
row('an unknown field', put('more', 1))
row('an unknown field of the job', put('job.more', 1))
row('status is unknown', put('status', 'finished'))
row('a key twice', lambda b: _twice(b))
row('task is markup', put('task', '<b>|x|</b>'), want='take', differs=True)
row(
    'a method of control characters',
    put('job.method', '\x1b[2JLoRA'),
    says=SAYS,
)
row('every record is broken', lambda b: _all(b), want='refuse', says='(?!)')
row('runs is a file', lambda b: _runs(b), want='refuse', says='(?!)')
row('no folder', lambda b: b.call.argv.__setitem__(1, str(b / 'gone')), says='(?!)')
row('the table goes to a full disk', lambda b: _full(b), says='(?!)')
row('the table goes below a file', lambda b: _below(b), says='(?!)')


def _twice(bench: Bench) -> None:
    path = bench / RECORD
    path.write_text(path.read_text().replace('{', '{"status": "failed",', 1))


def _all(bench: Bench) -> None:
    for path in (bench / 'bench').rglob('record.json'):
        path.write_text('{')


def _runs(bench: Bench) -> None:
    import shutil

    shutil.rmtree(bench / 'bench' / 'runs')
    (bench / 'bench' / 'runs').write_text('')


def _full(bench: Bench) -> None:
    bench.call.argv += ['--to', str(bench / 'table.md')]
    bench.call.file_bytes = 64


def _below(bench: Bench) -> None:
    (bench / 'file').write_text('')
    bench.call.argv += ['--to', str(bench / 'file' / 'table.md')]


def report(label: str, spoil: Callable, **facts: Any) -> None:
    row(f'report: {label}', spoil, 'report', **facts)


for name, value in junk():
    report(f'curves is {name}', put('curves', value))
report('curve points are strings', put('curves.loss', ['a', 'b']))
report('curve points are numbers', put('curves.loss', [1, 2]))
report('curve points are of three', put('curves.loss', [[1, 2, 3]]))
report(
    'curve points hold null',  # as a step whose loss was NaN is kept
    put('curves.loss', [[1, None], [2, 1.0]]),
    want='take',
    differs=True,
)
report('curve points hold 10^400', put('curves.loss', [[1, 10**400]]))
report('curves are empty', put('curves', {}), want='take', differs=True)


def searched(trials: Any) -> Callable:
    """A record of a search."""
    return put(
        'search',
        {
            'budget': 2,
            'best': 0,
            'best_value': 50.0,
            'default_value': 50.0,
            'space': {},
            'trials': trials,
        },
    )


SCRIPT = '<script>alert(1)</script>'
report('search trials <script>', searched(SCRIPT))
report('search trials is a number', searched(7))
report('search trials hold numbers', searched([1, 2]))
report('search trials hold texts', searched([SCRIPT]))
report(
    'a trial of texts',
    searched(
        [{'number': SCRIPT, 'options': SCRIPT, 'status': SCRIPT, 'value': SCRIPT}]
    ),
)
report('search is a list', put('search', [1]))
for field in ('task', 'backbone', 'device', 'group', 'error'):
    report(
        f'{field} holds <script>',
        put(field, f'</script>{SCRIPT}'),
        want='take',
        differs=True,
    )


def of_script(bench: Bench) -> None:
    """The metric that counts is called by a script."""
    put('metrics', {SCRIPT: 1.0})(bench)
    put('primary', SCRIPT)(bench)


report('primary holds <script>', of_script, want='take', differs=True)
report('primary is no metric', put('primary', SCRIPT), says='none of the metrics')
report(
    'settings hold <script>',
    put('settings', {SCRIPT: SCRIPT}),
    want='take',
    differs=True,
)


def panel(label: str, facts: str | bytes) -> None:
    """What is said of a picture of the page."""

    def spoil(bench: Bench) -> None:
        folder = bench / 'bench' / 'pictures'
        folder.mkdir()
        bench.take('picture.png')
        (bench / 'picture.png').rename(folder / 'a.png')
        data = facts.encode() if isinstance(facts, str) else facts
        (folder / 'a.json').write_bytes(data)

    report(f'picture facts: {label}', spoil, says=r'a\.json|a\.png')


panel('no JSON', '{')
panel('a list', '[]')
panel('title is a number', '{"title": 7}')
panel('100,000 nested lists', '[' * 100_000 + ']' * 100_000)
panel('not UTF-8', b'{"title": "\xff"}')
