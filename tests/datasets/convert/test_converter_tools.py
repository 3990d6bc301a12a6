"""The command-line tools: help, counts, one line for what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from converter_files import cub, pack, tree, under, voc_archives

ROOT = Path(__file__).parents[3]


def run_tool(monkeypatch, capsys, name: str, *args: object) -> tuple[int, str, str]:
    path = ROOT / 'tools' / 'dataset_converters' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'converter_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
    code = 0
    try:
        module.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


TOOLS = sorted((ROOT / 'tools' / 'dataset_converters').glob('*.py'))


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.stem)
def test_every_tool_has_help_with_an_example(path, monkeypatch, capsys):
    code, out, _ = run_tool(monkeypatch, capsys, path.stem, '--help')
    assert code == 0
    assert f'python tools/dataset_converters/{path.name}' in out


def test_tools_convert_and_tell_counts(official, tmp_path, monkeypatch, capsys):
    root = ('--data-root', tmp_path / 'data', '--workers', 2)
    code, out, _ = run_tool(
        monkeypatch, capsys, 'voc', *voc_archives(official, tmp_path), *root
    )
    assert code == 0
    assert 'trainval2012' in out
    assert '(the official set has 11,540)' in out
    task = pack(
        tmp_path / 'v.zip', under('vtab-1k/dtd', tree(official / 'vtab-1k' / 'dtd'))
    )
    code, out, _ = run_tool(monkeypatch, capsys, 'vtab1k', '--processed', task, *root)
    assert code == 0
    assert 'train800val200' in out
    pictures, splits = cub(official)
    code, out, _ = run_tool(
        monkeypatch,
        capsys,
        'fgvc',
        'cub_200_2011',
        pack(tmp_path / 'c.zip', pictures),
        '--splits',
        pack(tmp_path / 's.zip', splits),
        *root,
    )
    assert code == 0
    assert 'train.json' in out


@pytest.mark.parametrize(
    ('args', 'part'),
    [
        (('voc', 'none.tar'), 'there is no archive'),
        (('vtab1k', '--npz', 'none', '--tasks', 'cifar1000'), 'none of the 19'),
        (('many_shot', 'resisc45'), 'give --tfds'),
        (('imagenet', 'lists'), 'there is no'),
        (('kinetics400',), 'put the clips of the release there'),
        (('hmdb51', '--videos', 'x', '--splits', 'y'), 'test_train_splits.rar'),
        (('ssv2', '--videos', 'x', '--labels', 'y'), 'labels.json'),
    ],
)
def test_tools_say_one_line(tmp_path, monkeypatch, capsys, args, part):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_tool(monkeypatch, capsys, *args, '--data-root', tmp_path)
    assert code == 1
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert part in err


@pytest.mark.parametrize(
    ('args', 'part'),
    [
        (('ade20k', 'a.zip', '--workers', 'abc'), "invalid positive value: 'abc'"),
        (('ade20k', 'a.zip', '--workers', '0'), 'at least 1'),
        (('many_shot', 'cifar100', 'a.tgz', '--tfds', 'x'), 'does not go with --tfds'),
        (('imagenet', 'imagenet_r', 'a.tar', '--check'), '--check goes with lists'),
    ],
)
def test_flags_that_mean_nothing_are_refused(monkeypatch, capsys, args, part):
    code, _, err = run_tool(monkeypatch, capsys, *args)
    assert code == 2
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert part in err
