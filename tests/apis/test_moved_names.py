"""Import paths of before work, and one line says where the name is now."""

from __future__ import annotations

import importlib
import warnings

import pytest

from mmpetl import apis

MOVED = {
    'mmpetl.apis.compose': 'mmpetl.config.compose.compose',
    'mmpetl.apis.delta': 'mmpetl.core.delta_file.write_all',
    'mmpetl.apis.heads': 'mmpetl.config.heads.fit_head',
    'mmpetl.apis.leaves': 'mmpetl.config.leaves.read_table',
    'mmpetl.apis.model': 'mmpetl.config.nodes.petl_backbone_of',
    'mmpetl.apis.preprocessing': 'mmpetl.config.nodes.datasets_of',
    'mmpetl.apis.protocols': 'mmpetl.config.protocols.overlay',
    'mmpetl.apis.run': 'mmpetl.config.load.load_config',
}


@pytest.mark.parametrize('old', MOVED)
def test_a_name_is_found_where_it_was_and_says_where_it_is(old):
    home, _, name = MOVED[old].rpartition('.')
    with pytest.warns(DeprecationWarning, match=name) as caught:
        value = getattr(importlib.import_module(old), name)
    assert value is getattr(importlib.import_module(home), name)
    assert [str(w.message) for w in caught] == [f'{old}.{name} is now {home}.{name}']
    assert caught[0].filename == __file__


@pytest.mark.parametrize('old', MOVED)
def test_every_moved_name_exists(old):
    module = importlib.import_module(old)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        assert all(hasattr(module, name) for name in module.__dir__())
        with pytest.raises(AttributeError, match=f'{old}.* no attribute .nothing'):
            _ = module.nothing


def test_the_front_door_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('error', DeprecationWarning)
        for name in apis.__all__:
            assert getattr(apis, name)
