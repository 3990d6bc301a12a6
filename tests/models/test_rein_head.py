"""Mask2Former reads its queries from the tokens of Rein."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData

from mmpetl.config.upstream import upstream_config
from mmpetl.core import PETLError
from mmpetl.methods.rein import queries
from mmpetl.registry import MODELS

UPSTREAM = 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
DIMS = 32


def config(**method) -> Config:
    """Upstream's model on a tiny Swin, with few channels and one layer of each kind."""
    model = Config.fromfile(upstream_config(UPSTREAM)).model
    head = model.decode_head
    head.update(
        in_channels=[16, 32],
        strides=[4, 8],
        feat_channels=DIMS,
        out_channels=DIMS,
        num_classes=3,
        num_queries=5,
        num_transformer_feat_level=1,
        type='mmpetl.ReinHead',
    )
    head.loss_cls.class_weight = [1.0] * 3 + [0.1]
    head.positional_encoding.num_feats = DIMS // 2
    head.pixel_decoder.positional_encoding.num_feats = DIMS // 2
    head.pixel_decoder.num_outs = 1
    head.pixel_decoder.norm_cfg.num_groups = 4
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers = decoder.num_layers = 1
    encoder.layer_cfg.self_attn_cfg.update(embed_dims=DIMS, num_levels=1)
    for part in (decoder.layer_cfg.self_attn_cfg, decoder.layer_cfg.cross_attn_cfg):
        part.embed_dims = DIMS
    for part in (encoder.layer_cfg.ffn_cfg, decoder.layer_cfg.ffn_cfg):
        part.update(embed_dims=DIMS, feedforward_channels=DIMS)
    head.train_cfg.num_points = 16
    method = {'type': 'Rein', 'num_tokens': 5, 'rank': 2, 'query_dims': DIMS, **method}
    model.backbone = dict(
        type='mmpetl.PETLBackbone',
        backbone=dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=16, depths=(1, 1), num_heads=(2, 4)),
            img_size=32,
            window_size=4,
            out_indices=(0, 1),
            pad_small_map=True,
        ),
        method=method,
    )
    model.type = 'mmpetl.ReinSegmentor'
    model.data_preprocessor = None
    return model


def build(**method) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config(**method))
        model.init_weights()
    return model


def batch() -> tuple[torch.Tensor, list]:
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={'img_shape': (32, 32), 'ori_shape': (32, 32)})
    sample.gt_sem_seg = PixelData(data=torch.arange(1024).view(1, 32, 32) % 3)
    return tiny.images('mmpretrain_swin', 1), [sample]


def test_the_loss_reaches_the_link_and_every_token():
    model = build()
    x, samples = batch()
    losses = model.loss(x, samples)
    sum(loss for loss in losses.values()).backward()
    grads = {n: p.grad for n, p in model.backbone.named_parameters() if 'petl' in n}
    assert any('link' in name for name in grads)
    assert all(grad is not None for grad in grads.values())
    head = dict(model.decode_head.named_parameters())
    own = {name for name in head if name.startswith('query')}
    assert own == {'query_feat.map.weight', 'query_feat.map.bias'}
    assert all(head[name].grad.abs().max() > 0 for name in own)


@torch.no_grad()
def test_the_link_is_the_position_and_its_map_the_feature():
    """As in the authors' head, where ``querys2feat`` makes the features."""
    model = build()
    head, given = model.decode_head, queries(model.backbone)
    assert torch.equal(head.query_embed.weight, given)
    mapped = given @ head.query_feat.map.weight.T + head.query_feat.map.bias
    torch.testing.assert_close(head.query_feat.weight, mapped)


@torch.no_grad()
def test_features_may_be_learned_ones():
    config_ = config()
    config_.decode_head.replace_query_feat = False
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config_)
    head = model.decode_head
    assert isinstance(head.query_feat, torch.nn.Embedding)
    assert torch.equal(head.query_embed.weight, queries(model.backbone))


@torch.no_grad()
def test_a_copy_of_the_model_reads_its_own_backbone():
    model = build()
    twin = copy.deepcopy(model)
    for param in twin.backbone.petl.shared['0'].link.parameters():
        param.add_(1)
    for segmentor in (model, twin):
        got = segmentor.decode_head.query_embed.weight
        assert torch.equal(got, queries(segmentor.backbone))
    assert not torch.equal(queries(model.backbone), queries(twin.backbone))


@torch.no_grad()
def test_what_does_not_fit_is_refused_in_one_line():
    x, samples = batch()
    for method, said in (
        ({'num_tokens': 6}, 'has 5 queries of 32 channels, Rein gives 6 of 32'),
        ({'query_dims': None}, 'queries come from a Rein with query_dims'),
    ):
        with pytest.raises(PETLError, match=said) as error:
            build(**method).loss(x, samples)
        assert '\n' not in str(error.value)
    other = config()
    other.decode_head.type = 'Mask2FormerHead'
    with DefaultScope.overwrite_default_scope('mmseg'):
        with pytest.raises(PETLError, match=r'links a decode_head of type'):
            MODELS.build(other)
        alone = MODELS.build(config().decode_head)
    with pytest.raises(PETLError, match='does not know its backbone'):
        _ = alone.query_embed.weight
