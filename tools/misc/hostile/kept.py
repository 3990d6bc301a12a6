"""Rows of what a benchmark keeps beside its records, and of what SPT's pass finds."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hostile.case import (
    Area,
    Base,
    Bench,
    Call,
    all_kinds,
    drop_at,
    jsons,
    junk,
    set_at,
    texts,
)
from hostile.healthy import environ, page, printed, tensors_of

AREA = Area('kept beside records', 'judged table')

RUN = 'mini-digits--lora--s1'
VERDICT = f'bench/runs/{RUN}/verified.json'
CARD = f'bench/scorecard/cells/{RUN}.json'
FINALS = 'out/search/mini-digits--lora/finals.json'
FOUND = 'spt.json'


# ------------------------------------------------------------------- the healthy calls


def _with_verdict(bench: Bench) -> None:
    from mmpetl.benchmark.verdicts import Check, Verdict, digest_of, write_verdict

    bench.take('bench')
    folder = bench / 'bench' / 'runs' / RUN
    digest = digest_of(folder / 'record.json')
    checks = (Check('metrics.accuracy/top1', 'holds'),)
    write_verdict(folder, Verdict(RUN, 'files', checks, digest))


def _judged(tool: str) -> Callable[[Bench], Call]:
    """A command on records of which one was verified."""

    def prepare(bench: Bench) -> Call:
        _with_verdict(bench)
        return Call(f'tools/benchmark/{tool}', ['--out', str(bench / 'bench')])

    return prepare


def _choose(bench: Bench) -> Call:
    """A choice among runs of which one has a card of the scorecard."""
    from mmpetl.benchmark.verdicts import digest_of

    bench.take('bench')
    digest = digest_of(bench / 'bench' / 'runs' / RUN / 'record.json')
    card = {
        'key': {'record': digest},
        'values': {'latency_ms_1': 2.5, 'folds': 'yes', 'ece': None},
        'bins': {},
    }
    (bench / CARD).parent.mkdir(parents=True)
    (bench / CARD).write_text(json.dumps(card))
    argv = ['--out', str(bench / 'bench'), '--latency-ms', '5']
    return Call('tools/benchmark/choose.py', argv)


def _goes_on(bench: Bench) -> Call:
    """A search whose list of final runs is there."""
    bench.take('plan.yaml', 'data')
    argv = ['--methods', 'LoRA', '--recipe', 'mini/digits', '--trials', '1']
    argv += ['--seeds', '42', '--out', str(bench / 'out'), '--executor', 'inline']
    argv += ['--plan', str(bench / 'plan.yaml')]
    (bench / FINALS).parent.mkdir(parents=True)
    (bench / FINALS).write_text(json.dumps([final()]))
    return Call('tools/benchmark/search.py', argv, environ(bench))


def final(**more: Any) -> dict[str, Any]:
    """A final run of another setting, which was begun and lies nowhere."""
    job = {'recipe': 'mini/digits', 'method': 'LoRA', 'seed': 42, 'protocol': 'honest'}
    job |= {'stage': 'final', 'options': {'optim_wrapper.optimizer.lr': 0.5}}
    return {**job, 'variant': 'searched', 'leaf': False, **more}


def _found(bench: Bench) -> Call:
    """A run of SPT with what its pass has found."""
    bench.take('digits.py', 'base.pth', 'data')
    host = 'layers.0'
    found = {'structure': 'lora', 'rank': 2, 'modules': [f'{host}:attn.proj']}
    found |= {'single': [f'{host}:attn.q'], 'places': [places(0, 5, 9)]}
    found |= {'biases': [f'{host}:attn.v'], 'vectors': ['layers.0.ln1.weight']}
    (bench / FOUND).write_text(json.dumps({**found, 'params': 100}))
    argv = [str(bench / 'digits.py'), '--work-dir', str(bench / 'run'), '--cfg-options']
    argv += ['model.backbone.method.type=SPT', 'model.backbone.method.rank=2']
    argv.append(f'model.backbone.method.found={bench / FOUND}')
    return Call('tools/train.py', argv, environ(bench))


def places(*steps_to: int) -> str:
    """Entries of a matrix as SPT keeps them: differences, compressed, as text."""
    steps = [b - a for a, b in zip((0, *steps_to), steps_to, strict=False)]
    content = struct.pack(f'<{len(steps)}i', *steps)
    return base64.b64encode(zlib.compress(content)).decode()


BASES = [
    Base('judged table', _judged('table.py'), printed),
    Base('judged report', _judged('report.py'), page),
    Base('choose', _choose, printed),
    Base('goes on', _goes_on, printed),
    Base('found by SPT', _found, lambda b, out: tensors_of(b / 'run' / 'epoch_2.pth')),
]


# ------------------------------------------------------------------------ kinds of rows


def put(name: str, place: str, value: Any) -> Callable[[Bench], None]:
    return lambda bench: bench.edit_json(name, lambda d: set_at(d, place, value))


def twice(name: str, key: str, value: str) -> Callable[[Bench], None]:
    """A key that stands twice, the second time as it was."""

    def spoil(bench: Bench) -> None:
        text = (bench / name).read_text()
        changed = text.replace('{', f'{{"{key}": {value}, ', 1)
        (bench / name).write_text(changed)

    return spoil


def huge(name: str) -> Callable[[Bench], None]:
    """More than a file of its kind may have."""

    def spoil(bench: Bench) -> None:
        with open(bench / name, 'r+b') as file:
            file.truncate(3 << 30)

    return spoil


def of_file(
    what: str, name: str, base: str, optional: bool = True, **facts: Any
) -> None:
    """Rows of any file of JSON.

    Args:
        what: Its name in the table.
        name: Its place.
        base: The healthy call.
        optional: Whether it may be missing.
        facts: ``want``, ``says`` and ``differs`` of rows where it is damaged.
    """
    part = Area(AREA.name, base)
    all_kinds(part, what, name, base)
    texts(part, what, name, base)
    jsons(part, what, name, base)
    part.add(f'{what}: of 3 GiB', huge(name), base, want='refuse')
    for case in part.cases:
        if case.want == 'take':
            AREA.add(case.input, case.spoil, base, want='take')
        elif case.input.endswith(': missing') and optional:
            AREA.add(case.input, case.spoil, base, want='take', differs=True)
        else:
            AREA.add(case.input, case.spoil, base, **{'want': 'refuse', **facts})


def fields(what: str, name: str, base: str, table: dict, **facts: Any) -> None:
    """Rows of values of other types, by the place of each and the types that fit."""
    for place, fitting in table.items():
        for label, value in junk(*fitting):
            AREA.add(
                f'{what}: {place} is {label}',
                put(name, place, value),
                base,
                **{'want': 'refuse', **facts},
            )


# ------------------------------------------------------------------------ verified.json

TOLD = {'want': 'either', 'says': 'edited since they were verified'}
"""A table says so of a verdict that is damaged, and stands."""

of_file('verdict', VERDICT, 'judged table', **TOLD)
fields(
    'verdict',
    VERDICT,
    'judged table',
    {
        'format': ('a number',),
        'id': ('a text',),
        'status': (),
        'level': (),
        'record': ('a text',),
        'checks': (),
        'checks.0': (),
        'checks.0.field': ('a text',),
        'files': ('an object',),
        'when': ('a text',),
    },
    **TOLD,
)
for label, place, value in (
    ('format is 99', 'format', 99),
    ('it says falsified', 'status', 'falsified'),
    ('of another record', 'record', '0' * 64),
    ('a check of an unknown state', 'checks.0.found', 'proved'),
):
    AREA.add(f'verdict: {label}', put(VERDICT, place, value), **TOLD)
AREA.add('verdict: a key twice', twice(VERDICT, 'status', '"falsified"'), **TOLD)
AREA.add(
    'verdict: a level of markup',
    put(VERDICT, 'level', '<script>alert(1)</script>'),
    'judged report',
    want='take',
    differs=True,
)

# ------------------------------------------------------------ cards of a scorecard

of_file('card', CARD, 'choose', says=rf'{RUN}\.json')
fields(
    'card',
    CARD,
    'choose',
    {
        'key': ('an object',),
        'values': ('an object',),
        'values.latency_ms_1': ('a number', 'a text', 'null'),
        'values.ece': ('a number', 'a text', 'null'),
    },
)
for label, place, value in (
    ('a latency of 10^400', 'values.latency_ms_1', 10**400),
    ('a latency of -1', 'values.latency_ms_1', -1),
):
    AREA.add(f'card: {label}', put(CARD, place, value), 'choose', want='refuse')
AREA.add(
    'card: of another record',
    put(CARD, 'key.record', '0' * 64),
    'choose',
    want='take',
    differs=True,
)
AREA.add('card: a key twice', twice(CARD, 'values', '{}'), 'choose', want='refuse')


def _nan(bench: Bench) -> None:
    text = (bench / CARD).read_text().replace('2.5', 'NaN')
    (bench / CARD).write_text(text)


AREA.add('card: a latency of NaN', _nan, 'choose', want='refuse')

# -------------------------------------------------------------- final runs of a search

of_file('final runs', FINALS, 'goes on', says='finals')
AREA.cases = [
    replace(case, want='take') if case.input == 'final runs: a list' else case
    for case in AREA.cases  # an empty one names no run
]
fields(
    'final runs',
    FINALS,
    'goes on',
    {
        '0': (),
        '0.recipe': (),
        '0.method': (),
        '0.seed': ('a number',),
        '0.stage': (),
        '0.protocol': (),
        '0.options': ('an object',),
        '0.variant': (),
        '0.leaf': ('true',),
    },
)
for label, job in {
    'a run that leads outside': final(recipe='../../x'),
    'a run of another method': final(method='SSF'),
    'a run of a plan': final(variant='', options={}),
    'a trial': final(stage='tune'),
    'a seed of 10^30': final(seed=10**30),
    'an unknown key': final(more=1),
}.items():
    AREA.add(
        f'final runs: {label}',
        lambda b, job=job: (b / FINALS).write_text(json.dumps([job])),
        'goes on',
        want='refuse',
        says='finals',
    )

# ------------------------------------------------------------------- what SPT has found

of_file('found by SPT', FOUND, 'found by SPT', optional=False)
fields(
    'found by SPT',
    FOUND,
    'found by SPT',
    {
        'structure': (),
        'rank': (),
        'modules': (),
        'single': (),
        'places': (),
        'biases': (),
        'vectors': (),
        'params': ('a number',),
        'modules.0': (),
        'places.0': (),
    },
)
for label, place, value in (
    ('of adapters', 'structure', 'adapter'),
    ('of rank 4', 'rank', 4),
    ('rank is -1', 'rank', -1),
    ('a site that is not there', 'modules.0', 'layers.9:attn.proj'),
    ('two places of one site', 'places', [places(0, 5), places(1)]),
    ('places that fall', 'places.0', places(9, 5)),
    ('places below zero', 'places.0', places(3, -2)),
    ('places twice', 'places.0', places(5, 5)),
    ('places beyond the matrix', 'places.0', places(0, 16 * 17)),
    ('places beyond int32', 'places.0', places(2**31 - 1)),
    ('none of a site', 'places.0', places()),
    ('places that are no base64', 'places.0', '~~~~'),
    ('places that are not compressed', 'places.0', 'AAAA'),
    ('places cut', 'places.0', places(0, 5, 9)[:-4]),
):
    AREA.add(
        f'found by SPT: {label}',
        put(FOUND, place, value),
        'found by SPT',
        want='refuse',
    )


def _bomb(bench: Bench) -> None:
    """Places of 1 GiB when they are unpacked."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    data = b''.join(packer.compress(block) for _ in range(1 << 10)) + packer.flush()
    put(FOUND, 'places.0', base64.b64encode(data).decode())(bench)


AREA.add('found by SPT: places of 1 GiB', _bomb, 'found by SPT', want='refuse')
AREA.add(
    'found by SPT: a key twice',
    twice(FOUND, 'rank', '4'),
    'found by SPT',
    want='refuse',
)
for field in ('structure', 'rank', 'modules', 'single', 'places', 'vectors'):
    AREA.add(
        f'found by SPT: no {field}',
        lambda b, field=field: b.edit_json(FOUND, lambda d: drop_at(d, field)),
        'found by SPT',
        want='refuse',
    )
