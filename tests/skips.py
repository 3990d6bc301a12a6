"""Skips whose reason is accepted; any other fails, as nothing is held by not running.

``conftest.py`` takes the two hooks of this file. They act where a test or a file is
run, so that under xdist a worker reports the failure.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Generator

import pytest

OPTIONAL = (
    'accelerate',
    'deepspeed',
    'ipykernel',
    'lightning',
    'mkdocs',
    'nbclient',
    'onnxruntime',
    'openTSNE',
    'optuna',
    'peft',
    'playwright',
    'ray',
    'submitit',
    'torchao',
    'transformers',
)
"""Packages that ``pip install mmpetl`` does not bring."""

ACCEPTED = (
    'a GPU is there',
    'a compiled mmcv is installed',
    'no LaTeX compiler is installed',
    'kill -9 needs a child process',
    'no browser: .+',
)
"""Patterns of reasons that lie in the machine; a combination that cannot be is none."""


def accepted(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    if missing := re.match(r"could not import '(\w+)", reason):
        name = missing[1]
        # What is there and cannot be imported is broken.
        return name in OPTIONAL and importlib.util.find_spec(name) is None
    return any(re.fullmatch(pattern, reason) for pattern in ACCEPTED)


Runs = Generator[None, pytest.TestReport, pytest.TestReport]
Collects = Generator[None, pytest.CollectReport, pytest.CollectReport]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Runs:
    """Hold the reason for which a test is skipped."""
    report = yield
    _hold(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Collects:
    """Hold the reason for which a file is skipped."""
    report = yield
    _hold(report)
    return report


def _hold(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn an unexplained skip into a failure; what is expected to fail is no skip."""
    if report.outcome != 'skipped' or hasattr(report, 'wasxfail'):
        return
    *_, reason = report.longrepr
    reason = reason.removeprefix('Skipped: ')
    if not accepted(reason):
        report.outcome = 'failed'
        report.longrepr = (
            f'skipped, and no reason that tests/skips.py accepts: {reason}; '
            'parametrise over what can be, or add the reason there'
        )
