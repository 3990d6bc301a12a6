"""mmpetl.HFBackbone where its package is not installed."""

from __future__ import annotations

import sys

import pytest

from mmpetl.core import PETLError
from mmpetl.models import HFBackbone


def test_a_missing_package_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(PETLError, match='pip install "transformers>='):
        HFBackbone({'model_type': 'vit'}, pretrained=False)
