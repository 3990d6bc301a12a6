"""Namings of weights, each with its way into the canonical one of its family.

A model's own state is read by the same functions as a file, which yields the map from
canonical names back to the model's, so every naming is written down once.

Canonical names: ViT as in timm (``blocks.0.attn.qkv.weight``, ``norm``, ``fc_norm``
after pooling, ``norm_pre`` before the blocks); Swin and Video Swin as their authors'
(``layers.0.blocks.0...``, patch merging in the authors' channel order, ``norm`` for the
classification norm, ``normI`` for the norms of dense models); VideoMAE as its authors'
fine-tuned files. Shapes are those of torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmpetl.models.weights.entries import Entries, Entry, Tensors, fuse, put, rename
from mmpetl.models.weights.errors import WeightsError, several_trunks
from mmpetl.models.weights.transformers_names import (
    read_transformers_clip,
    read_transformers_swin,
    read_transformers_vit,
)

Family = Literal['vit', 'swin', 'videomae', 'video_swin']
FAMILY_TITLES: dict[str, str] = {
    'vit': 'an image ViT',
    'swin': 'an image Swin',
    'videomae': 'a VideoMAE ViT',
    'video_swin': 'a Video Swin',
}


@dataclass(frozen=True)
class Layout:
    """One naming.

    Attributes:
        name: What the user is told, e.g. ``'timm ViT'``.
        family: Which canonical naming it is read into.
        recognises: Whether tensors (their common prefix removed) bear this naming.
        read: From this naming to the canonical one.
        write: From a canonical tensor to this naming's, where more than the name
            differs.
        native: Whether a model of ours bears it; the others occur in files only.
    """

    name: str
    family: Family
    recognises: Callable[[Tensors], bool]
    read: Callable[[Tensors], Entries]
    write: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
    native: bool = False


# The tensor that embeds patches is in every naming and in nothing but a trunk.
STEM = re.compile(
    r'^(?P<prefix>.*?)'
    r'(?P<stem>patch_embed\.(proj|projection)\.weight|conv1\.weight|embedding/kernel'
    r'|embeddings\.(patch_embeddings(\.projection)?|patch_embedding)\.weight)$'
)


def trunk_prefix(tensors: Tensors, where: str) -> str:
    """What stands before every name of the trunk: ``'backbone.'``, ``'encoder.'``, ...

    Args:
        tensors: Flat tensors by name.
        where: The file or model, for the message.

    Raises:
        WeightsError: No known trunk, or several.
    """
    found = []
    for name in tensors:
        match = STEM.match(name)
        if match is None:
            continue
        # A ResNet has a conv1 too; only CLIP's ViT has it beside a class embedding.
        is_conv = match['stem'] == 'conv1.weight'
        if is_conv and match['prefix'] + 'class_embedding' not in tensors:
            continue
        found.append(match['prefix'])
    if not found:
        raise WeightsError(
            f'{where} holds no ViT or Swin that is known here: no patch embedding '
            f'among its {len(tensors)} tensors ({", ".join(list(tensors)[:3])}, ...)'
        )
    if len(found) > 1:
        raise several_trunks(where, found)
    return found[0]


def find_layout(tensors: Tensors, where: str) -> Layout:
    """The naming that ``tensors`` bear.

    Raises:
        WeightsError: None of those known here.
    """
    for layout in LAYOUTS:
        if layout.recognises(tensors):
            return layout
    for title, is_it in FOREIGN:
        if is_it(tensors):
            raise WeightsError(
                f'{where} holds {title}, which no backbone here takes as they are; '
                "use the authors' file or timm's of that model (docs/weights.md)"
            )
    raise WeightsError(
        f'{where} bears names that are not known here '
        f'({", ".join(list(tensors)[:3])}, ...); known are '
        f'{", ".join(layout.name for layout in LAYOUTS)}'
    )


# --- ViT -----------------------------------------------------------------------

FLAX_BLOCK = re.compile(r'^Transformer/encoderblock_(\d+)/(.+)$')
FLAX_PLAIN = {
    'cls': 'cls_token',
    'Transformer/posembed_input/pos_embedding': 'pos_embed',
    'embedding/bias': 'patch_embed.proj.bias',
    'Transformer/encoder_norm/scale': 'norm.weight',
    'Transformer/encoder_norm/bias': 'norm.bias',
}
FLAX_IN_BLOCK = {
    'LayerNorm_0/scale': 'norm1.weight',
    'LayerNorm_0/bias': 'norm1.bias',
    'LayerNorm_2/scale': 'norm2.weight',
    'LayerNorm_2/bias': 'norm2.bias',
    'MlpBlock_3/Dense_0/bias': 'mlp.fc1.bias',
    'MlpBlock_3/Dense_1/bias': 'mlp.fc2.bias',
    'MultiHeadDotProductAttention_1/out/bias': 'attn.proj.bias',
}
FLAX_PART = re.compile(r'^MultiHeadDotProductAttention_1/(query|key|value)/(\w+)$')


def _read_flax(tensors: Tensors) -> Entries:
    """Flax keeps (in, out) kernels, with the heads as an axis of their own."""
    entries: Entries = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for source, tensor in tensors.items():
        block = FLAX_BLOCK.match(source)
        if source in FLAX_PLAIN:
            put(entries, FLAX_PLAIN[source], tensor, source)
        elif source == 'embedding/kernel':
            kernel = tensor.permute(3, 2, 0, 1)
            put(entries, 'patch_embed.proj.weight', kernel, source)
        elif block is None:
            put(entries, source.replace('/', '.'), tensor, source)
        elif match := FLAX_PART.match(block[2]):
            kind = 'weight' if match[2] == 'kernel' else 'bias'
            flat = tensor.flatten(1).t() if kind == 'weight' else tensor.flatten()
            name = f'blocks.{block[1]}.attn.qkv.{kind}'
            parts.setdefault(name, {})[match[1]] = flat
        else:
            name, tensor = _flax_in_block(block[2], tensor)
            put(entries, f'blocks.{block[1]}.{name}', tensor, source)
    for name, part in parts.items():
        fuse(entries, name, [part.get(k) for k in ('query', 'key', 'value')])
    return entries


def _flax_in_block(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name in FLAX_IN_BLOCK:
        return FLAX_IN_BLOCK[name], tensor
    if name == 'MultiHeadDotProductAttention_1/out/kernel':
        return 'attn.proj.weight', tensor.flatten(0, 1).t()
    if match := re.match(r'^MlpBlock_3/Dense_([01])/kernel$', name):
        return f'mlp.fc{int(match[1]) + 1}.weight', tensor.t()
    return name.replace('/', '.'), tensor


def _read_big_vision(tensors: Tensors) -> Entries:
    """big_vision counts each kind of layer from 0; ``cls`` has no position."""
    rules = [
        (re.compile(pattern), new)
        for pattern, new in (
            (r'^pos_embedding$', 'Transformer/posembed_input/pos_embedding'),
            (r'/LayerNorm_1/', '/LayerNorm_2/'),
            (r'/MultiHeadDotProductAttention_0/', '/MultiHeadDotProductAttention_1/'),
            (r'/MlpBlock_0/', '/MlpBlock_3/'),
        )
    ]
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, new in rules:
            name = pattern.sub(new, name)
        named[name] = tensor
    entries = _read_flax(named)
    if 'cls_token' in entries and 'pos_embed' in entries:
        table, source = entries['pos_embed']
        # The class token has no position: the same as one that is zero.
        none = table.new_zeros(1, 1, table.shape[-1])
        entries['pos_embed'] = Entry(torch.cat([none, table], dim=1), source)
    return entries


def _read_openai(tensors: Tensors) -> Entries:
    named = rename(
        (r'^conv1\.', 'patch_embed.proj.'),
        (r'^class_embedding$', 'cls_token'),
        (r'^positional_embedding$', 'pos_embed'),
        (r'^ln_pre\.', 'norm_pre.'),
        (r'^ln_post\.', 'norm.'),
        (r'^transformer\.resblocks\.', 'blocks.'),
        (r'^(blocks\.\d+)\.ln_([12])\.', r'\1.norm\2.'),
        (r'\.attn\.in_proj_', '.attn.qkv.'),
        (r'\.attn\.out_proj\.', '.attn.proj.'),
        (r'\.mlp\.c_fc\.', '.mlp.fc1.'),
        (r'\.mlp\.c_proj\.', '.mlp.fc2.'),
    )(tensors)
    for name in ('cls_token', 'pos_embed'):
        if name in named:
            tensor, source = named[name]
            width = tensor.shape[-1]
            named[name] = Entry(tensor.reshape(1, -1, width), source)
    return named


# DINOv2 names its registers and its gated network otherwise than timm, and its training
# puts blocks into chunks: `blocks.2.7` is block 7, of chunk 2.
CHUNK = re.compile(r'^blocks\.\d+\.\d+\.attn\.qkv\.weight$')
_read_timm_vit = rename(
    (r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.'),
    (r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma'),
    (r'^register_tokens$', 'reg_token'),
    (r'\.mlp\.w12\.', '.mlp.fc1.'),
    (r'\.mlp\.w3\.', '.mlp.fc2.'),
)

_read_mmpretrain_vit = rename(
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^pre_norm\.', 'norm_pre.'),
    (r'^ln1\.', 'norm.'),
    (r'^ln2\.', 'fc_norm.'),
    (r'^layers\.(\d+)\.', r'blocks.\1.'),
    (r'^(blocks\.\d+)\.ln([12])\.', r'\1.norm\2.'),
    (r'\.attn\.gamma1\.weight$', '.ls1.gamma'),
    (r'\.ffn\.gamma2\.weight$', '.ls2.gamma'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'\.ffn\.w12\.', '.mlp.fc1.'),
    (r'\.ffn\.w3\.', '.mlp.fc2.'),
)

# --- Swin ----------------------------------------------------------------------


def _read_timm_swin(tensors: Tensors) -> Entries:
    """Patch merging opens the next stage in timm and closes this one elsewhere."""
    entries: Entries = {}
    for source, tensor in tensors.items():
        match = re.match(r'^layers\.(\d+)\.downsample\.(.+)$', source)
        name = f'layers.{int(match[1]) - 1}.downsample.{match[2]}' if match else source
        put(entries, name, tensor, source)
    return entries


_rename_mm_swin = rename(
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^stages\.', 'layers.'),
    (r'\.attn\.w_msa\.', '.attn.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
)


def _read_mm_swin(tensors: Tensors) -> Entries:
    """OpenMMLab's patch merging has channels outermost and neighbours row by row."""
    entries = _rename_mm_swin(tensors)
    for name, (tensor, source) in entries.items():
        if '.downsample.' in name:
            entries[name] = Entry(_neighbours_outermost(tensor), source)
    return _name_last_norm(entries)


