"""The cases: how our models are built, and how the reference's names become ours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from reference import Case, Rule
from torch import Tensor, nn

from mmpetl.core import Context, Site
from mmpetl.methods.conv_adapter import ConvAdapter
from mmpetl.methods.rein import Rein
from mmpetl.methods.st_adapter import STAdapter

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
        norm_cfg={'type': 'LN', 'eps': c['layernorm_eps']},
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
    assert backbone.norm.eps == c['layernorm_eps']
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
    file: str, method: dict[str, Any], *rules: Rule, split: tuple[str, ...] = ()
) -> dict[str, Case]:
    """The same reference on mmpretrain's and on timm's ViT.

    Args:
        file: Stem of its files.
        method: Config of our method.
        rules: From the reference's names to timm's, where they are not so already.
        split: See :class:`Case`.
    """
    hosts = {
        'mmpretrain_vit': (mmpretrain_vit, TO_MMPRETRAIN_VIT),
        'timm_vit': (timm_vit, TO_TIMM_VIT),
    }
    return {
        f'{file}-{host}': Case(file, build, method, (rules, base), split)
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


class ReinLayers(nn.Module):
    """Rein behind three blocks that do nothing, and the queries for a decoder."""

    def __init__(self, c: Facts) -> None:
        super().__init__()
        dims = c['embed_dims']
        method = Rein(c['token_length'], rank=None, query_dims=c['query_dims'])
        sites = [
            Site('block', f'{i}', dims, dims, i, patch_dims=768)
            for i in range(c['num_layers'])
        ]
        self.shared = method.share(sites)
        self.layers = nn.ModuleList(method.build(site) for site in sites)

    def forward(self, x: Tensor) -> list[Tensor]:
        for delta in self.layers:
            delta.attach('0', self.shared)
            x = delta.after(x, x, Context((3, 3), 1))
        return [x, self.shared.link([delta.tokens() for delta in self.layers])]


class ClipBlock(nn.Module):
    """A block of CLIP with frames in the batch, and an ST-Adapter before each norm."""

    def __init__(self, c: Facts) -> None:
        super().__init__()
        dims, self.grid = c['dims'], (c['frames'], *c['grid'])
        self.ln_1, self.ln_2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.attn = nn.MultiheadAttention(dims, c['heads'], batch_first=True)
        self.c_fc, self.c_proj = nn.Linear(dims, 4 * dims), nn.Linear(4 * dims, dims)
        self.requires_grad_(False)
        method = STAdapter('both', c['adapter_width'], c['kernel'])
        self.before, self.behind = (
            method.build(Site(kind, 'b', dims, dims)) for kind in method.targets
        )

    def clips(self, delta: nn.Module, x: Tensor) -> Tensor:
        """An adapter on clips; class tokens pass."""
        front, frames = x[:, :1], x[:, 1:]
        volume = frames.unflatten(0, (-1, self.grid[0])).flatten(1, 2)
        volume = delta.added(volume, Context(self.grid))
        return torch.cat((front, volume.reshape(frames.shape)), dim=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.clips(self.before, x)
        h = self.ln_1(x)
        x = self.clips(self.behind, x + self.attn(h, h, h)[0])
        h = self.c_fc(self.ln_2(x))
        return [x + self.c_proj(h * torch.sigmoid(1.702 * h))]


class ConvAdapterMap(nn.Module):
    """What a Conv-Adapter adds to a map."""

    def __init__(self, c: Facts) -> None:
        super().__init__()
        method = ConvAdapter(c['inplanes'] // c['width'], c['kernel'])
        self.delta = method.build(Site('attn', 'b', c['inplanes'], c['outplanes']))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = x.flatten(2).transpose(1, 2)
        y = self.delta.after(h, torch.zeros_like(h), Context(tuple(x.shape[2:])))
        return [y.transpose(1, 2).reshape(x.shape)]


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
    'conv_adapter': Case(
        'conv_adapter',
        ConvAdapterMap,
        None,
        (
            (
                Rule(r'se', r'delta.gamma'),
                Rule(r'conv1\.(.+)', r'delta.conv.\1'),
                Rule(r'conv2\.(.+)', r'delta.point.\1'),
            ),
        ),
    ),
    'rein': Case(
        'rein',
        ReinLayers,
        None,
        (
            (
                Rule(r'learnable_tokens\.(\d)', r'layers.\1.T'),
                Rule(r'scale', r'shared.maps.16.scale'),
                Rule(r'mlp_token2feat\.(.+)', r'shared.maps.16.W1.\1'),
                Rule(r'mlp_delta_f\.(.+)', r'shared.maps.16.W2.\1'),
                Rule(r'transform\.(.+)', r'shared.link.transform.16.\1'),
                Rule(r'merge\.(.+)', r'shared.link.merge.\1'),
            ),
        ),
        split=('learnable_tokens',),
    ),
    'st_adapter': Case(
        'st_adapter',
        ClipBlock,
        None,
        (
            (
                Rule(r'block\.adapter_pre_attn\.(.+)', r'before.\1'),
                Rule(r'block\.adapter_pre_mlp\.(.+)', r'behind.\1'),
                Rule(r'block\.mlp\.(.+)', r'\1'),
                Rule(r'block\.(.+)', r'\1'),
            ),
        ),
    ),
    'video_swin_baseline-mmaction_swin3d': Case(
        'video_swin_baseline', mmaction_swin3d, {'type': 'Full'}, (TO_MMACTION_SWIN3D,)
    ),
}
"""Every case by its id: the file, and the backbone it is held against."""

VPT_NAMES = CASES['vpt_deep-timm_vit'].rules[0]
"""From the names of VPT's code, which others build on, to timm's."""

CASES |= {
    **vits(
        'vfpt',
        {'type': 'VFPT', 'num_tokens': 4, 'fraction': 1.0},
        *VPT_NAMES,
        split=('transformer.deep_prompt_embeddings',),
    ),
    **vits(
        'e2vpt',
        {'type': 'E2VPT', 'num_tokens': 4, 'num_kv_tokens': 3},
        Rule(
            r'transformer\.encoder\.layer\.(\d+)\.attn\.deep_QKV_embeddings',
            r'blocks.\1.petl.attn_core.0.Ek',
            change=lambda e: e.transpose(0, 1).flatten(1),
        ),
        *VPT_NAMES,
        split=('transformer.deep_prompt_embeddings',),
    ),
    **vits(
        'vapt',
        {'type': 'VAPT', 'num_tokens': 4, 'hidden_dims': 6, 'grid_size': (4, 4)},
        Rule(
            r'transformer\.deep_prompt_embeddings_mlp\.block\.0\.weight',
            r'petl.shared.0.down.weight',
        ),
        Rule(
            r'transformer\.deep_prompt_embeddings_mlp\.block\.2\.weight',
            r'petl.shared.0.up.weight',
        ),
        Rule(
            r'transformer\.deep_prompt_norm\.0\.(.+)',
            r'blocks.1.petl.tokens.0.norm.\1',
        ),
        Rule(
            r'transformer\.deep_prompt_downsample\.0\.conv\.(.+)',
            r'blocks.1.petl.tokens.0.\1',
        ),
        Rule(
            r'transformer\.deep_prompt_downsample\.0\.(linear.+)',
            r'blocks.1.petl.tokens.0.\1',
        ),
        *VPT_NAMES,
    ),
}
