"""The cases: how our models are built, and how the reference's names become ours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from reference import Case, Rule
from torch import Tensor, nn

from mmpetl.core import Site
from mmpetl.methods.kronecker import KAdaptation

Facts = dict[str, Any]


class Model(nn.Module):
    """A backbone and the head that the reference has."""

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.backbone(x)
        ys = list(y) if isinstance(y, list | tuple) else [y]
        return ys if self.head is None else [self.head(y) for y in ys]


def _mlp_dims(c: Facts) -> int:
    return c.get('mlp_dim', c['embed_dim'] * c.get('mlp_ratio', 4))


def _eps(c: Facts) -> float:
    """What norms add to the variance; timm's where the facts do not say."""
    return c.get('layernorm_eps', 1e-6)


def mmpretrain_vit(c: Facts) -> nn.Module:
    from mmpretrain.models import VisionTransformer

    backbone = VisionTransformer(
        arch={
            'embed_dims': c['embed_dim'],
            'num_layers': c['depth'],
            'num_heads': c['num_heads'],
            'feedforward_channels': _mlp_dims(c),
        },
        img_size=c['img_size'],
        patch_size=c['patch_size'],
        norm_cfg={'type': 'LN', 'eps': _eps(c)},
    )
    return Model(backbone, nn.Linear(c['embed_dim'], c['num_classes']))


def timm_vit(c: Facts) -> nn.Module:
    import timm

    backbone = timm.create_model(
        'vit_tiny_patch16_224',
        img_size=c['img_size'],
        patch_size=c['patch_size'],
        embed_dim=c['embed_dim'],
        depth=c['depth'],
        num_heads=c['num_heads'],
        mlp_ratio=_mlp_dims(c) / c['embed_dim'],
        num_classes=c['num_classes'],
    )
    assert backbone.norm.eps == _eps(c)
    return Model(backbone)


def mmpretrain_swin(c: Facts) -> nn.Module:
    from mmpretrain.models import SwinTransformer

    return Model(
        SwinTransformer(
            arch={
                'embed_dims': c['embed_dim'],
                'depths': c['depths'],
                'num_heads': c['num_heads'],
            },
            img_size=c['img_size'],
            patch_size=c['patch_size'],
            window_size=c['window_size'],
            drop_path_rate=c['drop_path_rate'],
            out_indices=c['out_indices'],
            norm_cfg={'type': 'LN', 'eps': c['layernorm_eps']},
            pad_small_map=True,
        )
    )


def dense_swin(c: Facts, cls: type[nn.Module]) -> nn.Module:
    """The class that mmdet and mmseg have each of their own."""
    return Model(
        cls(
            pretrain_img_size=c['img_size'],
            embed_dims=c['embed_dim'],
            patch_size=c['patch_size'],
            window_size=c['window_size'],
            depths=c['depths'],
            num_heads=c['num_heads'],
            strides=(c['patch_size'], *[2] * (len(c['depths']) - 1)),
            mlp_ratio=c['mlp_ratio'],
            drop_path_rate=c['drop_path_rate'],
            out_indices=c['out_indices'],
            norm_cfg={'type': 'LN', 'eps': c['layernorm_eps']},
        )
    )


def mmdet_swin(c: Facts) -> nn.Module:
    from mmdet.models.backbones import SwinTransformer

    return dense_swin(c, SwinTransformer)


def mmseg_swin(c: Facts) -> nn.Module:
    from mmseg.models.backbones import SwinTransformer

    return dense_swin(c, SwinTransformer)


