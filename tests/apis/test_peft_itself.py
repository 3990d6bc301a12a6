"""Adapters go to peft and come from it with equal outputs; peft is the judge."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import mmpetl
from mmpetl.apis import load_peft, peft_types, save_peft

peft = pytest.importorskip('peft')

FUSED = ['attn.qkv', 'mlp.fc2']
CASES = {
    'lora': (
        'LoraConfig',
        {
            'r': 4,
            'lora_alpha': 6,
            'rank_pattern': {'blocks.1.attn.qkv': 2},
            'alpha_pattern': {'mlp.fc2': 3},
        },
    ),
    'rslora': ('LoraConfig', {'r': 4, 'lora_alpha': 6, 'use_rslora': True}),
    'biased': ('LoraConfig', {'r': 2, 'bias': 'all'}),
    'lora_only': ('LoraConfig', {'r': 2, 'bias': 'lora_only'}),
    'dora': ('LoraConfig', {'r': 4, 'use_dora': True, 'use_rslora': True}),
    'ia3': ('IA3Config', {'feedforward_modules': ['mlp.fc2']}),
    'oft': ('OFTConfig', {'oft_block_size': 4, 'use_cayley_neumann': False}),
    'oft_series': ('OFTConfig', {'r': 8, 'oft_block_size': 0, 'block_share': True}),
    'boft': ('BOFTConfig', {'boft_block_size': 4, 'boft_n_butterfly_factor': 1}),
    'vera': ('VeraConfig', {'r': 6}),
    'hra': ('HRAConfig', {'r': 4}),
    'hra_gs': ('HRAConfig', {'r': 3, 'apply_GS': True}),
    'loha': ('LoHaConfig', {'r': 3, 'alpha': 5}),
    'lokr': ('LoKrConfig', {'r': 3, 'alpha': 5, 'decompose_both': True}),
    'fourierft': (
        'FourierFTConfig',
        {'n_frequency': 40, 'n_frequency_pattern': {'mlp.fc2': 30}},
    ),
    'adalora': ('AdaLoraConfig', {'init_r': 4, 'target_r': 2, 'total_step': 10}),
}


def timm_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=3, img_size=32).eval()


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    size = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    size |= {'intermediate_size': 64, 'image_size': 32, 'patch_size': 16}
    config = ViTConfig(**size, num_labels=3)
    return ViTForImageClassification(config).eval()


MODELS = {'timm': (timm_vit, FUSED, ['head'])}
if find_spec('transformers'):
    kinds = ['q_proj', 'v_proj', 'mlp.fc2']
    MODELS['transformers'] = (hf_vit, kinds, ['classifier'])


def resnet() -> nn.Module:
    torch.manual_seed(0)
    # Or the branches of its blocks begin at zero, and what is in them does nothing.
    return timm.create_model('test_resnet', num_classes=3, zero_init_last=False).eval()


@pytest.mark.parametrize('more', [{}, {'use_rslora': True}, {'use_dora': True}])
@pytest.mark.filterwarnings('ignore')
def test_convolutions_go_there_and_back(more: dict, tmp_path: Path) -> None:
    """Of one place and of nine, with a stride and without."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={'layer3.0.conv2': 2},
        target_modules=[
            'conv1.3',
            'layer3.0.conv1',
            'layer3.0.conv2',
            'layer4.0.conv1',
        ],
        modules_to_save=['fc'],
        **more,
    )
    theirs = peft.get_peft_model(resnet(), config)
    shake(theirs)
    expected = out(theirs)
    assert (expected - out(resnet())).abs().max() > 1e-3
    theirs.save_pretrained(tmp_path / 'theirs')
    ours = load_peft(resnet(), tmp_path / 'theirs')
    close(out(ours), expected)
    save_peft(ours, tmp_path / 'ours')
    again = peft.PeftModel.from_pretrained(resnet(), tmp_path / 'ours')
    close(out(again), expected)


def shake(model: nn.Module) -> None:
    """Give everything that trains a value of its own, near where it starts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn_like(param))


def out(model: nn.Module) -> Tensor:
    """In double, so that what differs is not how float32 rounds."""
    torch.manual_seed(2)
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        y = model(torch.randn(2, 3, 32, 32, dtype=torch.double))
    return y if isinstance(y, Tensor) else y.logits


def close(a: Tensor, b: Tensor) -> None:
    scale = b.abs().max().item()
    assert (a - b).abs().max().item() <= 1e-6 * max(1.0, scale)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('trunk', MODELS)
@pytest.mark.filterwarnings('ignore')
def test_there_and_back(trunk: str, case: str, tmp_path: Path) -> None:
    build, targets, heads = MODELS[trunk]
    name, args = CASES[case]
    if trunk == 'transformers':
        swap = {'blocks.1.attn.qkv': 'layers.1.attention.q_proj'}
        args = copy.deepcopy(args)
        if 'rank_pattern' in args:
            args['rank_pattern'] = {swap[k]: v for k, v in args['rank_pattern'].items()}
    config = getattr(peft, name)(target_modules=targets, modules_to_save=heads, **args)
    theirs = peft.get_peft_model(build(), config)
    shake(theirs)
    expected = out(theirs)
    assert (expected - out(build())).abs().max() > 1e-3
    theirs.save_pretrained(tmp_path / 'theirs')

    ours = load_peft(build(), tmp_path / 'theirs')
    close(out(ours), expected)
    save_peft(ours, tmp_path / 'ours')
    again = peft.PeftModel.from_pretrained(build(), tmp_path / 'ours')
    close(out(again), expected)


def test_every_type_is_judged() -> None:
    kinds = {
        getattr(peft, name)(**args).peft_type.value for name, args in CASES.values()
    }
    assert kinds == set(peft_types())


@pytest.mark.parametrize('method', ['LoRA', 'IA3'])
def test_rows_of_a_fused_projection_are_one_linear(method: str, tmp_path: Path) -> None:
    ours = mmpetl.inject(timm_vit(), method)
    shake(ours)
    save_peft(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(timm_vit(), tmp_path)
    close(out(theirs), out(ours))
