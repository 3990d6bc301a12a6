"""The table of a model's layers, in Python and on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm

import mmpetl
from mmpetl.core import PETLError
from mmpetl.layers import build

ROOT = Path(mmpetl.__file__).parent.parent


def vit(**args):
    return timm.create_model('vit_tiny_patch16_224', embed_dim=32, num_heads=2, **args)


def test_the_table_groups_equal_layers() -> None:
    lines = mmpetl.layers(vit()).splitlines()
    assert ['blocks.{0..11}.attn.qkv', 'Linear', '32->96', '12', 'x'] in [
        line.split() for line in lines
    ]
    assert any(n.split()[:3] == ['head', 'Linear', '32->1000'] for n in lines)
    assert lines[-1] == 'VisionTransformer: 9 kinds of layers, 12 blocks, head: head'


def test_the_table_is_the_same_with_a_method() -> None:
    model = timm.create_model('test_resnet')
    plain = mmpetl.layers(model)
    mmpetl.inject(model, 'SSF')
    assert mmpetl.layers(model).replace('PETLResNet', 'ResNet') == plain
    assert 'fc' in plain
    assert '(head)' in plain


def test_what_cannot_be_swapped_says_why() -> None:
    from torch import nn

    layer = nn.TransformerEncoderLayer(8, 2, 8)
    text = mmpetl.layers(nn.Sequential(nn.TransformerEncoder(layer, 2)))
    assert '0.layers.{0,1}.self_attn           MultiheadAttention 8, 2 heads' in text
    assert '(not by itself: its MultiheadAttention)' in text


def test_models_are_named_by_timm_or_by_a_config(tmp_path) -> None:
    assert type(build('timm:test_resnet')).__name__ == 'ResNet'
    config = tmp_path / 'c.py'
    config.write_text(
        'default_scope = "mmpretrain"\n'
        'model = dict(type="ImageClassifier", backbone=dict(\n'
        '    type="ResNet", depth=18, base_channels=8, stem_channels=8))\n'
    )
    model = build(str(config))
    assert 'layer4.1.conv1' in mmpetl.layers(model, 'backbone')
    with pytest.raises(PETLError, match="timm builds no 'vit_colossal'"):
        build('timm:vit_colossal')
    with pytest.raises(PETLError, match='nowhere.py'):
        build('nowhere.py')


def test_the_program_prints_the_table() -> None:
    def run(*args: str) -> subprocess.CompletedProcess:
        command = [sys.executable, '-W', 'error::RuntimeWarning', '-m', 'mmpetl.layers']
        return subprocess.run(
            [*command, *args], capture_output=True, text=True, cwd=ROOT, check=False
        )

    done = run('timm:test_resnet')
    assert done.returncode == 0, done.stderr
    assert 'head: fc' in done.stdout.splitlines()[-1]
