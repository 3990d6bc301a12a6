"""What all tests share: threads, seeds, and the tiny backbones of ``tiny.py``."""

from __future__ import annotations

import os

# One thread: the models are tiny, and sums then come out the same on every machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

import mmpetl  # noqa: F401  (closes the gaps of OpenMMLab before anything imports it)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--grid', action='store_true', help='print methods x backbones and go on'
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``pair`` (method on backbone), ``stem`` (backbone) and ``method_case``."""
    if {'pair', 'stem', 'method_case'} & set(metafunc.fixturenames):
        import tiny

        if 'pair' in metafunc.fixturenames:
            found = list(tiny.pairs())
            metafunc.parametrize('pair', found, ids=[p.id for p in found])
        elif 'stem' in metafunc.fixturenames:
            metafunc.parametrize('stem', list(tiny.TINY))
        elif 'method_case' in metafunc.fixturenames:
            cases = list(tiny.method_cases())
            metafunc.parametrize('method_case', cases, ids=[c.id for c in cases])


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption('--grid'):
        import tiny

        print('\n' + tiny.grid())
