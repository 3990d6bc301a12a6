"""What is said where a model is no backbone that a file describes."""

from __future__ import annotations

import pytest
from tiny import Nothing, base
from torch import nn

from mmpetl.core import Method, PETLError, inject
from mmpetl.methods.lora import LoRA


def message(model: nn.Module, method: Method | str | None = None) -> str:
    with pytest.raises(PETLError) as error:
        inject(model, method or LoRA(rank=2))
    text = str(error.value)
    assert '\n' not in text
    return text


def test_a_model_with_a_backbone_inside_says_where() -> None:
    from mmpretrain.models import ImageClassifier

    scoped = {'type': 'mmpretrain.ClsDataPreprocessor'}  # whatever scope is the default
    model = ImageClassifier(base('mmpretrain_vit'), data_preprocessor=scoped)
    assert message(model) == (
        'mmpretrain.ImageClassifier is no backbone, but holds one: inject into '
        'model.backbone (mmpretrain.VisionTransformer)'
    )
    inject(model.backbone, Nothing())
    assert 'inject into model.backbone' in message(model)


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_wrapped_model_says_to_inject_before() -> None:
    text = message(Wrapper(base('timm_vit')))
    assert 'wraps a model; inject before it is wrapped, or into model.module' in text


def test_a_compiled_model_says_so_too() -> None:
    import torch

    compiled = torch.compile(base('timm_vit'), backend='eager')
    assert 'or into model._orig_mod' in message(compiled)


def test_a_class_that_shares_its_name_with_a_described_one_is_told_from_it() -> None:
    import mmpretrain.models  # noqa: F401  (its SwinTransformer is described)

    class SwinTransformer(nn.Sequential):
        pass

    text = message(SwinTransformer(nn.Linear(4, 4)), 'AdaptFormer')
    assert 'no site map describes test_where_to_inject.SwinTransformer' in text
    assert 'On any model: ' in text


def test_a_subclass_of_a_described_class_is_refused() -> None:
    plain = type(base('timm_vit'))
    model = base('timm_vit')
    model.__class__ = type('Other', (plain,), {'__module__': 'somewhere'})
    assert 'is a subclass of timm.VisionTransformer' in message(model)


def test_layer_decay_of_mmaction_works_on_an_injected_videomae() -> None:
    from mmaction.engine.optimizers import LearningRateDecayOptimizerConstructor

    model = nn.Module()
    model.backbone = inject(base('mmaction_vit'), LoRA(rank=2))
    cfg = {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-3}}
    decay = {'num_layers': 2, 'decay_rate': 0.5, 'decay_type': 'layer_wise'}
    wrapper = LearningRateDecayOptimizerConstructor(cfg, decay)(model)
    rates = {
        id(p): g['lr'] for g in wrapper.optimizer.param_groups for p in g['params']
    }
    first = model.backbone.blocks[0].petl.attn_v['0'].A
    last = model.backbone.blocks[1].petl.attn_v['0'].A
    assert rates[id(last)] == pytest.approx(2 * rates[id(first)])
