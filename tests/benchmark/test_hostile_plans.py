"""Plans and records that somebody else has written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from mmpetl.benchmark.collect import collect, curves_of
from mmpetl.benchmark.optuna_study import check_journal
from mmpetl.benchmark.plan import parse_plan, read_plan, resolve
from mmpetl.benchmark.progress import running_of
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.spaces import check_in_space, decode
from mmpetl.benchmark.trust import check_trusted
from mmpetl.core import PETLError
from mmpetl.engine.hooks.run_log import read_run_log

BASE = 'methods: [LoRA]\nrecipes: [mini/digits]\n'


def plan_of(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / 'some.yaml'
    data = text if isinstance(text, bytes) else (BASE + text).encode()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        ({'default_hooks.timer': {'type': 'os.system', 'command': 'x'}}, 'os.system'),
        ({'default_hooks.timer.type': 'antigravity'}, 'antigravity'),
        ({'custom_hooks': [{'a': [{'type': 'mmengine.load'}]}]}, 'mmengine.load'),
        ({'optim_wrapper': {'constructor': 'os.system'}}, 'constructor'),
        ({'model.of': 'os.system'}, 'os.system'),
        ({'model.backbone.method': 'os.system'}, 'os.system'),
        ({'custom_imports': {'imports': ['evil']}}, 'custom_imports'),
        ({'custom_imports.imports': ['evil']}, 'custom_imports'),
        ({'model': {'_base_': 'evil.json'}}, '_base_'),
        ({'train_dataloader.collate_fn': 'os.system'}, 'collate_fn'),
        ({'train_dataloader.dataset.ann_file': 'evil.pkl'}, 'evil.pkl'),
        ({'model.teacher': 'evil.PY'}, 'evil.PY'),
        ({'default_hooks.checkpoint.out_dir': '/elsewhere'}, 'out_dir'),
        ({'model.name': '{{$X:y}}'}, '{{'),
        ({'default_hooks.timer': {'type': ['os.system']}}, 'os.system'),
        ({'model': {1: 2}}, '1'),
    ],
)
def test_a_plan_cannot_reach_code(options, word):
    with pytest.raises(PETLError) as error:
        check_trusted(options, lambda: 'mmengine', 'the plan')
    assert word in str(error.value)


@pytest.mark.parametrize(
    'options',
    [
        {'default_hooks.empty': {'type': 'EmptyCacheHook'}},
        {'optim_wrapper.optimizer': {'_delete_': True, 'type': 'SGD', 'lr': 0.1}},
        {'train_dataloader.collate_fn.type': 'default_collate'},
        {'train_dataloader.collate_fn': {'type': 'default_collate'}},
        {'default_hooks.x': {'type': 'mmpetl.EfficiencyHook'}},
        {'train_cfg.max_epochs': 3, 'phases': {'supernet': {'max_epochs': 6}}},
    ],
)
def test_registered_names_stay_good(options):
    check_trusted(options, lambda: 'mmengine', 'the plan')


@pytest.mark.parametrize(
    ('text', 'word'),
    [
        ('name: ../../evil', 'name'),
        ('seeds: [4294967296]', 'seeds'),
        ('options: {1: 2}', 'no text'),
        ('options: {a: 1}\noptions: {a: 2}', 'twice'),
        ('options: {a: 2020-01-01}', 'date'),
        ('options: {a: "x\\uD800"}', 'half of a character'),
        ('options: {a: .nan}', 'finite'),
        ('options: ' + '[' * 5000, 'plan'),
        ('options: &x {a: *x}', 'nested'),
        ('settings: {LoRA: {type: os.system}}', 'type'),
        (b'\xff\xfemethods', 'UTF-16'),
        (b'name: \xe4', 'UTF-8'),
    ],
)
def test_a_bad_plan_is_one_line(tmp_path, text, word):
    with pytest.raises(PETLError) as error:
        read_plan(plan_of(tmp_path, text))
    assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_aliases_cannot_multiply(tmp_path):
    lines = ['  a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]']
    for one, other in zip('abcdefg', 'bcdefgh', strict=True):
        lines.append(f'  {other}: &{other} [{", ".join([f"*{one}"] * 9)}]')
    with pytest.raises(PETLError, match='more than'):
        read_plan(plan_of(tmp_path, 'options:\n' + '\n'.join(lines)))


def test_a_hook_of_a_plan_needs_trust(tmp_path):
    path = plan_of(
        tmp_path, 'options: {default_hooks.own: {type: os.system, command: x}}'
    )
    with pytest.raises(PETLError, match='--trust'):
        resolve(read_plan(path))
    assert resolve(read_plan(path), trust=True).jobs


def test_a_rate_in_scientific_notation_is_a_number(tmp_path):
    path = plan_of(tmp_path, 'options: {optim_wrapper.optimizer.lr: 1e-3}')
    assert read_plan(path).options['optim_wrapper.optimizer.lr'] == 1e-3


def good(seed: int = 1) -> Record:
    return Record(
        Job('mini/digits', 'LoRA', seed=seed),
        'done',
        metrics={'accuracy/top1': 50},
        primary='accuracy/top1',
        counts={'delta': 3},
        curves={'loss': [[1, 0.5], [2, None]]},
    )


@pytest.mark.parametrize(
    'change',
    [
        {'metrics': {'accuracy/top1': '50'}},
        {'metrics': {'accuracy/top1': True}},
        {'counts': None},
        {'counts': {'delta': 'many'}},
        {'job': {'recipe': 'mini/digits', 'method': 'LoRA', 'seed': '1'}},
        {'backbone': 7},
        {'curves': 3},
        {'curves': {'loss': [['a', 'b']]}},
        {'curves': {'loss': [[1]]}},
        {'search': {'trials': '<script>'}},
        {'search': {'trials': [{'number': 1}]}},
        {'status': 'odd'},
        {'format': 9},
        {'more': 1},
    ],
)
def test_a_bad_record_stops_no_other(tmp_path, capsys, change):
    store = RecordStore(tmp_path)
    store.write(good(1))
    bad = store.folder(Job('mini/digits', 'LoRA', seed=2)) / 'record.json'
    bad.parent.mkdir(parents=True)
    bad.write_text(json.dumps({**good(2).to_json(), **change}))
    assert [r.job.seed for r in store.all()] == [1]
    assert capsys.readouterr().err.count('left out') == 1
    with pytest.raises(PETLError, match='1 records were left out'):
        store.check_all_read()


@pytest.mark.parametrize(
    'text', ['[' * 100_000, '', '{', '{"a": 1, "a": 2}', '[]', '{"x": 1e999}']
)
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    store = RecordStore(tmp_path)
    path = store.folder(good().job) / 'record.json'
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert store.all() == []
    assert str(path) in store.left_out[0]


def test_a_huge_metric_is_named(tmp_path):
    store = RecordStore(tmp_path)
    store.write(good())
    path = store.folder(good().job) / 'record.json'
    path.write_text(path.read_text().replace('50', '1' + '0' * 400))
    assert store.all() == []
    assert 'metrics' in store.left_out[0]


def test_a_copied_folder_is_no_second_run(tmp_path):
    store = RecordStore(tmp_path)
    store.write(good())
    folder = store.folder(good().job)
    copied = folder.with_name(f'{folder.name}-copy')
    copied.mkdir()
    (copied / 'record.json').write_text((folder / 'record.json').read_text())
    assert len(store.all()) == 1
    assert 'second record' in store.left_out[0]


def test_good_records_come_back(tmp_path):
    store = RecordStore(tmp_path)
    store.write(good())
    assert store.all() == [good()]
    assert not store.left_out
    store.check_all_read()


def test_a_journal_says_no_more_than_its_space():
    space = {'lr': {'low': 0.1, 'high': 1.0}, 'kind': ['a', [1, 2]]}
    check_in_space({'lr': 0.5, 'kind': [1, 2]}, space, 'journal')
    for options in ({'custom_hooks': [1]}, {'lr': 2.0}, {'lr': 'x'}, {'kind': 'b'}):
        with pytest.raises(PETLError, match='not in the search space'):
            check_in_space(options, space, 'journal')


LINES = {
    'no object': '[1]',
    'val is text': '{"step": 1, "val": "x"}',
    'val of text': '{"step": 1, "val": {"a": "x"}}',
    'test of lists': '{"test": {"a": [1]}}',
    'a step of 1.5': '{"step": 1.5, "loss": 1.0}',
    'no step': '{"loss": 1.0}',
    'steps without a step': '{"of": 9}',
    'time is text': '{"t": "x"}',
    'an attempt alone': '{"attempt": 1}',
    'memory is text': '{"peak_memory_bytes": "x"}',
    'a step of text': '{"step": "1", "loss": 2.0}',
    'a step of nothing': '{"step": null, "loss": 2.0}',
    'a loss of nothing, no step': '{"loss": null}',
    'val is nothing': '{"step": 1, "val": null}',
    'test is nothing': '{"test": null}',
    'a reading without a step': '{"reads_test": true}',
    'a reading of 1': '{"step": 1, "reads_test": 1}',
    'time has no end': f'{{"t": {10**400}}}',
    'nested': '[' * 9 + ']' * 9,
}


def test_a_bad_line_of_a_log_is_named_and_left_out(tmp_path, capsys):
    path = tmp_path / 'log.jsonl'
    good = [
        {'attempt': 1, 'begun': '2026', 'config': 'ab', 'pid': 1, 't': 0.1},
        {'step': 1, 'of': 2, 'loss': None, 'lr': 1, 't': 3},
        {'step': 2, 'val': {'a': 1.5, 'b': None}, 'reads_test': False, 't': 4.5},
        {'step': 2, 'val': {'a': 1.5}, 'last': True},
        {'test': {}, 't': 9.7},
        {'failed': 'x: y'},
        {'peak_memory_bytes': 7, 't': 1.0},
    ]
    text = '\n'.join(map(json.dumps, good)) + '\n'
    for half in ('{"step": 3, "lo', '[' * 99_999, '{"t": NaN}'):
        path.write_text(text + half)
        assert list(read_run_log(path)) == good
        assert capsys.readouterr().err == ''
    assert curves_of(good) == {'lr': [[1, 1]], 'val/a': [[2, 1.5]]}
    for line in LINES.values():
        path.write_text(f'{line}\n{text}')
        assert list(read_run_log(path)) == good, line
        said = capsys.readouterr().err
        assert said.startswith(f'left out: {path}, line 1'), line
        assert len(said.splitlines()) == 1
        path.write_text(f'{text}{line}\n')
        assert running_of('a', tmp_path).step in (0, 1)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PETLError, match='is a device, FIFO'):
        list(read_run_log(path))


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('efficiency.json', '[1]'),
        ('efficiency.json', '{"counts": [1]}'),
        ('efficiency.json', '{"counts": {"delta": "x"}}'),
        ('efficiency.json', '{"step_time_s": "x"}'),
        ('efficiency.json', '{"step'),
        ('efficiency.json', '[' * 99_999),
        ('delta.json', '[1]'),
        ('delta.json', '{"base": 7}'),
        ('delta.json', '{"fingerprint": [1]}'),
    ],
)
def test_files_that_a_record_is_made_of_are_typed(tmp_path, name, text):
    (tmp_path / 'efficiency.json').write_text('{"counts": {}}')
    (tmp_path / name).write_text(text)
    with pytest.raises(PETLError, match=name):
        collect(Job('mini/digits', 'LoRA'), {}, tmp_path, 'ab')


@pytest.mark.parametrize(
    'value', ['!!timestamp x', '!!bool x', '!!int ""', '!!float ""', '!!omap x']
)
def test_a_value_that_is_none_of_its_tag_is_refused(tmp_path, value):
    path = plan_of(tmp_path, f'name: {value}\n')
    with pytest.raises(PETLError, match='cannot read the plan'):
        read_plan(path)


@pytest.mark.parametrize('data', [5, None, 'x', ['methods', 'recipes', 'name']])
def test_what_has_no_keys_is_no_plan(data):
    with pytest.raises(PETLError, match='the plan is no plan: it holds no keys'):
        parse_plan(data)


def test_choices_of_a_journal_are_those_of_the_space():
    space = {'a': [1, None, [1, 2]], 'b': {'low': 1, 'high': 9}}
    check_in_space({'a': decode('json:[1, 2]'), 'b': 2}, space, 'x')
    for options in ({'a': True}, {'b': 2.5}, {'b': True}):
        with pytest.raises(PETLError, match='is not in the search space'):
            check_in_space(options, space, 'x')
    for text in ('json:[1', 'json:[1] 2', f'json:{"[" * 100_000}'):
        with pytest.raises(PETLError, match='the choice'):
            decode(text)


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        ({'counts': {'delta': -1}}, 'counts'),
        ({'counts': {'delta': 10**30}}, 'counts'),
        ({'primary': 'x'}, "primary is 'x', which is none of the metrics"),
        ({'task': '\x1b[2J'}, 'control character'),
        ({'job': {'recipe': 'a', 'method': 'b', 'protocol': 'x'}}, 'job.protocol'),
        ({'job': {'recipe': 'a', 'method': 'b', 'stage': 'x'}}, 'job.stage'),
        ({'job': {'recipe': 'a', 'method': 'b', 'more': 1}}, "job has 'more'"),
        ({'job': {'recipe': 'a', 'method': '\x1b[2J'}}, 'control character'),
    ],
)
def test_a_record_says_what_a_record_can(change, word):
    good = Record(Job('a', 'b'), 'done', metrics={'m': 1.0}, primary='m').to_json()
    assert Record.from_json(good).score == 1.0
    with pytest.raises(PETLError, match=re.escape(word)):
        Record.from_json({**good, **change})


def test_a_record_that_is_a_broken_link_is_named(tmp_path, capsys):
    for name, target in (('a', 'record.json'), ('b', 'nowhere')):
        (tmp_path / 'runs' / name).mkdir(parents=True)
        (tmp_path / 'runs' / name / 'record.json').symlink_to(target)
    (tmp_path / 'runs' / 'c').mkdir()
    store = RecordStore(tmp_path)
    assert store.all() == []
    assert len(store.left_out) == 2
    assert capsys.readouterr().err.count('left out: ') == 2


@pytest.mark.parametrize(
    'line',
    [
        'no journal',
        '[]',
        '{"op_code": 99, "worker_id": "a"}',
        '{"op_code": 1, "worker_id": "a", "study_id": "x"}',
        '[' * 9999,
    ],
)
def test_a_damaged_journal_is_one_line(tmp_path, line):
    path = tmp_path / 'journal.log'
    good = '{"op_code": 7, "worker_id": "a", "trial_id": 0, "value": NaN}\n'
    path.write_text(good)
    check_journal(path)
    path.write_text(f'{good}{line}\n{good}')
    with pytest.raises(PETLError, match=r'journal\.log, line 2'):
        check_journal(path)


def test_half_a_line_of_a_journal_is_taken_out(tmp_path):
    path = tmp_path / 'journal.log'
    good = '{"op_code": 4, "worker_id": "a", "study_id": 0}\n'
    path.write_text(good + '{"op_code": 4, "wor')
    check_journal(path)
    assert path.read_text() == good
    check_journal(tmp_path / 'none')
