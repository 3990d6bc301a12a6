"""Files of one architecture offered to another of the same width and depth.

Shapes agree nearly everywhere, so that only names and what is missing tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from official_files import MM, SEG, TIMM, eva02
from torch import nn

from mmpetl import compat

compat.install()

import mmpretrain.models.backbones as mmpretrain_backbones  # noqa: E402
import mmseg.models.backbones as mmseg_backbones  # noqa: E402
from timm.models.beit import Beit  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402

from mmpetl.models.weights import WeightsError, load_base_weights  # noqa: E402

MODELS: dict[str, Callable[[], nn.Module]] = {
    'mmseg ViT': lambda: mmseg_backbones.VisionTransformer(**SEG),
    'mmseg BEiT': lambda: mmseg_backbones.BEiT(qv_bias=True, init_values=0.1, **SEG),
    'mmseg MAE': lambda: mmseg_backbones.MAE(init_values=0.1, **SEG),
    'mmpretrain ViT': lambda: mmpretrain_backbones.VisionTransformer(**MM),
    'mmpretrain BEiT': lambda: mmpretrain_backbones.BEiTViT(**MM),
    'mmpretrain DeiT3': lambda: mmpretrain_backbones.DeiT3(**MM),
    'mmpretrain DeiT': lambda: mmpretrain_backbones.DistilledVisionTransformer(**MM),
    'mmpretrain EVA-02': lambda: mmpretrain_backbones.ViTEVA02(**MM),
    'timm ViT': lambda: timm.models.VisionTransformer(**TIMM),
    'timm DeiT3': lambda: timm.models.VisionTransformer(
        no_embed_class=True, init_values=1.0, **TIMM
    ),
    'timm DeiT': lambda: VisionTransformerDistilled(**TIMM),
    'timm BEiT': lambda: Beit(
        use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1, **TIMM
    ),
    'timm EVA-02': eva02,
}
# What is one architecture, by another package or at another stage of training.
PLAIN = {'mmseg ViT', 'mmseg MAE', 'mmpretrain ViT', 'timm ViT'}
READ = {
    'mmseg BEiT': {'mmpretrain BEiT'},
    'mmpretrain BEiT': {'mmseg BEiT'},
    'timm BEiT': {'mmseg BEiT', 'mmpretrain BEiT'},
    'mmpretrain ViT': PLAIN,
    'timm ViT': PLAIN,
    'mmpretrain DeiT3': {'timm DeiT3'},
    'timm DeiT3': {'mmpretrain DeiT3'},
    'timm DeiT': {'mmpretrain DeiT'},
}


QUICK = ('mmpretrain ViT', 'timm BEiT', 'timm DeiT3', 'timm EVA-02')
GIVEN = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]


def refusal(model: nn.Module, path: Path) -> str | None:
    """Why a model does not take a file, None if it does."""
    try:
        load_base_weights(model, path)
    except WeightsError as error:
        return str(error)
    return None


@pytest.mark.parametrize('given', GIVEN)
def test_only_its_own_architecture_reads_a_file(tmp_path, given):
    path = tmp_path / 'weights.pth'
    torch.save(MODELS[given]().state_dict(), path)
    read = set()
    for name, build in MODELS.items():
        model = build()
        before = {k: t.clone() for k, t in model.state_dict().items()}
        line = refusal(model, path)
        if line is None:
            read.add(name)
        else:
            assert '\n' not in line
            assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert read == {given} | READ.get(given, set())
