"""The cases: how our models are built, and how the reference's names become ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from ladder import PostNormTrunk, plug_by_hand
from reference import Case, Rule
from torch import Tensor, nn

from mmpetl.core import Context, Site
from mmpetl.methods.conv_adapter import ConvAdapter
from mmpetl.methods.kronecker import KAdaptation
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
        dims, self.frames, self.grid = c['dims'], c['frames'], c['grid']
        self.ln_1, self.ln_2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.attn = nn.MultiheadAttention(dims, c['heads'], batch_first=True)
        self.c_fc, self.c_proj = nn.Linear(dims, 4 * dims), nn.Linear(4 * dims, dims)
        self.requires_grad_(False)
        method = STAdapter('both', c['adapter_width'], c['kernel'])
        self.before, self.behind = (
            method.build(Site(kind, 'b', dims, dims)) for kind in method.targets
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        ctx = Context(tuple(self.grid), 1, self.frames)
        x = self.before.added(x, ctx)
        h = self.ln_1(x)
        x = self.behind.added(x + self.attn(h, h, h)[0], ctx)
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
        return [d.after(x, torch.zeros_like(x), Context(())) for d in (self.q, self.v)]


def upper_left_corners(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """VeRA's pair for each shape, out of the one for all projections."""
    a, b = theirs['vera_A'], theirs['vera_B']
    found = {}
    for rows in (96, 128):
        pair = f'backbone.petl.shared.0.32_to_{rows}'
        found |= {f'{pair}.A': a[:, :32], f'{pair}.B': b[:rows]}
    return found


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
}
"""Every case by its id: the file, and the backbone it is held against."""

LAYERS = {'bi_linear_1bit'}
"""Files of single layers, which the tests of their methods read."""


def timm_vit_and_head(c: Facts) -> nn.Module:
    """HST gives a feature of its own width to a head outside of the backbone."""
    model = timm_vit(c | {'layernorm_eps': 1e-6})  # theirs is a sentence
    model.backbone.reset_classifier(0)
    model.head = nn.Linear(c['m_embed_dims'][-1], c['num_classes'])
    return model


def timm_swin(c: Facts) -> nn.Module:
    import timm

    return Model(
        timm.create_model(
            'swin_tiny_patch4_window7_224',
            img_size=c['img_size'],
            patch_size=c['patch_size'],
            embed_dim=c['embed_dim'],
            depths=c['depths'],
            num_heads=c['num_heads'],
            window_size=c['window_size'],
            num_classes=c['num_classes'],
            drop_path_rate=0.0,
        )
    )


TO_TIMM_SWIN = (
    # A merging belongs to the stage behind it.
    *(
        Rule(
            rf'layers\.{i}\.downsample\.(.+)', rf'backbone.layers.{i + 1}.downsample.\1'
        )
        for i in range(3)
    ),
    Rule(r'head\.(.+)', r'backbone.head.fc.\1'),
    Rule(r'(.+)', r'backbone.\1'),
)


def on_timm_swin(
    file: str, method: dict[str, Any], *rules: Rule, split: tuple[str, ...] = ()
) -> dict[str, Case]:
    """A reference on timm's Swin, by rules from its names to timm's."""
    passes = (rules, TO_TIMM_SWIN)
    return {f'{file}-timm_swin': Case(file, timm_swin, method, passes, split)}


def cut(rows: int, columns: int | None = None) -> Callable[[Tensor], Tensor]:
    """What of a supernet's matrix a subnet reads."""
    return lambda x: x[:rows] if columns is None else x[:rows, :columns]


