"""The cases: how our models are built, and how the reference's names become ours."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from reference import Case, Rule
from torch import Tensor, nn

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


def by_rows(places: Tensor) -> Tensor:
    """Row and column of entries, (2, n), to their numbers in rows of 32."""
    return places[0] * 32 + places[1]


def above(square: Tensor) -> Tensor:
    """What is above the diagonal of ``(D - D^T) / 2``, row by row; D: (..., n, n)."""
    row, column = torch.triu_indices(*square.shape[-2:], 1)
    return ((square - square.mT) / 2)[..., row, column]


def above_twice(square: Tensor) -> Tensor:
    """The gradient of that by the gradient of D, which both halves of D share."""
    return 2 * above(square)


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
    kept: str = '',
) -> dict[str, Case]:
    """The same reference on mmpretrain's and on timm's ViT.

    Args:
        file: Stem of its files.
        method: Config of our method.
        rules: From the reference's names to timm's, where they are not so already.
        split: See :class:`Case`.
        kept: See :class:`Case`.
    """
    hosts = {
        'mmpretrain_vit': (mmpretrain_vit, TO_MMPRETRAIN_VIT),
        'timm_vit': (timm_vit, TO_TIMM_VIT),
    }
    return {
        f'{file}-{host}': Case(file, build, method, (rules, base), split, kept=kept)
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


def tuner(
    file: str,
    method: dict[str, Any],
    projections: str,
    *names: tuple[Any, ...],
    more: tuple[Rule, ...] = (),
    kept: str = '',
) -> dict[str, Case]:
    """A tuner of PEFT, whose model holds the base's layers and the base's own head.

    Args:
        file: Stem of its files.
        method: Config of our method.
        projections: Pattern of the layers that are tuned, ``attn.qkv|mlp.fc1``.
        names: The tuner's names at a layer, as patterns, and ours; the changes of
            :class:`Rule` may follow.
        more: Rules that go first.
        kept: See :class:`Case`.
    """
    rules = [
        *more,
        Rule(r'.+\.head\.original_module\..+', None),
        Rule(r'.+\.head\.modules_to_save\.default\.(.+)', r'head.\1'),
    ]
    for layer in projections.split('|'):
        site = layer.replace('mlp', 'ffn').replace('.', '_')
        at = rf'.+\.blocks\.(\d+)\.{re.escape(layer)}\.'
        rules += [
            Rule(at + theirs, rf'blocks.\1.petl.{site}.0.{ours}', None, *changes)
            for theirs, ours, *changes in names
        ]
    rules += [
        Rule(r'base_model\.model\.(.+)\.base_layer\.(.+)', r'\1.\2'),
        Rule(r'base_model\.model\.(.+)', r'\1'),
    ]
    return vits(file, method, *rules, kept=kept)


QKV_FC1 = ['attn.qkv', 'ffn.fc1']

ENCODER = r'transformer\.encoder\.layer\.(\d+)'
RESCALED = (('scale_col', 's_in'), ('scale_line', 's_out'), ('shift_bias', 't'))


def one_linear(c: Facts) -> nn.Module:
    """A model that no file describes, of one layer."""
    return Model(nn.Sequential(nn.Linear(c['in_features'], c['out_features'])))


def pefts(file: str, method: dict[str, Any], **names: str) -> dict[str, Case]:
    """A reference of PEFT at ``attn.qkv`` and ``ffn.fc1``, on both ViTs.

    Args:
        file: Stem of its files.
        method: Config of our method, but for its targets.
        names: What ours calls a parameter, by what the reference does.
    """
    sites = (('attn.qkv', 'attn_qkv'), ('mlp.fc1', 'ffn_fc1'))
    return vits(
        file,
        {**method, 'targets': ['attn.qkv', 'ffn.fc1']},
        Rule(r'.+\.head\.original_module\..+', None),
        Rule(r'.+\.head\.modules_to_save\.default\.(.+)', r'head.\1'),
        *(
            Rule(
                rf'.+\.blocks\.(\d+)\.{re.escape(theirs)}\.{name}\.default(\.weight)?',
                rf'blocks.\1.petl.{ours}.0.{own}',
            )
            for theirs, ours in sites
            for name, own in names.items()
        ),
        Rule(r'base_model\.model\.(.+)\.base_layer\.(.+)', r'\1.\2'),
        Rule(r'base_model\.model\.(.+)', r'\1'),
    )


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
    'glora-linear': Case(
        'glora',
        one_linear,
        {'type': 'GLoRA', 'rank': 3},
        (
            (
                Rule(r'(weight|bias)', r'backbone.0.\1'),
                Rule(r'([A-E][du]?)', r'backbone.0.petl.layer_linear.0.\1'),
            ),
        ),
    ),
    **pefts(
        'rslora',
        {'type': 'LoRA', 'rank': 4, 'alpha': 8, 'scaling': 'sqrt'},
        lora_A='A',
        lora_B='B',
    ),
    **pefts(
        'dora',
        {'type': 'DoRA', 'rank': 4, 'alpha': 8},
        lora_A='A',
        lora_B='B',
        lora_magnitude_vector='m',
    ),
    **vits(
        'rlrr',
        {'type': 'RLRR'},
        *(
            Rule(rf'{ENCODER}\.{theirs}\.{name}', rf'blocks.\1.petl.{site}.0.{own}')
            for theirs, site in (
                *((rf'attn\.{n}', f'attn_{n[0]}') for n in ('query', 'key', 'value')),
                (r'attn\.out', 'attn_proj'),
                (r'ffn\.fc1', 'ffn_fc1'),
                (r'ffn\.fc2', 'ffn_fc2'),
            )
            for name, own in RESCALED
        ),
        *(
            Rule(theirs.replace('SSF', rf'ssf_{name}'), f'{site}.0.{own}')
            for theirs, site in (
                (r'transformer\.embeddings\.SSF_patch', 'petl.embed_proj'),
                (rf'{ENCODER}\.SSF_attn_norm', r'blocks.\1.petl.norm1'),
                (rf'{ENCODER}\.SSF_ffn_norm', r'blocks.\1.petl.norm2'),
                (r'transformer\.encoder\.SSF_enc_norm', 'petl.out_norm_1'),
            )
            for name, own in (('scale', 'gamma'), ('shift', 'beta'))
        ),
        Rule(r'transformer\.embeddings\.position_embeddings', r'pos_embed'),
        Rule(r'transformer\.embeddings\.cls_token', r'cls_token'),
        Rule(
            r'transformer\.embeddings\.patch_embeddings\.(.+)', r'patch_embed.proj.\1'
        ),
        *three(
            rf'{ENCODER}\.attn\.QKV\.mlp\.(.+)',
            ('query', 'key', 'value'),
            r'blocks.\1.attn.qkv.\2',
        ),
        Rule(rf'{ENCODER}\.attn\.out\.mlp\.(.+)', r'blocks.\1.attn.proj.\2'),
        Rule(rf'{ENCODER}\.ffn\.(fc[12])\.mlp\.(.+)', r'blocks.\1.mlp.\2.\3'),
        Rule(rf'{ENCODER}\.attention_norm\.(.+)', r'blocks.\1.norm1.\2'),
        Rule(rf'{ENCODER}\.ffn_norm\.(.+)', r'blocks.\1.norm2.\2'),
        Rule(r'transformer\.encoder\.encoder_norm\.(.+)', r'norm.\1'),
    ),
    **vits(
        'adalora',
        {
            'type': 'AdaLoRA',
            'rank': 4,
            'target_rank': 2,
            'alpha': 8,
            'targets': ['attn.qkv', 'ffn.fc1'],
        },
        Rule(r'.+\.head\.original_module\..+|.+\.ranknum\.default', None),
        Rule(r'.+\.head\.modules_to_save\.default\.(.+)', r'head.\1'),
        Rule(
            r'.+\.blocks\.(\d+)\.(attn|mlp)\.qkv\.lora_([ABE])\.default',
            r'blocks.\1.petl.attn_qkv.0.\3',
        ),
        Rule(
            r'.+\.blocks\.(\d+)\.(attn|mlp)\.fc1\.lora_([ABE])\.default',
            r'blocks.\1.petl.ffn_fc1.0.\3',
        ),
        Rule(r'base_model\.model\.(.+)\.base_layer\.(.+)', r'\1.\2'),
        Rule(r'base_model\.model\.(.+)', r'\1'),
    ),
    **vits(
        'dyt',
        {'type': 'DyT', 'hidden_dims': 6},
        block_rule(r'adaptmlp\.(down|up)_proj\.(.+)', r'ffn_sum.0.\2.\3'),
        block_rule(r'mlp_token_select\.mlp_head\.(.+)', r'ffn_sum.0.select.\2'),
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
    **tuner(
        'oft',
        {'type': 'OFT', 'block_size': 8, 'targets': QKV_FC1},
        'attn.qkv|mlp.fc1',
        (r'oft_R\.default\.weight', 'change.upper'),
    ),
    **tuner(
        'boft',
        {'type': 'BOFT', 'block_size': 8, 'factors': 1, 'targets': QKV_FC1},
        'attn.qkv|mlp.fc1',
        (r'boft_R\.default', 'change.upper', above, above_twice),
        (r'boft_s\.default', 's'),
    ),
    **tuner(
        'hra',
        {'type': 'HRA', 'rank': 4, 'targets': QKV_FC1},
        'attn.qkv|mlp.fc1',
        (r'hra_u\.default', 'change.U'),
    ),
    **tuner(
        'fourierft',
        {'type': 'FourierFT', 'num_coefficients': 50, 'scale': 15, 'targets': QKV_FC1},
        'attn.qkv|mlp.fc1',
        (r'fourierft_spectrum\.default', 'c'),
        more=tuple(
            Rule(rf'.+\.blocks\.\d+\.{layer}', f'petl.shared.0.{at}', change=by_rows)
            for layer, at in ((r'attn\.qkv', 'at_96x32'), (r'mlp\.fc1', 'at_128x32'))
        ),
        kept='index',
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
    'video_swin_baseline-mmaction_swin3d': Case(
        'video_swin_baseline', mmaction_swin3d, {'type': 'Full'}, (TO_MMACTION_SWIN3D,)
    ),
}
"""Every case by its id: the file, and the backbone it is held against."""

LAYERS = {'bi_linear_1bit'}
"""Files of single layers, which the tests of their methods read."""
