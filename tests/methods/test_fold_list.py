"""What ``fold_delta.py --list`` says of every method."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tiny

import mmpetl
from mmpetl.core import PETLError, build_method, registered_methods

STEMS = ('mmpretrain_vit', 'mmaction_vit', 'mmpretrain_vit_frames')
"""Trunks, of which the first that serves a method is taken."""

TOOL = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'fold_delta.py'


@pytest.fixture
def said(monkeypatch, capsys) -> dict[str, str]:
    """The line of every method."""
    spec = importlib.util.spec_from_file_location('fold_delta', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr('sys.argv', [str(TOOL), '--list'])
    with pytest.raises(SystemExit) as end:
        tool.main()
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line.partition('  ')[2].strip() for line in lines}
    assert len(found) == len(lines)
    return found


def test_every_method_has_one_line_that_folding_bears_out(said: dict[str, str]) -> None:
    assert said.keys() == registered_methods().keys()
    first = {case.name: case for case in reversed([*tiny.method_cases()])}
    for name, line in said.items():
        host = next(stem for stem in STEMS if tiny.fits(first[name], stem))
        model = mmpetl.inject(tiny.base(host), first[name].build())
        tiny.shake_(model)
        if line.startswith('does not fold'):
            with pytest.raises(PETLError, match='cannot be folded'):
                mmpetl.fold(model)
        else:
            plain = mmpetl.fold(model).state_dict()
            assert list(plain) == list(tiny.base(host).state_dict())


def test_lines_name_the_sites(said: dict[str, str]) -> None:
    assert said['LoRA'] == 'folds at attn.q, attn.v'
    assert said['Hydra'] == 'folds at attn.proj, ffn.fc2'
    assert said['RepAdapter'] == 'folds at attn.qkv, ffn.fc1'
    assert said['BitFit'] == said['PartialK'] == 'trains base weights in place'
    assert said['Mona'] == (
        'does not fold: no base weight computes what it adds at attn.sum, ffn.sum'
    )
    for name in ('SCT', 'UTuning', 'NOAH'):
        assert said[name].endswith(f'docs/methods/{build_method(name).stem()}.md')
