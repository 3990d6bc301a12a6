"""mmpetl.HFBackbone where its package is not installed, or stands in a few lines."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn

from mmpetl.core import PETLError
from mmpetl.models import HFBackbone


def test_a_missing_package_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(PETLError, match='pip install "transformers>='):
        HFBackbone({'model_type': 'vit'}, pretrained=False)


class Model(nn.Module):
    """As a model of transformers is loaded; ``said`` is what its loader reports."""

    said: object = None

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type='vit', num_hidden_layers=2)
        self.layer = nn.Linear(2, 2)
        self.pooler = nn.Linear(2, 2)

    @classmethod
    def from_pretrained(cls, source, **options):
        if isinstance(cls.said, Exception):
            raise cls.said
        info = {'missing_keys': set(), 'mismatched_keys': set(), 'error_msgs': []}
        return cls(), info | cls.said


@pytest.fixture
def loader(monkeypatch):
    package = ModuleType('transformers')
    config = SimpleNamespace(model_type='vit')
    package.AutoConfig = SimpleNamespace(from_pretrained=lambda source: config)
    package.ViTModel = Model
    monkeypatch.setitem(sys.modules, 'transformers', package)

    def says(said: object) -> None:
        monkeypatch.setattr(Model, 'said', said)

    return says


@pytest.mark.parametrize(
    ('said', 'line'),
    [
        (
            {'missing_keys': {'layer.weight', 'pooler.weight'}},
            r"at 'x' lack 1 of 2 tensors of Model \(layer.weight is one\)",
        ),
        (
            {'mismatched_keys': {('layer.weight', (3, 2), (2, 2))}},
            r"layer.weight has shape \(3, 2\) in the weights at 'x' and \(2, 2\)",
        ),
        ({'error_msgs': ['odd\nlines']}, "is not filled from 'x': odd"),
        (RuntimeError('cannot\nbe'), "cannot load the weights at 'x': cannot"),
        (OSError('no file\nthere'), "finds no model at 'x': no file"),
    ],
)
def test_a_base_that_would_be_random_in_part_is_refused(loader, said, line) -> None:
    loader(said)
    with pytest.raises(PETLError, match=line) as error:
        HFBackbone('x')
    assert '\n' not in str(error.value)


def test_files_may_come_without_what_is_not_read(loader) -> None:
    loader({'missing_keys': {'pooler.weight', 'embeddings.mask_token', 'head.probe'}})
    assert isinstance(HFBackbone('x').model, Model)
