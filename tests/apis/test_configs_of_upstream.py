"""Configs as upstream's users write them: types without a scope, validation as is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpetl import apis
from mmpetl.config.nodes import petl_backbone_of
from mmpetl.config.protocols import without_validation
from mmpetl.config.scope import package_of
from mmpetl.core import PETLError
from mmpetl.engine.runner import safe_config

ROOT = Path(__file__).parents[2]
VALIDATES = """
val_dataloader = test_dataloader
val_evaluator = test_evaluator
val_cfg = dict()
train_dataloader = test_dataloader
train_cfg = dict(by_epoch=True, max_epochs=1)
"""


@pytest.fixture
def validating(bench) -> Path:
    """A config of upstream that validates on the data it tests on."""
    config = bench.config({'type': 'LoRA', 'rank': 2})
    config.write_text(config.read_text() + VALIDATES)
    return config


def test_a_config_of_upstream_validates_as_it_says(validating):
    config = apis.load_config(validating)
    assert config.val_dataloader == config.test_dataloader
    assert config.val_evaluator
    assert config.val_cfg is not None
    assert without_validation(config) is None
    # Nor does its own copy in the run's folder change that.
    config.dump(validating.with_name('dumped.py'))
    again = apis.load_config(validating.with_name('dumped.py'))
    assert again.val_dataloader == config.test_dataloader


def test_a_recipe_says_in_one_line_why_it_does_not_validate():
    config = apis.load_config(ROOT / 'configs' / 'mini' / 'ade20k.py')
    assert config.val_dataloader is None
    line = without_validation(config)
    assert 'protocol honest reads the test set once' in line
    assert '\n' not in line
    published = apis.load_config(
        ROOT / 'configs' / 'mini' / 'ade20k.py', protocol='published'
    )
    assert published.val_dataloader is not None
    assert without_validation(published) is None


def test_a_config_of_upstream_may_ask_for_a_protocol(validating):
    config = apis.load_config(validating, protocol='honest')
    assert config.val_dataloader is None
    assert without_validation(config)
    assert apis.load_config(validating, stage='tune').test_dataloader is None


@pytest.mark.parametrize('method', ['VQT', 'HST', 'LoRA'])
def test_a_backbone_may_be_named_without_its_package(bench, method):
    method = (
        {'type': method, **({'dims': [4, 8], 'num_heads': [2, 4]})}
        if (method == 'HST')
        else {'type': method}
    )
    scoped = apis.load_config(bench.config(method, name='scoped'))
    bare = apis.load_config(bench.config(method, name='bare', type='VisionTransformer'))
    assert petl_backbone_of(bare).backbone.type == 'VisionTransformer'
    assert bare.model.head.in_channels == scoped.model.head.in_channels
    apis.init_model(bare, device='cpu')


def test_a_package_that_is_not_there_is_one_line(bench):
    config = bench.config({'type': 'VQT'}, bench.base(), type='mmpretran.VisionT')
    with pytest.raises(PETLError, match="needs the package 'mmpretran'"):
        apis.load_config(config)
    config = bench.config({'type': 'VQT'}, bench.base(), widths=3)
    with pytest.raises(PETLError, match="Transformer' got an unexpected .*'widths'"):
        apis.load_config(config)
    config = bench.config({'type': 'VQT'}, bench.base(), type='mmpretrain.VisionT')
    with pytest.raises(PETLError, match="unknown backbone 'mmpretrain.VisionT'"):
        apis.load_config(config)


def test_a_folded_config_needs_no_import_for_a_backbone_of_its_own_scope(bench):
    method = {'type': 'LoRA', 'rank': 2}
    bare = apis.load_config(bench.config(method, type='VisionTransformer'))
    plain = apis.stock_config(bare)
    assert 'custom_imports' not in plain
    assert plain.model.backbone.type == 'VisionTransformer'


def test_the_package_of_a_type():
    from mmpretrain.models import VisionTransformer

    assert package_of('mmpretrain.SwinTransformer', 'mmseg') == 'mmpretrain'
    assert package_of('SwinTransformer', 'mmseg') == 'mmseg'
    assert package_of(VisionTransformer, 'mmseg') == 'mmpretrain'


def test_the_guides_example_becomes_a_run_of_ours(tmp_path):
    guide = (ROOT / 'docs' / 'getting_started.md').read_text()
    text = next(
        block.partition('```')[0]
        for block in guide.split('```python\n')[1:]
        if 'runner_type' in block
    )
    path = tmp_path / 'mine.py'
    path.write_text(text)
    config = apis.load_config(path)
    assert petl_backbone_of(config).method.type == 'LoRA'
    assert config.val_dataloader.dataset == config.test_dataloader.dataset
    safe, added = safe_config(config)
    assert len(added) == 6
    config.model.backbone.checkpoint = None
    assert apis.count_config(config)['delta'] > 0
    for kind in added:
        assert kind in guide