def stages_of_hst() -> tuple[Rule, ...]:
    """Blocks of the trunk by stage: two, then one each."""
    inside = (
        (r'norm([12])\.(.+)', r'norm\1.\2', None),
        (r'attn\.q\.(.+)', r'q.\1', None),
        (r'attn\.k\.(.+)', r'kv.\1', (0, 2)),
        (r'attn\.v\.(.+)', r'kv.\1', (1, 2)),
        (r'attn\.proj\.(.+)', r'out.\1', None),
        (r'mlp\.(fc[12]\..+)', r'\1', None),
    )
    places = [(1, 0), (1, 1), (2, 0), (3, 0), (4, 0)]
    shared = r'backbone.petl.shared.0.'
    return (
        *(
            Rule(
                rf'm_block{stage}\.{place}\.{theirs}',
                rf'backbone.blocks.{i}.petl.tokens.0.block.{ours}',
                part=part,
            )
            for i, (stage, place) in enumerate(places)
            for theirs, ours, part in inside
        ),
        *(
            Rule(
                rf'm_proj_norm{i + 1}\.(.+)',
                rf'backbone.blocks.{i}.petl.tokens.0.block.meta_norm.\1',
            )
            for i in range(5)
        ),
        Rule(r'm_embeddings\.(\d)', r'backbone.blocks.\1.petl.tokens.0.meta'),
        *(
            rule
            for s in range(4)
            for rule in (
                Rule(rf'm_norm{s + 1}\.(.+)', rf'{shared}norms.{s}.\1'),
                Rule(rf'T_Bridge_{s + 1}\.(.+)', rf'{shared}bridges.{s}.\1'),
                Rule(
                    rf'm_patch_embed{s + 1}\.proj\.(.+)',
                    rf'{shared}downs.{s - 1}.conv.\1',
                ),
                Rule(
                    rf'm_patch_embed{s + 1}\.norm\.(.+)',
                    rf'{shared}downs.{s - 1}.norm.\1'
                    if s
                    else rf'{shared}stem.norm.\1',
                ),
            )
        ),
        Rule(r'm_patch_embed1\.conv\.0\.(.+)', rf'{shared}stem.conv1.\1'),
        Rule(r'm_patch_embed1\.conv\.1\.(.+)', rf'{shared}stem.bn.\1'),
        Rule(r'm_patch_embed1\.conv\.3\.(.+)', rf'{shared}stem.conv2.\1'),
        Rule(r'fc_norm\.(.+)', rf'{shared}exit.\1'),
        Rule(r'(head\..+)', r'\1'),
        Rule(r'(.+)', r'backbone.\1'),
    )


def ladder(file: str, **args: Any) -> Case:
    """LST on the trunk of the authors; a gate of a dropped layer is read by nothing."""
    layer = (
        *three(
            r'X\.attention\.self\.QKV\.(.+)', ('query', 'key', 'value'), r'Y.qkv.\2'
        ),
        Rule(r'X\.attention\.output\.dense\.(.+)', r'Y.proj.\2'),
        Rule(r'X\.attention\.output\.LayerNorm\.(.+)', r'Y.norm1.\2'),
        Rule(r'X\.intermediate\.dense\.(.+)', r'Y.fc1.\2'),
        Rule(r'X\.output\.dense\.(.+)', r'Y.fc2.\2'),
        Rule(r'X\.output\.LayerNorm\.(.+)', r'Y.norm2.\2'),
    )

    def named(x: str, y: str) -> list[Rule]:
        return [
            Rule(r.pattern.replace('X', x), r.target.replace('Y', y), r.part)
            for r in layer
        ]

    rules = (
        *named(r'side_block_l\.(\d)', r'backbone.petl.\1.block'),
        Rule(r'layer\.(\d)\.attention\.self\.query\.(.+)', r'backbone.layers.\1.q.\2'),
        Rule(r'layer\.(\d)\.attention\.self\.key\.(.+)', r'backbone.layers.\1.k.\2'),
        Rule(r'layer\.(\d)\.attention\.self\.value\.(.+)', r'backbone.layers.\1.v.\2'),
        *named(r'layer\.(\d)', r'backbone.layers.\1'),
        Rule(r'side_first_downsample_l\.(.+)', r'backbone.petl.embed.down.\1'),
        Rule(r'side_final_upsample_l\.(.+)', r'backbone.petl.out.up.\1'),
        Rule(r'side_downsamples_l\.(\d)\.(.+)', r'backbone.petl.\1.down.\2'),
        *(
            Rule(rf'side_gate_params_l\.{i}', None)
            for i in range(3)
            if i not in args.get('side_blocks', range(3))
        ),
        Rule(r'side_gate_params_l\.(\d)', r'backbone.petl.\1.alpha'),
        Rule(r'visn_fc\.visn_fc\.(.+)', r'backbone.fc.\1'),
        Rule(r'visn_fc\.visn_layer_norm\.(.+)', r'backbone.norm.\1'),
        Rule(r'visn_fc\.box_.+', None),
    )
    method = {'type': 'LST', 'reduction': 4, 'init': 'random', 'form': 'post_norm'}
    return Case(
        file,
        lambda c: Model(PostNormTrunk(c)),
        method | args,
        (rules,),
        plug=plug_by_hand,
    )


