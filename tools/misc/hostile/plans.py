"""Rows of plans, of plan.json, and of what a search keeps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from hostile.case import (
    NESTED,
    Area,
    Base,
    Bench,
    Call,
    all_kinds,
    jsons,
    junk,
    replaced,
    set_at,
    texts,
)
from hostile.healthy import environ, printed

AREA = Area('plan', 'plan')
SEARCH = Area('search file', 'status')

NAME = 'plan.yaml'
JOBS = 'bench/plan.json'


def _status(bench: Bench) -> Call:
    """A folder with the jobs of a plan, none of which has run."""
    (bench / 'bench').mkdir()
    jobs = [
        {'recipe': 'mini/digits', 'method': m, 'seed': 42, 'protocol': 'honest'}
        | {'stage': 'final', 'options': {}, 'variant': '', 'leaf': False}
        | {'id': f'mini-digits--{m.lower()}--s42'}
        for m in ('LoRA', 'SSF')
    ]
    plan = {'name': 'x', 'methods': ['LoRA', 'SSF'], 'recipes': ['mini/digits']}
    data = {'plan': plan, 'jobs': jobs, 'refused': [], 'toolboxes': ['mmpretrain']}
    (bench / JOBS).write_text(json.dumps(data))
    return Call('tools/benchmark/status.py', [str(bench / 'bench')], environ(bench))


def _search(bench: Bench) -> Call:
    bench.take('plan.yaml', 'data')
    argv = ['--methods', 'LoRA', '--recipe', 'mini/digits', '--trials', '1']
    argv += ['--seeds', '42', '--out', str(bench / 'out'), '--executor', 'inline']
    argv += ['--plan', str(bench / 'plan.yaml')]
    return Call('tools/benchmark/search.py', argv, environ(bench))


BASES = [Base('status', _status, printed), Base('search', _search, printed)]


def text(content: str) -> Callable:
    """Another plan."""
    return replaced(NAME, content)


def changed(**keys: Any) -> Callable:
    """The healthy plan with other keys."""

    def spoil(bench: Bench) -> None:
        import yaml

        data = yaml.safe_load((bench / NAME).read_text())
        (bench / NAME).write_text(yaml.safe_dump({**data, **keys}))

    return spoil


all_kinds(AREA, 'plan', NAME)
AREA.cases = [c for c in AREA.cases if c.input != 'plan: first 90% of it']
texts(AREA, 'plan', NAME)
# NULs and the like are told by YAML itself.
AREA.add(
    'not UTF-8',
    replaced(NAME, b'# \xe9\xff\nmethods: [LoRA]\nrecipes: [mini/digits]\n'),
    want='refuse',
)
AREA.add('seeds: [10^30]', changed(seeds=[10**30]), want='refuse')
for label, value in {
    '[-1]': [-1],
    '[1.5]': [1.5],
    '[true]': [True],
    '["1"]': ['1'],
    '[2^32]': [2**32],
    '[]': [],
    'null': None,
    'x': 'x',
    '[NaN]': [float('nan')],
    '{a: 1}': {'a': 1},
}.items():
    AREA.add(f'seeds: {label}', changed(seeds=value), want='refuse')
AREA.add('seeds: 100,000 of them', changed(seeds=list(range(100_000))), want='refuse')
AREA.add('options: keys that are numbers', changed(options={1: 2}), want='refuse')
for label, value in {
    'keys that are null': {None: 1},
    'keys that are true': {True: 1},
    'a list': [1],
    'a text': 'x',
    'an unknown top key': {'train_cgf.max_epochs': 1},
    'an index beyond the list': {'param_scheduler.99.end': 1},
    'an empty key': {'': 1},
    'a key of dots': {'...': 1},
    'custom_imports': {'custom_imports': {'imports': ['antigravity']}},
    'custom_imports.imports': {'custom_imports.imports': ['antigravity']},
    'default_scope': {'default_scope': 'os'},
    'a hook os.system': {'default_hooks.timer': {'type': 'os.system', 'command': 'x'}},
    'a type subprocess.run': {
        'custom_hooks': [{'type': 'subprocess.run', 'args': 'x'}]
    },
    'a type of builtins': {'custom_hooks': [{'type': 'builtins.eval', 'source': '1'}]},
    'a head os.system': {'model.head.type': 'os.system'},
    'an optimizer os.system': {'optim_wrapper.optimizer.type': 'os.system'},
    'a dataset os.system': {'train_dataloader.dataset.type': 'os.system'},
    'a transform os.system': {
        'train_dataloader.dataset.pipeline': [{'type': 'os.system', 'command': 'x'}]
    },
    'launcher': {'launcher': 'pytorch'},
    'runner_type': {'runner_type': 'os.system'},
    'work_dir': {'work_dir': '/etc'},
    'load_from of an address': {'load_from': 'http://127.0.0.1:9/x.pth'},
    '_base_': {'_base_': 'x.py'},
    '_delete_': {'model._delete_': True},
    'max_epochs abc': {'train_cfg.max_epochs': 'abc'},
    'max_epochs -1': {'train_cfg.max_epochs': -1},
}.items():
    wanted = 'either' if label in ('launcher', 'work_dir', '_delete_') else 'refuse'
    if label.startswith(('load_from', 'max_epochs')):
        wanted = 'either'
    AREA.add(f'options: {label}', changed(options=value), want=wanted)
AREA.add(
    'options set custom_imports: run',
    changed(
        options={
            'custom_imports': {'imports': ['antigravity'], 'allow_failed_imports': True}
        }
    ),
    want='refuse',
)
AREA.add('name: ../../evil', changed(name='../../evil'), want='refuse')
for label, value in {
    '/etc': '/etc',
    'a number': 7,
    'a list': ['x'],
    'empty': '',
    '..': '..',
    'a NUL': 'a\0b',
    '5,000 letters': 'a' * 5000,
    'a line end': 'a\nb',
    'an ESC': '\x1b[2J',
}.items():
    AREA.add(f'name: {label}', changed(name=value), want='refuse')
for key in ('methods', 'recipes'):
    for name, value in junk('a text'):
        AREA.add(f'{key}: {name}', changed(**{key: value}), want='refuse')
    AREA.add(f'{key}: an unknown name', changed(**{key: ['x']}), want='refuse')
    AREA.add(f'{key}: [[x]]', changed(**{key: [['x']]}), want='refuse')
for key in ('settings', 'method_options', 'recipe_options'):
    for name, value in junk('an object'):
        AREA.add(f'{key}: {name}', changed(**{key: value}), want='refuse')
    AREA.add(f'{key}: of an unknown name', changed(**{key: {'x': {}}}), want='refuse')
    AREA.add(
        f'{key}: a number for a method', changed(**{key: {'LoRA': 7}}), want='refuse'
    )
for key in ('include', 'exclude', 'data'):
    for name, value in junk('a list', 'a text'):
        AREA.add(f'{key}: {name}', changed(**{key: value}), want='refuse')
for key, value in {
    'protocol': 'honset',
    'protocol: a list': ['honest'],
    'leaves': 'yes please',
    'leaves: a number': 1,
    'sizes': '../../x',
    'sizes: a list': ['mini'],
    'settings: rank is a text': {'LoRA': {'rank': 'x'}},
    'settings: rank is -1': {'LoRA': {'rank': -1}},
    'settings: an unknown argument': {'LoRA': {'ranks': 2}},
    'settings: keys are numbers': {'LoRA': {1: 2}},
    'include: a filter of nothing': ['X@y'],
    'data: an unknown set': ['x'],
}.items():
    AREA.add(f'{key}, wrong', changed(**{key.partition(':')[0]: value}), want='refuse')
HEAD = 'methods: [LoRA]\nrecipes: [mini/digits]\n'
AREA.add('an unknown key', changed(method=['LoRA']), want='refuse')
for label, content in {
    'a Python object': 'methods: !!python/object/apply:os.system ["touch canary"]\n',
    'a Python name': 'methods: !!python/name:os.system\nrecipes: [mini/digits]\n',
    'an unknown tag': 'methods: !x [LoRA]\nrecipes: [mini/digits]\n',
    'a list': '- a\n',
    'a number': '7\n',
    'only a comment': '# nothing\n',
    'a tab': 'methods:\n\t- LoRA\n',
    'a key twice': 'methods: [LoRA]\nmethods: [SSF]\nrecipes: [mini/digits]\n',
    'two documents': 'methods: [LoRA]\nrecipes: [mini/digits]\n---\na: 1\n',
    '100,000 nested lists': f'methods: {NESTED}\n',
    'a list that holds itself': 'methods: &a [*a]\nrecipes: [mini/digits]\n',
    'options that hold themselves': (
        'methods: [LoRA]\nrecipes: [mini/digits]\noptions: &a {x: *a}\n'
    ),
    'an unhashable key': '? [a]\n: 1\n',
    'a date for a name': 'name: 2026-01-01\nmethods: [LoRA]\nrecipes: [mini/digits]\n',
    'a number of 5,000 digits': f'{HEAD}seeds: [{"9" * 5000}]\n',
    'a sexagesimal of 2,000 parts': f'{HEAD}seeds: [{":".join(["1"] * 2000)}]\n',
    'a month 13': 'name: 2026-13-01\nmethods: [LoRA]\nrecipes: [mini/digits]\n',
}.items():
    AREA.add(f'YAML: {label}', text(content), want='refuse')


def laughs() -> str:
    """Aliases that unfold to 10^9 texts."""
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 9)]
    return '\n'.join([*lines, 'methods: *a8', 'recipes: [mini/digits]']) + '\n'


AREA.add('YAML: a billion laughs', text(laughs()), want='refuse')
AREA.add(
    'YAML: a billion laughs in options',
    text(laughs().replace('methods: *a8', 'methods: [LoRA]\noptions: {x: *a8}')),
    want='refuse',
)
AREA.add(
    'YAML: a merge key that holds itself',
    # It merges what it has, which is nothing.
    text('methods: [LoRA]\nrecipes: [mini/digits]\noptions: &a {<<: *a}\n'),
    want='take',
    differs=True,
)


@AREA.row('YAML: a Python object runs a command', want='refuse')
def _command(bench: Bench) -> None:
    content = f'methods: !!python/object/apply:os.system ["touch {bench.canary}"]\n'
    (bench / NAME).write_text(content)


@AREA.row('options: custom_imports of a module beside the plan', want='refuse')
def _module(bench: Bench) -> None:
    (bench / 'evil.py').write_text(f'open({str(bench.canary)!r}, "w")\n')
    bench.call.environ['PYTHONPATH'] = str(bench.path)
    changed(options={'custom_imports': {'imports': ['evil']}})(bench)


def _runs(bench: Bench) -> None:
    """Run the plan, and do not print it only."""
    for flag in ('--dry-run', '--no-calibration'):
        bench.call.argv.remove(flag)
    bench.call.argv += ['--executor', 'inline', '--retries', '0', '--methods', 'LoRA']


@AREA.row('options: a hook that is os.system, run', want='refuse')
def _hook(bench: Bench) -> None:
    node = {'type': 'os.system', 'command': f'touch {bench.canary}'}
    changed(options={'default_hooks.timer': node})(bench)
    _runs(bench)


@AREA.row('options: a dataset that is os.system, run', want='refuse')
def _dataset(bench: Bench) -> None:
    node = {'type': 'os.system', 'command': f'touch {bench.canary}'}
    changed(options={'train_dataloader.dataset': node})(bench)
    _runs(bench)


# ------------------------------------------------------------------- plan.json, status

all_kinds(SEARCH, 'plan.json', JOBS)
texts(SEARCH, 'plan.json', JOBS)
jsons(SEARCH, 'plan.json', JOBS)


def job(place: str, value: Any) -> Callable:
    return lambda b: b.edit_json(JOBS, lambda d: set_at(d, place, value))


for key, fitting in (
    ('recipe', ('a text',)),
    ('method', ('a text',)),
    ('seed', ('a number',)),
    ('protocol', ()),
    ('stage', ()),
    ('options', ('an object',)),
    ('variant', ('a text',)),
    ('leaf', ('true',)),
):
    for name, value in junk(*fitting):
        SEARCH.add(
            f'plan.json: {key} is {name}', job(f'jobs.0.{key}', value), want='refuse'
        )
for key in ('jobs', 'refused'):
    for name, value in junk('a list'):
        SEARCH.add(f'plan.json: {key} is {name}', job(key, value), want='refuse')
    SEARCH.add(f'plan.json: {key} holds numbers', job(key, [1]), want='refuse')
SEARCH.add('plan.json: an unknown key of a job', job('jobs.0.x', 1), want='refuse')
SEARCH.add('plan.json: a job leads outside', job('jobs.0.recipe', '../../x'))
SEARCH.add('plan.json: an id of its own', job('jobs.0.id', '../../x'))
SEARCH.add('the folder is a file', lambda b: _file(b), want='refuse')


def _file(bench: Bench) -> None:
    (bench / 'x').write_text('')
    bench.call.argv[0] = str(bench / 'x')


# ---------------------------------------------------------------------------- a search

JOURNALS = {
    'text': b'no journal\n',
    'half a line': b'{"op_code": 0, "worker_id": "a", ',
    'a list': b'[]\n',
    '100,000 nested lists': NESTED.encode() + b'\n',
    'an unknown operation': b'{"op_code": 99, "worker_id": "a"}\n',
    'not UTF-8': b'\xff\xfe\n',
    'NULs': b'\0' * 4096,
    'a study id of text': (b'{"op_code": 1, "worker_id": "a", "study_id": "x"}\n'),
}


FOLDER = 'out/search/mini-digits--lora'


def kept(name: str, label: str, content: bytes) -> None:
    """A row of a search that finds a file of an earlier one, and goes on."""

    def spoil(bench: Bench) -> None:
        folder = bench / FOLDER
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)

    SEARCH.add(f'{name}: {label}', spoil, 'search', want='refuse', says=name)


for label, content in JOURNALS.items():
    kept('journal.log', label, content)
for label, content in {
    'a list': b'[]',
    'half of it': b'{"space": ',
    'not UTF-8': b'{"a": "\xff"}',
    '100,000 nested lists': NESTED.encode(),
    'of another search': b'{"space": {}, "base": {}, "seed": 1, "recipe": "x"}',
    'empty': b'',
}.items():
    kept('settings.json', label, content)


# ----------------------------------------------------------- what NOAH's search finds


def found(label: str, content: bytes | None) -> None:
    """A row of a run that reads a found subnet."""

    def spoil(bench: Bench) -> None:
        path = bench / 'found.json'
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)
        bench.options(
            'model.backbone.method.type=NOAH',
            'model.backbone.method.rank=8',
            f'model.backbone.method.found={path}',
        )

    SEARCH.add(f'found subnet: {label}', spoil, 'train', want='refuse')


WIDTHS = '{"num_tokens": [1], "rank": [1], "hidden_dims": [%s]}'
for label, content in {
    'a list': b'[]',
    'no lists': b'{}',
    '100,000 nested lists': NESTED.encode(),
    'not UTF-8': b'{"\xff": 1}',
    'half of it': b'{"num_tokens": [1',
    'a FIFO': None,
    'a width of 1.5': (WIDTHS % '1.5').encode(),
    'a width of true': (WIDTHS % 'true').encode(),
    'a width of -1': (WIDTHS % '-1').encode(),
    'a width of 10^9': (WIDTHS % '1000000000').encode(),
    'a width of text': (WIDTHS % '"x"').encode(),
    'too many widths': (WIDTHS % '1, 1, 1').encode(),
}.items():
    found(label, content)
