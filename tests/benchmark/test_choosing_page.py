"""The page on which method to take says what records say, and of which records."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from mmpetl.benchmark.records import DataRead, Job, Record, RecordStore

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'benchmark' / 'choosing_page.py'


def call(monkeypatch, *args) -> int:
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    return end.value.code


def test_the_page_is_not_stale(monkeypatch):
    assert call(monkeypatch, '--costs', '--check') == 0
    text = (ROOT / 'docs' / 'choosing.md').read_text(encoding='utf-8')
    if 'digits_all/records.json' in text:  # else it is of a folder that lies elsewhere
        assert call(monkeypatch, '--check') == 0


def test_costs_alone_are_written_anew(tmp_path, monkeypatch, capsys):
    page = tmp_path / 'page.md'
    page.write_text('a\n## By cost\nold\n## By accuracy\n80.0\n', encoding='utf-8')
    assert call(monkeypatch, '--costs', '--to', page) == 0
    text = page.read_text(encoding='utf-8')
    assert text.startswith('a\n## By cost\n\nDrawn from')
    assert text.endswith(' |\n\n## By accuracy\n80.0\n')
    page.write_text('a\n', encoding='utf-8')
    assert call(monkeypatch, '--costs', '--to', page) != 0
    assert 'no "## By cost"' in capsys.readouterr().err


def test_toy_records_are_cut_by_budget_and_only_methods_count():
    toy = runpy.run_path(str(TOOL))['toy']
    rows = [
        ('LoRA', 4_000, 90.0),
        ('SSF', 30_000, 95.0),
        ('Full', 1_000, 99.0),  # a baseline
    ]
    text = toy([{'method': m, 'backbone_params': n, 'accuracy': a} for m, n, a in rows])
    lines = text.splitlines()
    assert lines[2] == '| 5,000 | 1 | [LoRA](methods/lora.md) 90.0 |'
    assert lines[4].startswith('| 100,000 | 2 | [SSF](methods/ssf.md) 95.0, [LoRA]')
    assert 'Full' not in lines[2]
    assert lines[-1] == 'They hold 3 methods; of others they say nothing.'


def test_costs_leave_out_what_does_not_fold():
    costs = runpy.run_path(str(TOOL))['costs']
    rows = [
        {'method': 'LST', 'kept': 0.1, 'step_full': [0.2]},
        {'method': 'LoRA', 'kept': 0.5, 'step_full': [0.6]},
        {'method': 'Full', 'kept': 0.0, 'step_full': [0.1]},
    ]
    lines = costs(rows).splitlines()
    assert '[LST](methods/lst.md) 0.10, [LoRA](methods/lora.md) 0.50' in lines[2]
    assert lines[4].endswith('| [LoRA](methods/lora.md) 0.50 |')


def test_a_benchmark_folder_answers_each_question(tmp_path, monkeypatch):
    store = RecordStore(tmp_path / 'made-up')
    for method, score, count in (('LoRA', 80.0, 1000), ('SSF', 85.0, 400_000)):
        for task in ('cifar100', 'dtd'):
            job = Job(f'vtab/{task}', method, 1)
            store.write(
                Record(
                    job,
                    'done',
                    family='f',
                    task=task,
                    group='natural',
                    backbone='ViT-B/16',
                    metrics={'accuracy/top1': score},
                    primary='accuracy/top1',
                    counts={'delta': count, 'selected': 0, 'head': 5},
                    data={'train': DataRead(count=1000)},
                )
            )
    page = tmp_path / 'page.md'
    assert call(monkeypatch, '--out', store.out, '--to', page) == 0
    text = page.read_text(encoding='utf-8')
    assert 'Drawn from the 4 records of `made-up`' in text
    few = text.partition('at most 300,000')[2].partition('###')[0]
    assert 'Only LoRA fits' in few
    assert 'SSF (trainable parameters 400,000)' in few


def test_an_empty_folder_is_refused(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, '--out', tmp_path, '--to', tmp_path / 'page.md') == 1
    assert 'holds no record' in capsys.readouterr().err
    assert not (tmp_path / 'page.md').exists()


def test_the_page_of_a_release_says_where_seeds_are_fewer():
    tool = runpy.run_path(str(TOOL.with_name('mini_release_page.py')))
    rows = [
        {
            'recipe': 'mini/digits',
            'method': method,
            'family': 'f',
            'seed': seed,
            'score': 70.0 + seed,
            'trained': 10,
        }
        for method, seeds in (('LoRA', (1, 2, 3)), ('SSF', (1, 2)), ('BitFit', (3,)))
        for seed in seeds
    ]
    cells = [line.split(' | ')[2] for line in tool['table'](rows).splitlines()[2:]]
    assert cells == ['73.0 (n=1)', '72.0 ± 1.0', '71.5 ± 0.7 (n=2)']