def _neighbours_outermost(tensor: Tensor) -> Tensor:
    """Last axis from (C, [00, 01, 10, 11]) to ([00, 10, 01, 11], C)."""
    split = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return split[..., [0, 2, 1, 3], :].flatten(-2)


def _write_mm_swin(name: str, tensor: Tensor) -> Tensor:
    """The inverse of ``_neighbours_outermost``, for patch merging alone."""
    if '.downsample.' not in name:
        return tensor
    split = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return split.transpose(-1, -2).flatten(-2)


def _name_last_norm(entries: Entries) -> Entries:
    """A lone norm behind the last stage is the authors' ``norm``."""
    last = count_indexed(entries, 'layers') - 1
    norms = {m[1] for name in entries if (m := re.match(r'^norm(\d+)\.', name))}
    if norms != {str(last)}:
        return entries
    return {re.sub(rf'^norm{last}\.', 'norm.', k): v for k, v in entries.items()}


def _read_video_swin(tensors: Tensors) -> Entries:
    return _name_last_norm(rename()(tensors))


# --- VideoMAE ------------------------------------------------------------------

_rename_split_videomae = rename((r'^(blocks\.\d+)\.fc([12])\.', r'\1.mlp.fc\2.'))


def _read_split_videomae(tensors: Tensors) -> Entries:
    """AdaptFormer's copy has query, key and value, and the MLP, one by one."""
    entries = _rename_split_videomae(tensors)
    for block in range(count_indexed(entries, 'blocks')):
        stem = f'blocks.{block}.attn.'
        parts = [entries.pop(f'{stem}{k}_proj.weight', None) for k in 'qkv']
        fuse(entries, f'{stem}qkv.weight', [p and p.tensor for p in parts])
    return entries


