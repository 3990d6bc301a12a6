"""What autograd keeps for each method, beside what full fine-tuning keeps."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mmpetl
from mmpetl.core import registered_methods

ROOT = Path(__file__).resolve().parents[2]

BOUNDS = {
    0.20: 'DTL LAST LinearProbe ResTuningBypass VQT',
    0.34: 'E3VA LST',
    0.45: 'Adapter AdapterPlus AdaptFormer BiAdaptFormer DyT PolyhistorLite VMTAdapter',
    0.60: 'BitFit ConvAdapter Convpass Hydra IA3 LNTune PartialK Rein SCT SNF',
    0.66: 'DoRA FourierFT HRA KAdaptation LoRA PATT VFPT VPTDeep',
    0.70: 'Compacter ConvLoRA DiffFit LoHa OFT Prefix RepAdapter SSF VAPT VeRA',
    0.76: 'AdaLoRA ARC BAPAT BiLoRA BOFT E2VPT FacTTK GPS LoKr LoRand Mona NOAH RLRR',
    0.80: 'Consolidator FacTTT SPT UTuning',
    # A hundred prompts beside 197 tokens: 1.51 times what a frozen trunk keeps.
    0.87: 'VPTShallow',
    # These train more than 1% of ViT-B/16.
    0.90: 'GLoRA',
    1.00: 'Full',
    1.42: 'MTLoRA',
}
"""The most that methods keep of what full fine-tuning keeps."""

BOUND_OF = {name: bound for bound, names in BOUNDS.items() for name in names.split()}

ANY = 0.85
"""The bound of a method that is not among them."""

SETTINGS = {
    # Ranks beside the width as on ViT-B/16.
    'FacTTK': {'rank': 8},
    'VeRA': {'rank': 64},
    'Consolidator': {'groups': (48, 12)},
}

ELSEWHERE = {'AIM', 'STAdapter', 'HST'}
"""Methods that look along time, and one that wants four blocks."""


@pytest.fixture(scope='module')
def script() -> Any:
    """What ``speed/methods.py`` defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', [str(ROOT / 'speed'), *sys.path])
        return runpy.run_path(str(ROOT / 'speed' / 'methods.py'))


@pytest.fixture(scope='module')
def trunk() -> nn.Module:
    """A quarter of the width of ViT-B/16, and two of its blocks.

    With one picture a square matrix stands to a feature as it does there with four.
    """
    from mmpretrain.models import VisionTransformer

    arch = {'embed_dims': 192, 'num_layers': 2, 'num_heads': 3}
    arch['feedforward_channels'] = 768
    torch.manual_seed(0)
    return VisionTransformer(arch=arch, out_type='cls_token')


@pytest.fixture(scope='module')
def full(script: Any, trunk: nn.Module) -> int:
    """Bytes that full fine-tuning keeps."""
    net = mmpetl.inject(copy.deepcopy(trunk), 'Full').train()
    return script['Step'](net, torch.ones(1, 3, 224, 224)).kept_bytes()


def test_full_fine_tuning_keeps_sixteen_features_in_a_block(full: int) -> None:
    """Inputs of two norms (2), of qkv, proj, fc1 and fc2 (7), of GELU (4), q, k, v (3).

    Then the picture, the input of the last norm, and its output, whose first token
    enters the head. What attention makes is what enters proj.
    """
    feature, picture = 4 * 197 * 192, 4 * 3 * 224 * 224
    known = (2 * 16 + 2) * feature + picture
    assert known < full < 1.01 * known  # and statistics of rows


@pytest.mark.filterwarnings('ignore:GPS trains the first:UserWarning')
@pytest.mark.filterwarnings('ignore:SCT rewrites the first:UserWarning')
@pytest.mark.filterwarnings('ignore:SPT trains a module:UserWarning')
@pytest.mark.parametrize('name', sorted(set(registered_methods()) - ELSEWHERE))
def test_a_method_keeps_no_more_than_its_bound(
    name: str, script: Any, trunk: nn.Module, full: int
) -> None:
    method = {'type': name, **SETTINGS.get(name, {})}
    net = mmpetl.inject(copy.deepcopy(trunk), method).train()
    kept = script['Step'](net, torch.ones(1, 3, 224, 224)).kept_bytes()
    assert kept <= BOUND_OF.get(name, ANY) * full


def test_every_bound_is_of_a_method() -> None:
    assert set(BOUND_OF) <= set(registered_methods()) - ELSEWHERE


def test_a_row_says_what_is_kept(script: Any, trunk: nn.Module, full: int) -> None:
    def make() -> nn.Module:
        return copy.deepcopy(trunk)

    x = torch.ones(1, 3, 224, 224)
    rows = [script['measure_kept'](name, make, x, full) for name in ('LoRA', 'Full')]
    assert rows[0]['parameters'] == 2 * 2 * 2 * 8 * 192
    assert rows[1]['share'] == rows[1]['kept'] == 1
    lines = script['table_of_kept'](rows).splitlines()
    assert lines[0] == '| method | parameters | % of the trunk | kept / full |'
    assert lines[2].startswith('| Full |')  # what keeps most stands first
