"""Lines that say how to install what is missing."""

import importlib.metadata
import shlex

import pytest
from packaging.requirements import Requirement

from mmpetl.compat import extras

STATED = {
    'benchmark': {'optuna': '>=4', 'plotly': '>=6', 'markdown-it-py': '>=3'},
    'cluster': {'ray': '>=2.40', 'submitit': '>=1.5'},
    'transformers': {'transformers': '>=5.24'},
}


def packages_of(line):
    pip, install, *names = shlex.split(line)
    assert (pip, install) == ('pip', 'install')
    return {n.name: str(n.specifier) for n in map(Requirement, names)}


@pytest.mark.parametrize('extra', STATED)
def test_the_line_names_packages_of_an_index(extra):
    assert packages_of(extras.pip_line(extra)) == STATED[extra]


@pytest.mark.parametrize('extra', STATED)
def test_outside_of_a_checkout_the_installed_package_tells(
    extra, monkeypatch, tmp_path
):
    lines = ['torch>=2.6']
    for name, needs in STATED.items():
        lines += [f'{k}{v} ; extra == "{name}"' for k, v in needs.items()]
    monkeypatch.setattr(extras, 'FILES', tmp_path)
    monkeypatch.setattr(importlib.metadata, 'requires', lambda name: lines)
    assert packages_of(extras.pip_line(extra)) == STATED[extra]