# --- the list ------------------------------------------------------------------


def count_indexed(names: Mapping[str, object], group: str) -> int:
    """One more than the highest index below ``group``: its blocks, or its stages."""
    found = (re.match(rf'^{group}\.(\d+)\.', name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


# A decoder's head predicts pixels: VideoMAE's self-supervised file has one.
HEAD_WEIGHT = re.compile(
    r'^(?!(?:.*[./])?decoder)(?:.*[./])?(?:head|cls_head|heads)'
    r'(?:[./](?:fc|head|fc_cls|layers[./]head))?[./](?:weight|kernel)$'
)


LINEAR_HEAD = re.compile(r'^(?:module\.)?(?:fc|classifier)\.weight$')


def count_classes(tensors: Tensors) -> int | None:
    """Outputs of the classifier among ``tensors``, if there is one."""
    for name, tensor in tensors.items():
        is_head = HEAD_WEIGHT.match(name) or LINEAR_HEAD.match(name)
        if is_head and tensor.dim() == 2:
            return tensor.shape[-1 if name.endswith('/kernel') else 0]
    return None


TRANSFORMERS_STEM = 'embeddings.patch_embeddings.projection.weight'
# As files have it, and as releases from 5 on have it in memory.
TRANSFORMERS_QUERY = re.compile(
    r'^(encoder\.layer|layers)\.0\.attention\.(attention\.query|q_proj)\.'
)
TRANSFORMERS_CLIP = 'encoder.layers.0.self_attn.q_proj.weight'


def _patch_axes(tensors: Tensors, name: str) -> int:
    """Axes of a patch embedding's kernel: 4 for images, 5 for clips, 0 if absent."""
    return _axes(tensors, f'patch_embed.{name}.weight')


def _axes(tensors: Tensors, name: str) -> int:
    tensor = tensors.get(name)
    return 0 if tensor is None else tensor.dim()


def _has(tensors: Tensors, start: str) -> bool:
    return any(name.startswith(start) for name in tensors)


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        'big_vision npz',
        'vit',
        lambda t: (
            'embedding/kernel' in t
            and 'pos_embedding' in t
            and _has(t, 'Transformer/encoderblock_0/MlpBlock_0/')
        ),
        _read_big_vision,
    ),
    Layout(
        'Google npz',
        'vit',
        lambda t: 'embedding/kernel' in t and _has(t, 'Transformer/encoderblock_0/'),
        _read_flax,
    ),
    Layout(
        'transformers ViT',
        'vit',
        lambda t: (
            _axes(t, TRANSFORMERS_STEM) == 4
            and 'embeddings.position_embeddings' in t
            and any(TRANSFORMERS_QUERY.match(name) for name in t)
        ),
        read_transformers_vit,
    ),
    Layout(
        'transformers CLIP',
        'vit',
        lambda t: 'embeddings.class_embedding' in t and TRANSFORMERS_CLIP in t,
        read_transformers_clip,
    ),
    Layout(
        'transformers SigLIP',
        'vit',
        lambda t: 'embeddings.patch_embedding.weight' in t and TRANSFORMERS_CLIP in t,
        read_transformers_clip,
    ),
    Layout('OpenAI CLIP', 'vit', lambda t: 'class_embedding' in t, _read_openai),
    Layout(
        'mmpretrain ViT',
        'vit',
        lambda t: _patch_axes(t, 'projection') == 4 and 'layers.0.attn.qkv.weight' in t,
        _read_mmpretrain_vit,
        native=True,
    ),
    Layout(
        'timm ViT',
        'vit',
        lambda t: (
            _patch_axes(t, 'proj') == 4
            and ('blocks.0.attn.qkv.weight' in t or any(map(CHUNK.match, t)))
        ),
        _read_timm_vit,
        native=True,
    ),
    Layout(
        'OpenMMLab Swin',
        'swin',
        lambda t: _patch_axes(t, 'projection') == 4 and _has(t, 'stages.0.blocks.0.'),
        _read_mm_swin,
        _write_mm_swin,
        native=True,
    ),
    Layout(
        'timm Swin',
        'swin',
        lambda t: (
            _patch_axes(t, 'proj') == 4
            and _has(t, 'layers.0.blocks.0.')
            and not _has(t, 'layers.0.downsample.')
        ),
        _read_timm_swin,
        native=True,
    ),
    Layout(
        'transformers Swin',
        'swin',
        lambda t: TRANSFORMERS_STEM in t and _has(t, 'encoder.layers.0.blocks.'),
        read_transformers_swin,
    ),
    Layout(
        'official Swin',
        'swin',
        lambda t: _patch_axes(t, 'proj') == 4 and _has(t, 'layers.0.blocks.0.'),
        rename(),
    ),
    Layout(
        'mmaction ViT',
        'videomae',
        lambda t: _patch_axes(t, 'projection') == 5 and _has(t, 'blocks.0.'),
        rename(
            (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
            (r'\.mlp\.layers\.0\.0\.', '.mlp.fc1.'),
            (r'\.mlp\.layers\.1\.', '.mlp.fc2.'),
        ),
        native=True,
    ),
    Layout(
        'AdaptFormer VideoMAE',
        'videomae',
        lambda t: _patch_axes(t, 'proj') == 5 and 'blocks.0.attn.q_proj.weight' in t,
        _read_split_videomae,
    ),
    Layout(
        'VideoMAE',
        'videomae',
        lambda t: _patch_axes(t, 'proj') == 5 and _has(t, 'blocks.0.'),
        rename(),
    ),
    Layout(
        'Video Swin',
        'video_swin',
        lambda t: _patch_axes(t, 'proj') == 5 and _has(t, 'layers.0.blocks.0.'),
        _read_video_swin,
        native=True,
    ),
)

# Weights that are told by their names, so that the refusal can say what they are.
FOREIGN: tuple[tuple[str, Callable[[Tensors], bool]], ...] = (
    (
        'a VideoMAE in the names of transformers',
        lambda t: _axes(t, TRANSFORMERS_STEM) == 5,
    ),
    (
        'a DINOv3 (rotary positions) in the names of transformers',
        lambda t: 'embeddings.patch_embeddings.weight' in t,
    ),
    ('weights in the names of transformers', lambda t: TRANSFORMERS_STEM in t),
    (
        'a ViT of big_vision whose blocks are stacked into one (scan=True)',
        lambda t: _has(t, 'Transformer/encoderblock/'),
    ),
    (
        "a BEiT (relative positions, no key bias), which is not timm's plain ViT",
        lambda t: _has(t, 'blocks.0.attn.relative_position_bias_table'),
    ),
)
