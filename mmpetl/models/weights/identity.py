"""What a weight file holds, told from its keys and shapes; names of files lie.

Google published ``ViT-B_16.npz`` three times: trained on ImageNet-21k, the same
fine-tuned on ImageNet-1k, and another training altogether. A checksum is known of few
files; keys and shapes tell the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmpetl.models.weights.containers import read_tensors
from mmpetl.models.weights.entries import Entries
from mmpetl.models.weights.errors import WeightsError
from mmpetl.models.weights.facts import depth_of, size_name
from mmpetl.models.weights.layouts import (
    FAMILY_TITLES,
    Layout,
    count_classes,
    find_layout,
    trunk_prefix,
)
from mmpetl.models.weights.registry import AUGREG, ORIGINAL, KnownFile, known_file


@dataclass(frozen=True)
class FileFacts:
    """Content of a weight file.

    Attributes:
        layout: Naming of its keys.
        family: ``'vit'``, ``'swin'``, ``'videomae'`` or ``'video_swin'``.
        width: Channels of the first stage.
        depth: Number of blocks, all stages together.
        size: ``'ViT-B'``; None for a size that nobody has published.
        head_classes: Outputs of its classifier, 0 if it has none.
        release: Of Google's ImageNet-21k files: ``'original in21k'``, which have a
            ``pre_logits`` layer, or ``'AugReg in21k'``, which have none.
    """

    layout: str
    family: str
    width: int
    depth: int
    size: str | None
    head_classes: int
    release: str | None

    def __str__(self) -> str:
        parts = [self.size or f'{FAMILY_TITLES[self.family]}', f'{self.layout} keys']
        if self.size is None:
            parts.append(f'width {self.width}, depth {self.depth}')
        classes = self.head_classes
        parts.append(f'classifier of {classes} classes' if classes else 'no classifier')
        return ', '.join(parts + ([self.release] if self.release else []))


def describe_file(path: str | os.PathLike) -> FileFacts:
    """Read a weight file and say what it is.

    Raises:
        WeightsError: It is missing, damaged, no weight file, or of no family that is
            known here.
    """
    tensors = read_tensors(path).tensors
    where = os.fspath(path)
    prefix = trunk_prefix(tensors, where)
    trunk = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    layout = find_layout(trunk, where)
    return describe(tensors, layout, layout.read(trunk))


def describe(
    tensors: Mapping[str, Tensor], layout: Layout, entries: Entries
) -> FileFacts:
    """The facts of a file that has been read already."""
    classes = count_classes(tensors) or 0
    return FileFacts(
        layout=layout.name,
        family=layout.family,
        width=entries['patch_embed.proj.weight'].tensor.shape[0],
        depth=depth_of(layout.family, entries),
        size=size_name(layout.family, entries),
        head_classes=classes,
        release=_release(tensors, layout, classes),
    )


def _release(tensors: Mapping[str, Tensor], layout: Layout, classes: int) -> str | None:
    if layout.name != 'Google npz':
        return None
    if any(name.startswith('pre_logits/') for name in tensors):
        return ORIGINAL
    return AUGREG if classes == 21843 else None


def differences(known: KnownFile, facts: FileFacts) -> list[str]:
    """In what a file is not the known one; empty if nothing speaks against it."""
    found = []
    if facts.family != known.family:
        title = FAMILY_TITLES[facts.family]
        return [f'it holds {title}, not {FAMILY_TITLES[known.family]}']
    if (facts.width, facts.depth) != (known.width, known.depth):
        found.append(
            f'embed width {facts.width} and depth {facts.depth}, not {known.width} and '
            f'{known.depth}' + (f': a {facts.size}' if facts.size else '')
        )
    if known.head_classes is not None and facts.head_classes != known.head_classes:
        has = f'a classifier of {facts.head_classes} classes'
        wants = f'one of {known.head_classes}' if known.head_classes else 'none'
        found.append(
            f'{has if facts.head_classes else "no classifier"}, not {wants}: another '
            'stage of training' + (', fine-tuned' if facts.head_classes else '')
        )
    elif known.release is not None and facts.release != known.release:
        found.append(f'keys of the {facts.release or "fine-tuned"} release')
    elif facts.layout != known.layout:
        found.append(f'{facts.layout} keys, not {known.layout} keys')
    return found


def check_name(path: str | os.PathLike, facts: FileFacts) -> str:
    """Hold a file that bears a known name against what is known of that file.

    A model of another size is not looked at: it is somebody's own, or is refused
    for its size anyway.

    Returns:
        What the user should be told of a harmless difference, or ``''``.

    Raises:
        WeightsError: The file is another training stage of the model.
    """
    known = known_file(Path(path).name)
    if known is None or (facts.width, facts.depth) != (known.width, known.depth):
        return ''
    found = differences(known, facts)
    if not found:
        return ''
    if known.head_classes in (None, facts.head_classes):
        return f'not the published {known.name} ({known.title}): {"; ".join(found)}'
    raise WeightsError(
        f'{os.fspath(path)} is not the published file of that name ({known.title}): '
        f'{"; ".join(found)}; download it again, or rename it if it is your own'
    )