CASES |= {
    **swins(
        'adaptformer_swin',
        {'type': 'AdaptFormer', 'activation': 'gelu'},
        Rule(
            rf'{BLOCK}\.my_module_1\.project1\.(.+)', rf'{OURS}.petl.ffn_sum.0.down.\3'
        ),
        Rule(rf'{BLOCK}\.my_module_1\.project2\.(.+)', rf'{OURS}.petl.ffn_sum.0.up.\3'),
    ),
    **vits(
        'adaptformer_bench',
        {'type': 'AdaptFormer', 'hidden_dims': 8, 'scale': 1.0, 'input_norm': True},
        block_rule(r'adaptmlp\.adapter_layer_norm_before\.(.+)', r'ffn_sum.0.norm.\2'),
        block_rule(r'adaptmlp\.(down|up)_proj\.(.+)', r'ffn_sum.0.\2.\3'),
    ),
    'hst-timm_vit': Case(
        'hst',
        timm_vit_and_head,
        {
            'type': 'HST',
            'dims': [8, 12, 16, 20],
            'num_heads': [2, 2, 2, 4],
            'depths': [2, 1, 1, 1],
            'num_tokens': 2,
        },
        (stages_of_hst(),),
    ),
    'lst-post_norm': ladder('lst'),
    'lst_skip-post_norm': ladder('lst_skip', side_blocks=[0, 2]),
    **vits(
        'adapter_pfeiffer',
        {'type': 'Adapter', 'hidden_dims': 8},
        Rule(
            r'transformer\.encoder\.layer\.(\d+)\.adapter_(down|up)sample\.(.+)',
            r'blocks.\1.petl.ffn.0.\2.\3',
        ),
        *CASES['vpt_deep-timm_vit'].rules[0],
    ),
    **vits('bitfit', {'type': 'BitFit'}),
    **vits('lntune', {'type': 'LNTune'}),
    **vits(
        'convpass',
        {'type': 'Convpass', 'hidden_dims': 8, 'scale': 0.5},
        block_rule(r'adapter_attn\.adapter_(conv|down|up)\.(.+)', r'attn_sum.0.\2.\3'),
        block_rule(r'adapter_mlp\.adapter_(conv|down|up)\.(.+)', r'ffn_sum.0.\2.\3'),
    ),
    **vits(
        'difffit_osu',
        {'type': 'DiffFit'},
        block_rule(r'difffit_gamma1', r'attn_proj.0.gamma'),
        block_rule(r'difffit_gamma2', r'ffn_fc2.0.gamma'),
    ),
    **vits(
        'dtl_plus',
        {'type': 'DTL', 'rank': 2, 'add_after': [2, 3], 'kernel_size': 3},
        Rule(r'lora_dict\.(\d+)\.lora_([AB])', r'blocks.\1.petl.block.0.\2'),
        Rule(r'lora_fusion\.weight', r'petl.shared.0.0.weight'),
    ),
    **vits(
        'fact_tk',
        {'type': 'FacTTK', 'rank': 4, 'scale': 0.5, 'layout': 'official'},
        Rule(r'FacT([uv])\.weight', r'petl.shared.0.stage0.\1'),
        Rule(r'FacTc', r'petl.shared.0.stage0.core'),
        Rule(r'FacTp', r'petl.shared.0.stage0.weights'),
    ),
    **vits(
        'hydra',
        {'type': 'Hydra', 'rank': 4, 'scale': 0.5},
        *(
            block_rule(
                rf'{theirs}_{way}\.(down|up)_proj\.(.+)', rf'{ours}.0.{long}.\2.\3'
            )
            for theirs, ours in (
                (r'attn\.hydra_proj', 'attn_proj'),
                (r'mlp\.hydra_mlp', 'ffn_fc2'),
            )
            for way, long in (('par', 'parallel'), ('seq', 'sequential'))
        ),
    ),
    **vits(
        'prefix',
        {'type': 'Prefix', 'num_tokens': 3},
        block_rule(r'attn\.prefix\.prefix_key', r'attn_core.0.Pk'),
        block_rule(r'attn\.prefix\.prefix_value', r'attn_core.0.Pv'),
    ),
    **vits(
        'repadapter',
        {'type': 'RepAdapter', 'hidden_dims': 8, 'groups': 2, 'scale': 0.5},
        block_rule(r'adapter_attn\.conv_A\.(.+)', r'attn_qkv.0.down.\2'),
        block_rule(r'adapter_attn\.conv_B\.(.+)', r'attn_qkv.0.up.\2'),
        block_rule(r'adapter_mlp\.conv_A\.(.+)', r'ffn_fc1.0.down.\2'),
        block_rule(r'adapter_mlp\.conv_B\.(.+)', r'ffn_fc1.0.up.\2'),
    ),
    **vits(
        'ssf',
        {'type': 'SSF'},
        *(
            Rule(f'{theirs}ssf_{word}_{i}', f'{ours}.0.{letter}')
            for word, letter in (('scale', 'gamma'), ('shift', 'beta'))
            for theirs, i, ours in (
                (r'', 1, r'petl.out_norm_1'),
                (r'patch_embed\.', 1, r'petl.embed_proj'),
                (r'blocks\.(\d+)\.', 1, r'blocks.\1.petl.norm1'),
                (r'blocks\.(\d+)\.', 2, r'blocks.\1.petl.norm2'),
                (r'blocks\.(\d+)\.attn\.', 1, r'blocks.\1.petl.attn_qkv'),
                (r'blocks\.(\d+)\.attn\.', 2, r'blocks.\1.petl.attn_proj'),
                (r'blocks\.(\d+)\.mlp\.', 1, r'blocks.\1.petl.ffn_fc1'),
                (r'blocks\.(\d+)\.mlp\.', 2, r'blocks.\1.petl.ffn_fc2'),
            )
        ),
    ),
    **on_timm_swin('swin_baseline', {'type': 'Full'}),
    **on_timm_swin(
        'ssf_swin',
        {'type': 'SSF'},
        *(
            Rule(f'{theirs}ssf_{word}_{i}', f'{ours}.0.{letter}')
            for word, letter in (('scale', 'gamma'), ('shift', 'beta'))
            for theirs, i, ours in (
                (r'', 1, r'petl.out_norm_1'),
                (r'patch_embed\.', 1, r'petl.embed_proj'),
                (r'patch_embed\.', 2, r'petl.embed_norm'),
                (rf'{BLOCK}\.', 1, r'layers.\1.blocks.\2.petl.norm1'),
                (rf'{BLOCK}\.', 2, r'layers.\1.blocks.\2.petl.norm2'),
                (rf'{BLOCK}\.attn\.', 1, r'layers.\1.blocks.\2.petl.attn_qkv'),
                (rf'{BLOCK}\.attn\.', 2, r'layers.\1.blocks.\2.petl.attn_proj'),
                (rf'{BLOCK}\.mlp\.', 1, r'layers.\1.blocks.\2.petl.ffn_fc1'),
                (rf'{BLOCK}\.mlp\.', 2, r'layers.\1.blocks.\2.petl.ffn_fc2'),
            )
        ),
    ),
    **on_timm_swin(
        'vpt_shallow_swin_b1',
        {'type': 'VPTShallow', 'num_tokens': 2},
        Rule(r'prompt_embeddings', r'layers.0.blocks.0.petl.tokens.0.E'),
    ),
    **on_timm_swin(
        'vpt_deep_swin',
        {'type': 'VPTDeep', 'num_tokens': 2},
        Rule(r'prompt_embeddings', r'layers.0.blocks.0.petl.tokens.0.E'),
        Rule(r'deep_prompt_embeddings_0\.0', r'layers.0.blocks.1.petl.tokens.0.E'),
        Rule(
            r'deep_prompt_embeddings_([123])\.(\d)',
            r'layers.\1.blocks.\2.petl.tokens.0.E',
        ),
        split=tuple(f'deep_prompt_embeddings_{i}' for i in range(4)),
    ),
    'patt_kv-mmaction_swin3d': Case(
        'patt_kv',
        mmaction_swin3d,
        {'type': 'PATT', 'hidden_dims': 12, 'scale': 0.8},
        (
            (
                Rule(
                    rf'{BLOCK}\.attn\.qkv_adapter\.0\.(.+)',
                    r'layers.\1.blocks.\2.petl.attn_qkv.0.a.\3',
                ),
                Rule(
                    rf'{BLOCK}\.attn\.qkv_adapter\.2\.(.+)',
                    r'layers.\1.blocks.\2.petl.attn_qkv.0.b.\3',
                ),
            ),
            TO_MMACTION_SWIN3D,
        ),
    ),
    **vits(
        'noah_subnet',
        {
            'type': 'NOAH',
            'num_tokens': [3, 2, 0],
            'rank': [4, 0, 2],
            'hidden_dims': [0, 3, 5],
        },
        Rule(r'visual_prompt_token.*', None),
        *(
            rule
            for i, (tokens, rank, hidden) in enumerate(
                [(3, 4, 0), (2, 0, 3), (0, 2, 5)]
            )
            for theirs, ours, change in (
                (r'visual_prompt_token', 'tokens.0.E', tokens and cut(1, tokens)),
                (r'attn\.LoRA_a\.weight', 'attn_qkv.0.A', rank and cut(rank)),
                (r'attn\.LoRA_b\.weight', 'attn_qkv.0.B', rank and cut(96, rank)),
                (r'adapter\.ln1\.weight', 'ffn.0.down.weight', hidden and cut(hidden)),
                (r'adapter\.ln1\.bias', 'ffn.0.down.bias', hidden and cut(hidden)),
                (
                    r'adapter\.ln2\.weight',
                    'ffn.0.up.weight',
                    hidden and cut(32, hidden),
                ),
                (r'adapter\.ln2\.bias', 'ffn.0.up.bias', hidden and cut(32)),
            )
            for rule in (
                Rule(
                    rf'blocks\.{i}\.{theirs}',
                    f'blocks.{i}.petl.{ours}' if change else None,
                    change=change or None,
                ),
            )
        ),
    ),
}

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
