"""The suite fails on a skip without an accepted reason, in one process or more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skips import ACCEPTED, OPTIONAL, accepted

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from skips import pytest_make_collect_report, pytest_runtest_makereport
"""
TESTS = """
import pytest

def test_in_a_body():
    pytest.skip('no such pair')

@pytest.mark.skip(reason='not today')
def test_by_a_mark():
    raise AssertionError

@pytest.fixture
def need():
    pytest.importorskip('mmpretrain_of_nobody')

def test_in_a_fixture(need):
    raise AssertionError

def test_by_the_machine():
    pytest.skip('a GPU is there')

@pytest.mark.xfail(reason='known')
def test_expected_to_fail():
    raise AssertionError

def test_expected_to_fail_within():
    pytest.xfail('known')
"""
FILE = """
import pytest

pytest.importorskip('mmpretrain_of_nobody')
"""


@pytest.fixture(params=[(), ('-n', '1')], ids=['one', 'xdist'])
def run(pytester, request) -> Callable[[], pytest.RunResult]:
    """Runs pytest with the hooks of the suite, in this process or in a worker."""
    pytester.makeconftest(CONFTEST)
    return lambda: pytester.runpytest_inprocess(*request.param)


def test_an_unexplained_skip_fails(pytester, run) -> None:
    pytester.makepyfile(test_skipping=TESTS)
    result = run()
    result.assert_outcomes(failed=1, errors=2, skipped=1, xfailed=2)
    result.stdout.fnmatch_lines(
        ['*no reason that tests/skips.py accepts: no such pair;*']
    )


def test_a_file_that_skips_itself_fails(pytester, run) -> None:
    pytester.makepyfile(test_absent=FILE, test_there='def test_it(): pass')
    result = run()
    assert result.ret != 0
    result.stdout.fnmatch_lines(['*tests/skips.py accepts: *_of_nobody*'])


def test_reasons_lie_in_the_machine(monkeypatch) -> None:
    absent = "could not import '{}': No module named '{}'"
    monkeypatch.setattr('importlib.util.find_spec', {'ray': object()}.get)
    assert accepted(absent.format('submitit', 'submitit'))
    assert accepted(absent.format('playwright.sync_api', 'playwright'))
    assert not accepted(absent.format('ray', 'a_part_of_it'))
    assert not accepted(absent.format('mmpretrain', 'mmpretrain'))
    assert accepted('no browser: none of a, b is on the PATH')
    assert not accepted('no browser')
    assert not accepted('mmaction_vit has no frozen stages')
    assert len(OPTIONAL) + len(ACCEPTED) <= 20
