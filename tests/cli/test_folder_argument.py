"""A benchmark folder is named in one way by all commands that read one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

READERS = (
    *(f'benchmark.{name}' for name in ('choose', 'release', 'report', 'scorecard')),
    *(f'benchmark.{name}' for name in ('status', 'table', 'verify')),
    *(f'analyse.{name}' for name in ('agreement', 'ensemble', 'many_shot')),
    *(f'analyse.{name}' for name in ('robustness', 'spread', 'wise')),
)


@pytest.mark.parametrize('name', READERS)
def test_by_its_place_or_by_out(name, capsys):
    module = importlib.import_module(f'mmpetl.cli.commands.{name}')
    needed = {
        'analyse.many_shot': ['--task', 'digits', '--shots', '5'],
        'analyse.wise': ['--task', 'digits'],
    }.get(name, [])
    parse = module.make_parser().parse_args
    assert parse(['bench', *needed]).out == Path('bench')
    assert parse(['--out', 'bench', *needed]).out == Path('bench')
    for wrong, said in ([], 'is missing'), (['a', '--out', 'b'], 'is given twice'):
        with pytest.raises(SystemExit) as end:
            parse([*wrong, *needed])
        assert end.value.code == 2
        assert said in capsys.readouterr().err
