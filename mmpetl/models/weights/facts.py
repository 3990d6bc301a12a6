"""What size of model a set of weights belongs to, so that a mismatch can be named."""

from __future__ import annotations

from mmpetl.models.weights.entries import Entries
from mmpetl.models.weights.layouts import count_indexed

# Width and depth of the published sizes; a size that is not here goes unnamed.
VIT_SIZES: dict[tuple[int, int], str] = {
    (192, 12): 'Ti',
    (384, 12): 'S',
    (768, 12): 'B',
    (1024, 24): 'L',
    (1280, 32): 'H',
    (1408, 40): 'g',
}
SWIN_SIZES: dict[tuple[int, int], str] = {
    (96, 12): 'T',
    (96, 24): 'S',
    (128, 24): 'B',
    (192, 24): 'L',
}
NAMES: dict[str, str] = {
    'vit': 'ViT',
    'videomae': 'VideoMAE ViT',
    'swin': 'Swin',
    'video_swin': 'Video Swin',
}


def compare_facts(family: str, in_file: Entries, in_model: Entries) -> str:
    """``'embed width 1024 in the file, 768 in the model: ...'``, or ``''`` if alike."""
    theirs, ours = _facts(family, in_file), _facts(family, in_model)
    lines = [
        f'{fact} {theirs[fact]} in the file, {ours[fact]} in the model'
        for fact in ours
        if fact in theirs and theirs[fact] != ours[fact]
    ]
    if not lines:
        return ''
    offered, wanted = size_name(family, in_file), size_name(family, in_model)
    tail = f': a {offered} offered for a {wanted}' if offered and wanted else ''
    return ', '.join(lines) + (tail if offered != wanted else '')


def _facts(family: str, entries: Entries) -> dict[str, str]:
    facts: dict[str, str] = {}
    kernel = entries['patch_embed.proj.weight'].tensor.shape
    facts['embed width'] = str(kernel[0])
    facts['depth'] = '-'.join(map(str, _depths(family, entries)))
    facts['patch size'] = ' x '.join(map(str, kernel[2:]))
    facts['input channels'] = str(kernel[1])
    first = 'blocks.0' if family in ('vit', 'videomae') else 'layers.0.blocks.0'
    hidden = entries.get(f'{first}.mlp.fc1.weight')
    if hidden is not None:
        facts['MLP width'] = str(hidden.tensor.shape[0])
    table = entries.get(f'{first}.attn.relative_position_bias_table')
    if table is not None:
        facts['heads of stage 0'] = str(table.tensor.shape[1])
    return facts


def _depths(family: str, entries: Entries) -> list[int]:
    if family in ('vit', 'videomae'):
        return [count_indexed(entries, 'blocks')]
    stages = count_indexed(entries, 'layers')
    return [
        count_indexed(entries, rf'layers\.{stage}\.blocks') for stage in range(stages)
    ]


def depth_of(family: str, entries: Entries) -> int:
    """Number of blocks, all stages together."""
    return sum(_depths(family, entries))


def size_name(family: str, entries: Entries) -> str | None:
    """``'ViT-B'``, ``'Swin-L'``; None for a size that nobody has published."""
    width = entries['patch_embed.proj.weight'].tensor.shape[0]
    sizes = VIT_SIZES if family in ('vit', 'videomae') else SWIN_SIZES
    size = sizes.get((width, depth_of(family, entries)))
    return size and f'{NAMES[family]}-{size}'
