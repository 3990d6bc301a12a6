"""The grid of methods and backbones says what `inject` does, with a reason each."""

from __future__ import annotations

import pkgutil
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from tiny import base

import mmpetl.backbones
from mmpetl.core import PETLError, build_method, inject, wanted_sites

TOOL = Path(__file__).parents[2] / 'tools' / 'misc' / 'update_tables.py'


@pytest.fixture(scope='module')
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(TOOL)))


@pytest.fixture(scope='module')
def grid(tool):
    return tool.Grid(tool.trunks())


def test_the_tables_in_the_documents_are_not_stale(tool, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, 'argv', [str(TOOL), '--check'])
    assert tool.main() == 0, capsys.readouterr().out


def test_every_file_has_a_column_and_a_group(tool, grid) -> None:
    files = pkgutil.iter_modules(mmpetl.backbones.__path__)
    known = {f.name for f in files if not f.ispkg}
    # An extra: docs/huggingface.md says what runs on them.
    known = {name for name in known if not name.startswith('transformers')}
    assert {t.stem for t in grid.trunks} == known
    groups = {t.name: t.group for t in grid.trunks}
    assert groups['timm.VisionTransformer'] == 'plain'
    assert groups['mmpretrain.SwinTransformer'] == 'windowed'
    assert groups['mmaction.VisionTransformer'] == 'video'
    assert groups['mmaction.SwinTransformer3D'] == 'video'
    assert set(groups.values()) <= tool.GROUPS.keys()
    assert len(groups) == len(grid.trunks)


def test_every_dash_has_a_reason_in_one_line(grid) -> None:
    for found in grid.cells.values():
        assert found.refused != ''
        assert all('\n' not in note and note for note in found.notes())
    for mark, note in grid.any_model.values():
        assert (mark == 'yes') or note
        assert '\n' not in note


def test_a_cell_is_what_inject_would_say(tool, grid) -> None:
    one_per_group = {trunk.group: trunk for trunk in grid.trunks}.values()
    for name, method in grid.methods.items():
        for trunk in one_per_group:
            refused = grid.cells[name, trunk.name].refused is not None
            with pytest.raises(PETLError) if refused else nullcontext():
                wanted_sites(trunk.model, method)


@pytest.mark.parametrize('method', ['HST', 'VQT'])
def test_a_classifier_inside_takes_the_vector_away(tool, grid, method) -> None:
    found = grid.cells[method, 'timm.VisionTransformer']
    assert found.refused is None
    (option,) = [text for text in found.options if 'num_classes' in text]
    assert 'no `feature`' in found.options[option]
    with pytest.raises(PETLError, match='needs site kind feature'):
        inject(base('timm_vit'), method)
    assert 'no `feature`' in tool.refusal(build_method(method), base('timm_vit'))
    assert '*' in grid.short().partition(f'| [{method}]')[2].partition('\n')[0]


def test_models_without_memory_have_the_shapes_of_real_ones(tool) -> None:
    with tool.Weightless():
        light = timm.create_model('vit_small_patch16_224')
    real = timm.create_model('vit_small_patch16_224')
    shapes = {name: value.shape for name, value in real.state_dict().items()}
    assert {n: v.shape for n, v in light.state_dict().items()} == shapes
    assert sum(v.numel() for v in light.state_dict().values() if not v.is_meta) < 2e5
    assert torch.zeros(300, 300).device.type == 'cpu'
