"""What all tests share: threads, seeds, and the tiny backbones of ``tiny.py``."""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# One thread: the models are tiny, and sums then come out the same on every machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

import mmpetl  # noqa: F401  (closes the gaps of OpenMMLab before anything imports it)

torch.set_num_threads(1)
if not torch.accelerator.is_available():
    # It would note the seed for accelerators too, each with its call stack, for good.
    torch.manual_seed = torch.default_generator.manual_seed
# MMEngine collects garbage with each data set, a third of a second over what stays.
base_dataset = importlib.import_module('mmengine.dataset.base_dataset')
base_dataset.gc = SimpleNamespace(collect=lambda: 0)
# Workers that garbage is left of, as by a run that a test kills, do not end by
# themselves: a collection waits so long for each of them, five seconds as it comes.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1.0


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Numbers and threads, whatever the tests before have left."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _dropout_of_mmcv() -> Iterator[None]:
    """Undo what mmcv's attention does to its default when it is given ``dropout``.

    It writes the rate into the default of ``dropout_layer``, and all that is built
    behind a DETR in this process has that rate too.
    """
    yield
    bricks = sys.modules.get('mmcv.cnn.bricks.transformer')
    if bricks is not None:
        init = inspect.unwrap(bricks.MultiheadAttention.__init__)
        default = inspect.signature(init).parameters['dropout_layer'].default
        default['drop_prob'] = 0.0


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_data(*names)``: a data root that holds these mini sets, or all of them.

    To read from; copy what is to be changed. Each is drawn once in a run of the suite,
    so that others may be there too: a test for which one is missing draws its own.
    """
    from mmpetl.datasets.mini import make

    base = tmp_path_factory.getbasetemp()
    # Processes of a run have folders of their own, in one that is the run's.
    root = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'tiny_data'

    def drawn(*names: str) -> Path:
        make(root, names or None, size='tiny')
        return root

    return drawn


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--trunk', action='append', help='only these tiny backbones, by their ids'
    )
    parser.addoption(
        '--grid', action='store_true', help='print methods x backbones and go on'
    )


def pytest_configure(config: pytest.Config) -> None:
    if only := config.getoption('--trunk'):
        import tiny

        for stem in tiny.TINY.keys() - set(only):
            del tiny.TINY[stem]


CASES = {
    'pair': 'pairs',
    'brief_pair': 'brief_pairs',
    'folding_pair': 'folding_pairs',
    'unfolding_pair': 'unfolding_pairs',
    'staged_pair': 'staged_pairs',
    'method_case': 'method_cases',
    'choosy_case': 'choosy_cases',
    'drifting_case': 'drifting_cases',
    'stem': 'trunks',
    'any_stem': 'TINY',
    'attended_stem': 'attended',
    'costly_stem': 'costly',
}
"""What gives the values of an argument of a test, by name in ``tiny.py``.

A test asks for the cases that can be; it never skips one. ``stem`` are the backbones
with a forward pass of their own, ``any_stem`` their variants too. A case that says so
(``slow``) runs under ``-m slow``: methods beyond those that cover the sites of a
backbone, and what is no host of ``costly_stem``. ``brief_pair`` is for tests of what
core keeps in order, whatever the backbone: slots, files, flags.
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over the cases that its arguments name."""
    for name in filter(CASES.keys().__contains__, metafunc.fixturenames):
        # 'slow or not slow' means all of them.
        brief = metafunc.config.getoption('markexpr').startswith('not slow')
        cases = _cases(name, brief)
        if name == 'stem':
            cases = _served(metafunc, cases)
        found = [
            pytest.param(
                case,
                id=case if isinstance(case, str) else case.id,
                marks=pytest.mark.slow if getattr(case, 'slow', False) else (),
            )
            for case in cases
        ]
        # The scope groups the tests of a file by their case, not by their function.
        metafunc.parametrize(name, found, scope='module')


@functools.cache
def _cases(name: str, brief: bool) -> list[Any]:
    """The values of an argument; to find them for each test would take a minute.

    Args:
        name: See :data:`CASES`.
        brief: Whether to leave out the slow ones; to make each only to leave it out
            would take minutes.
    """
    import tiny

    source = getattr(tiny, CASES[name])
    cases = source() if callable(source) else source
    return [case for case in cases if not (brief and getattr(case, 'slow', False))]


def _served(metafunc: pytest.Metafunc, stems: list[str]) -> list[str]:
    """Of the trunks those that the own tests of a method run on.

    The hosts, and the first trunks of image and video, where they serve the method.
    """
    import tiny

    path = metafunc.definition.path
    if path.parent.name != 'methods':
        return stems
    meant = {*tiny.hosts(), 'mmpretrain_vit', 'mmaction_vit'}
    stems = [stem for stem in stems if stem in meant]
    own = path.stem.removeprefix('test_')
    case = next((c for c in tiny.method_cases() if c.build().stem() == own), None)
    return [stem for stem in stems if case is None or tiny.fits(case, stem)]


def pytest_collection_finish(session: pytest.Session) -> None:
    # What has been imported by now will not be garbage.
    gc.freeze()
    if session.config.getoption('--grid'):
        import tiny

        print('\n' + tiny.grid())