class VideoHead(nn.Module):
    """Average over two frames and the map, a 1x1x1 convolution, mean over time."""

    def __init__(self, dims: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Conv3d(dims, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
        return self.fc(x).mean((2, 3, 4))


def mmaction_swin3d(c: Facts) -> nn.Module:
    from mmaction.models import SwinTransformer3D

    last = len(c['depths']) - 1
    backbone = SwinTransformer3D(
        arch={
            'embed_dims': c['embed_dim'],
            'depths': c['depths'],
            'num_heads': c['num_heads'],
        },
        pretrained2d=False,
        patch_size=tuple(c['patch_size']),
        window_size=tuple(c['window_size']),
        drop_path_rate=c['drop_path_rate'],
        out_indices=(last,),
    )
    return Model(backbone, VideoHead(c['embed_dim'] * 2**last, c['num_classes']))


def neighbours_inside(x: Tensor) -> Tensor:
    """4 C merged channels: from neighbour-major (down, then right) to channel-major."""
    near = x.unflatten(-1, (4, -1))
    return near[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


# From the names of timm's ViT, with deltas below `petl` as in our own state.
TO_MMPRETRAIN_VIT = (
    Rule(r'(cls_token|pos_embed|petl\..+)', r'backbone.\1'),
    Rule(r'patch_embed\.proj\.(.+)', r'backbone.patch_embed.projection.\1'),
    Rule(r'blocks\.(\d+)\.norm([12])\.(.+)', r'backbone.layers.\1.ln\2.\3'),
    Rule(r'blocks\.(\d+)\.mlp\.fc1\.(.+)', r'backbone.layers.\1.ffn.layers.0.0.\2'),
    Rule(r'blocks\.(\d+)\.mlp\.fc2\.(.+)', r'backbone.layers.\1.ffn.layers.1.\2'),
    Rule(r'blocks\.(\d+)\.(.+)', r'backbone.layers.\1.\2'),
    Rule(r'norm\.(.+)', r'backbone.ln1.\1'),
)
TO_TIMM_VIT = (Rule(r'(.+)', r'backbone.\1'),)

BLOCK = r'layers\.(\d+)\.blocks\.(\d+)'
OURS = r'backbone.stages.\1.blocks.\2'
TO_MM_SWIN = (
    Rule(r'patch_embed\.proj\.(.+)', r'backbone.patch_embed.projection.\1'),
    Rule(
        r'layers\.(\d+)\.downsample\.(.+)',
        r'backbone.stages.\1.downsample.\2',
        change=neighbours_inside,
    ),
    Rule(rf'{BLOCK}\.attn\.(.+)', rf'{OURS}.attn.w_msa.\3'),
    Rule(rf'{BLOCK}\.mlp\.fc1\.(.+)', rf'{OURS}.ffn.layers.0.0.\3'),
    Rule(rf'{BLOCK}\.mlp\.fc2\.(.+)', rf'{OURS}.ffn.layers.1.\3'),
    Rule(rf'{BLOCK}\.(.+)', rf'{OURS}.\3'),
    Rule(r'(.+)', r'backbone.\1'),
)
TO_MMACTION_SWIN3D = (
    Rule(r'fc\.0\.(.+)', r'head.fc.\1'),
    Rule(r'norm\.(.+)', r'backbone.norm1.\1'),
    Rule(r'(.+)', r'backbone.\1'),
)


def three(pattern: str, names: tuple[str, str, str], target: str) -> tuple[Rule, ...]:
    """Rules that stack three separate projections into one."""
    return tuple(
        Rule(pattern.replace('QKV', name), target, part=(i, 3))
        for i, name in enumerate(names)
    )


def vits(
    file: str,
    method: dict[str, Any],
    *rules: Rule,
    split: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Case]:
    """The same reference on mmpretrain's and on timm's ViT.

    Args:
        file: Stem of its files.
        method: Config of our method.
        rules: From the reference's names to timm's, where they are not so already.
        split: See :class:`Case`.
        more: Its other arguments.
    """
    hosts = {
        'mmpretrain_vit': (mmpretrain_vit, TO_MMPRETRAIN_VIT),
        'timm_vit': (timm_vit, TO_TIMM_VIT),
    }
    return {
        f'{file}-{host}': Case(file, build, method, (rules, base), split, **more)
        for host, (build, base) in hosts.items()
    }


def swins(
    file: str, method: dict[str, Any], *rules: Rule, halves: str = ''
) -> dict[str, Case]:
    """The same reference on the Swins of three packages, which share their names.

    Args:
        file: Stem of its files.
        method: Config of our method.
        rules: From the reference's names to ours, where those of the base do not do it.
        halves: See :class:`Case`.
    """
    hosts = (mmpretrain_swin, mmdet_swin, mmseg_swin)
    passes = ((*rules, *TO_MM_SWIN),)
    return {
        f'{file}-{build.__name__}': Case(file, build, method, passes, halves=halves)
        for build in hosts
    }


def block_rule(theirs: str, ours: str) -> Rule:
    """``blocks.3.<theirs>`` is ``blocks.3.petl.<ours>``."""
    return Rule(rf'blocks\.(\d+)\.{theirs}', rf'blocks.\1.petl.{ours}')


def adapter_plus(file: str, position: str, site: str) -> dict[str, Case]:
    """A position of Adapter+."""
    method = {'type': 'AdapterPlus', 'position': position, 'hidden_dims': 6}
    return vits(
        file,
        method,
        block_rule(r'adapter\.scaling', rf'{site}.0.gamma'),
        block_rule(r'adapter\.bottleneck\.1\.(.+)', rf'{site}.0.down.\2'),
        block_rule(r'adapter\.bottleneck\.4\.(.+)', rf'{site}.0.up.\2'),
    )


# ARC's code and its relatives: a ViT with queries, keys and values of their own.
LAYER = r'transformer\.layer\.(\d+)'
SEPARATE_VIT = (
    Rule(r'embedding\.position_embedding', r'pos_embed'),
    Rule(r'embedding\.cls', r'cls_token'),
    Rule(r'embedding\.projective\.(.+)', r'patch_embed.proj.\1'),
    *three(
        rf'{LAYER}\.attention\.QKV\.(.+)',
        ('query', 'key', 'value'),
        r'blocks.\1.attn.qkv.\2',
    ),
    Rule(rf'{LAYER}\.attention\.projective\.(.+)', r'blocks.\1.attn.proj.\2'),
    Rule(rf'{LAYER}\.att_layer_norm\.(.+)', r'blocks.\1.norm1.\2'),
    Rule(rf'{LAYER}\.fnn_layer_norm\.(.+)', r'blocks.\1.norm2.\2'),
    Rule(rf'{LAYER}\.mlp\.(.+)', r'blocks.\1.mlp.\2'),
    Rule(r'transformer\.layer_norm\.(.+)', r'norm.\1'),
    Rule(r'head_mlp\.head\.(.+)', r'head.\1'),
)

# A trained copy stands in for the head; what peft wraps is its `base_layer`.
PEFT = (
    Rule(r'.+\.head\.original_module\..+', None),
    Rule(r'.+\.head\.modules_to_save\.default\.(.+)', r'head.\1'),
    Rule(r'base_model\.model\.(.+)\.base_layer\.(.+)', r'\1.\2'),
    Rule(r'base_model\.model\.(.+)', r'\1'),
)


def peft_rule(module: str, theirs: str, ours: str) -> Rule:
    """``<theirs>`` of a module of each block is ``blocks.3.petl.<ours>``."""
    return Rule(
        rf'.+\.blocks\.(\d+)\.{module}\.{theirs}\.default', rf'blocks.\1.petl.{ours}'
    )


def one_linear(c: Facts) -> nn.Module:
    return Model(nn.Sequential(nn.Linear(c['in_features'], c['out_features'])))


class QueriesAndValues(nn.Module):
    """What KAdaptation adds to queries and values, with one pair of own factors."""

    def __init__(self, c: Facts) -> None:
        super().__init__()
        method = KAdaptation(c['factors'], c['rank'], c['scale'])
        kinds = 'attn.q', 'attn.v'
        sites = [Site(kind, 'attn', c['dims'], c['dims']) for kind in kinds]
        self.shared = method.share(sites)
        self.q, self.v = (method.build(site) for site in sites)
        self.v.u, self.v.v = self.q.u, self.q.v  # as released

    def forward(self, x: Tensor) -> list[Tensor]:
        for delta in (self.q, self.v):
            delta.attach('0', self.shared)
        return [d.after(x, torch.zeros_like(x), None) for d in (self.q, self.v)]


def upper_left_corners(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """VeRA's pair for each shape, out of the one for all projections."""
    a, b = theirs['vera_A'], theirs['vera_B']
    found = {}
    for rows in (96, 128):
        pair = f'backbone.petl.shared.0.32_to_{rows}'
        found |= {f'{pair}.A': a[:, :32], f'{pair}.B': b[:rows]}
    return found


CASES: dict[str, Case] = {
    **vits('vit_baseline', {'type': 'Full'}),
    **vits(
        'adapter_houlsby',
        {
            'type': 'Adapter',
            'style': 'houlsby',
            'hidden_dims': 8,
            'scale': 0.1,
            'activation': 'relu',
        },
        block_rule(r'ft_(attn)_module\.(down|up)_proj\.(.+)', r'attn.0.\3.\4'),
        block_rule(r'ft_(mlp)_module\.(down|up)_proj\.(.+)', r'ffn.0.\3.\4'),
    ),
    **vits(
        'adaptformer',
        {'type': 'AdaptFormer', 'hidden_dims': 8, 'scale': 0.1},
        *three(
            r'blocks\.(\d+)\.attn\.QKV_proj\.(.+)',
            ('q', 'k', 'v'),
            r'blocks.\1.attn.qkv.\2',
        ),
        Rule(r'blocks\.(\d+)\.(fc[12]\..+)', r'blocks.\1.mlp.\2'),
        block_rule(r'adaptmlp\.(down|up)_proj\.(.+)', r'ffn_sum.0.\2.\3'),
    ),
    **vits(
        'lora_peft',
        {'type': 'LoRA', 'rank': 4, 'alpha': 8, 'targets': ['attn.qkv', 'ffn.fc1']},
        Rule(r'.+\.head\.original_module\..+', None),
        Rule(r'.+\.head\.modules_to_save\.default\.(.+)', r'head.\1'),
        Rule(
            r'.+\.blocks\.(\d+)\.attn\.qkv\.lora_([AB])\.default\.weight',
            r'blocks.\1.petl.attn_qkv.0.\2',
        ),
        Rule(
            r'.+\.blocks\.(\d+)\.mlp\.fc1\.lora_([AB])\.default\.weight',
            r'blocks.\1.petl.ffn_fc1.0.\2',
        ),
        Rule(r'base_model\.model\.(.+)\.base_layer\.(.+)', r'\1.\2'),
        Rule(r'base_model\.model\.(.+)', r'\1'),
    ),
    **vits(
        'vpt_deep',
        {'type': 'VPTDeep', 'num_tokens': 3},
        Rule(r'transformer\.prompt_embeddings', r'blocks.0.petl.tokens.0.E'),
        Rule(r'transformer\.deep_prompt_embeddings\.0', r'blocks.1.petl.tokens.0.E'),
        Rule(r'transformer\.deep_prompt_embeddings\.1', r'blocks.2.petl.tokens.0.E'),
        Rule(r'transformer\.embeddings\.position_embeddings', r'pos_embed'),
        Rule(r'transformer\.embeddings\.cls_token', r'cls_token'),
        Rule(
            r'transformer\.embeddings\.patch_embeddings\.(.+)', r'patch_embed.proj.\1'
        ),
        *three(
            r'transformer\.encoder\.layer\.(\d+)\.attn\.QKV\.(.+)',
            ('query', 'key', 'value'),
            r'blocks.\1.attn.qkv.\2',
        ),
        Rule(
            r'transformer\.encoder\.layer\.(\d+)\.attn\.out\.(.+)',
            r'blocks.\1.attn.proj.\2',
        ),
        Rule(
            r'transformer\.encoder\.layer\.(\d+)\.attention_norm\.(.+)',
            r'blocks.\1.norm1.\2',
        ),
        Rule(
            r'transformer\.encoder\.layer\.(\d+)\.ffn_norm\.(.+)',
            r'blocks.\1.norm2.\2',
        ),
        Rule(r'transformer\.encoder\.layer\.(\d+)\.ffn\.(.+)', r'blocks.\1.mlp.\2'),
        Rule(r'transformer\.encoder\.encoder_norm\.(.+)', r'norm.\1'),
        split=('transformer.deep_prompt_embeddings',),
    ),
    **vits(
        'fact_tt',
        {'type': 'FacTTT', 'rank': 4, 'scale': 0.5},
        Rule(r'FacT([uv])\.weight', r'petl.shared.0.stage0.\1'),
        block_rule(r'attn\.(q|k|v|proj)_FacTs\.weight', r'attn_\2.0.core'),
        block_rule(r'mlp\.(fc[12])_FacTs\.weight', r'ffn_\2.0.core'),
    ),
    **vits(
        'repadapter_attn',
        {
            'type': 'RepAdapter',
            'style': 'attn',
            'hidden_dims': 8,
            'groups': 2,
            'scale': 0.5,
        },
        block_rule(r'adapter_attn\.conv_A\.(.+)', r'attn_qkv.0.down.\2'),
        block_rule(r'adapter_attn\.conv_B\.(.+)', r'attn_qkv.0.up.\2'),
    ),
    **vits(
        'dtl',
        {'type': 'DTL', 'rank': 2, 'add_after': [2, 3], 'beta': 100.0},
        Rule(r'lora_dict\.(\d+)\.lora_([AB])', r'blocks.\1.petl.block.0.\2'),
    ),
    **swins('swin_baseline_ms', {'type': 'Full'}),
    **swins('bitfit_swin', {'type': 'BitFit'}),
    **swins('partial1_swin', {'type': 'PartialK', 'include_final_norm': False}),
    **swins(
        'lora_swin',
        {'type': 'LoRA', 'rank': 4, 'alpha': 1, 'targets': ['attn.q', 'attn.v']},
        *(
            Rule(
                rf'{BLOCK}\.attn\.qkv\.lora_([AB])\.{i}',
                rf'{OURS}.petl.attn_{part}.0.\3',
            )
            for i, part in enumerate('qv')
        ),
        halves=r'.+\.lora_[AB]',
    ),
    **swins(
        'mona',
        {'type': 'Mona'},
        *(
            Rule(
                rf'{BLOCK}\.my_module_{i}\.{theirs}',
                rf'{OURS}.petl.{site}.0.{ours}',
            )
            for i, site in ((1, 'attn_sum'), (2, 'ffn_sum'))
            for theirs, ours in (
                (r'gamma', 'gamma'),
                (r'gammax', 'gamma_x'),
                (r'norm\.(.+)', r'norm.\3'),
                (r'project1\.(.+)', r'down.\3'),
                (r'project2\.(.+)', r'up.\3'),
                (r'adapter_conv\.conv1\.(.+)', r'conv.dw3.\3'),
                (r'adapter_conv\.conv2\.(.+)', r'conv.dw5.\3'),
                (r'adapter_conv\.conv3\.(.+)', r'conv.dw7.\3'),
                (r'adapter_conv\.projector\.(.+)', r'conv.mix.\3'),
            )
        ),
    ),
    **vits(
        'vera',
        {'type': 'VeRA', 'rank': 6, 'targets': ['attn.qkv', 'ffn.fc1']},
        peft_rule(r'attn\.qkv', r'vera_(lambda_[bd])', r'attn_qkv.0.\2'),
        peft_rule(r'mlp\.fc1', r'vera_(lambda_[bd])', r'ffn_fc1.0.\2'),
        *PEFT,
        buffers=upper_left_corners,
    ),
    **vits(
        'ia3',
        {'type': 'IA3', 'targets': ['attn.qkv', 'ffn.fc2']},
        peft_rule(r'attn\.qkv', r'ia3_l', r'attn_qkv.0.scale'),
        peft_rule(r'mlp\.fc2', r'ia3_l', r'ffn_fc2.0.scale'),
        *PEFT,
    ),
    **vits(
        'arc',
        {'type': 'ARC', 'rank': 6},
        *(
            rule
            for theirs, ours in (('att', 'attn_qkv'), ('mlp', 'ffn_fc1'))
            for rule in (
                Rule(
                    rf'transformer\.{theirs}_down_projection',
                    f'petl.shared.0.{ours}_stage0_32',
                ),
                Rule(
                    rf'{LAYER}\.{theirs}_adapter\.adapter_rescale',
                    rf'blocks.\1.petl.{ours}.0.c',
                ),
                Rule(
                    rf'{LAYER}\.{theirs}_adapter\.adapter_bias',
                    rf'blocks.\1.petl.{ours}.0.t',
                ),
            )
        ),
        *SEPARATE_VIT,
    ),
    **adapter_plus('adapter_plus', 'post', 'block'),
    **adapter_plus('adapter_plus_pre', 'pre', 'attn_sum'),
    **vits(
        'lokr',
        {
            'type': 'LoKr',
            'rank': 4,
            'alpha': 8,
            'factor': 4,
            'targets': ['attn.qkv', 'ffn.fc1'],
        },
        *(
            peft_rule(module, f'lokr_{theirs}', f'{site}.0.{ours}')
            for module, site in ((r'attn\.qkv', 'attn_qkv'), (r'mlp\.fc1', 'ffn_fc1'))
            for theirs, ours in (
                ('w1', 'W1.whole'),
                ('w2_a', 'W2.A'),
                ('w2_b', 'W2.B'),
            )
        ),
        *PEFT,
    ),
    **vits(
        'loha',
        {
            'type': 'LoHa',
            'rank': 4,
            'alpha': 8,
            'targets': ['attn.qkv', 'ffn.fc1'],
        },
        *(
            peft_rule(module, rf'hada_w(\d)_{theirs}', rf'{site}.0.{ours}\2')
            for module, site in ((r'attn\.qkv', 'attn_qkv'), (r'mlp\.fc1', 'ffn_fc1'))
            for theirs, ours in (('a', 'B'), ('b', 'A'))
        ),
        *PEFT,
    ),
    'kadaptation': Case(
        'kadaptation',
        QueriesAndValues,
        None,
        (
            (
                Rule(r'phm_rule1_left', 'shared.rules.attn_q.a'),
                Rule(r'phm_rule1_right', 'shared.rules.attn_q.b'),
                Rule(r'phm_rule2_left', 'shared.rules.attn_v.a'),
                Rule(r'phm_rule2_right', 'shared.rules.attn_v.b'),
                Rule(r'q_proj_adapter1_left', 'q.u'),
                Rule(r'q_proj_adapter1_right', 'q.v'),
                Rule(r'v_proj_adapter1_.+', None),
                Rule(r'b', 'shared.beta.attn_16'),
            ),
        ),
    ),
    'consolidator': Case(
        'consolidator',
        one_linear,
        {'type': 'Consolidator', 'groups': [4]},
        (
            (
                Rule(r'(?:fc_origin\.)?(weight|bias)', r'backbone.0.\1'),
                Rule(
                    r'fc_rep_branches\.0\.group_fc\.(.+)',
                    r'backbone.0.petl.layer_linear.0.branches.0.\1',
                ),
            ),
        ),
    ),
    'video_swin_baseline-mmaction_swin3d': Case(
        'video_swin_baseline', mmaction_swin3d, {'type': 'Full'}, (TO_MMACTION_SWIN3D,)
    ),
}
"""Every case by its id: the file, and the backbone it is held against."""
