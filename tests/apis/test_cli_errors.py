"""What a command says of values that cannot be: one line, and not of its own faults."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook

from mmpetl.apis import run
from mmpetl.config.load import read_config
from mmpetl.config.options import check_values
from mmpetl.core import PETLError
from mmpetl.engine.first_step import behind_steps_marked

ERRORS = (TypeError('a\nb'), ValueError('a\nb'), KeyError('a b'), ZeroDivisionError())


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_what_values_raise_before_the_first_step_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as ended, run.cli_errors(of_run=True):
        raise error
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: the run cannot begin as its config says: ')
    assert type(error).__name__ in line
    assert 'MMPETL_TRACEBACK=1' in line


def test_faults_of_our_own_keep_their_traceback(monkeypatch, capsys):
    error = TypeError('a')
    with pytest.raises(TypeError), run.cli_errors():
        raise error

    seen: list[Hook] = []

    def fail_later() -> None:
        with run.cli_errors(of_run=True):
            runner = SimpleNamespace(register_hook=seen.append)
            with behind_steps_marked(runner):
                seen[0].after_test_iter(runner, 0)
                raise error

    with pytest.raises(TypeError):
        fail_later()
    monkeypatch.setenv('MMPETL_TRACEBACK', '1')
    with pytest.raises(TypeError), run.cli_errors(of_run=True):
        raise error
    assert capsys.readouterr().err == ''


def test_a_config_that_exits_is_none(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('import sys\nsys.exit(0)\n')
    with pytest.raises(PETLError, match=r'a\.py exits \(0\), and is no config'):
        read_config(path)


def test_gradients_do_not_turn_around():
    from mmengine.config import Config

    for bad in (
        {'optim_wrapper': {'clip_grad': {'max_norm': -1}}},
        {'resume': 'maybe'},
    ):
        with pytest.raises(PETLError, match='max_norm|resume'):
            check_values(Config(bad))
    check_values(Config({'optim_wrapper': {'clip_grad': {'max_norm': 1}}}))
