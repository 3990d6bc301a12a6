"""Loading base weights: every key of the model is accounted for, or nothing moves.

Call it on the plain backbone, after ``init_weights`` and before anything is injected:
initialising afterwards would overwrite the base, injecting before would hide it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmpetl.models.weights.address import resolve
from mmpetl.models.weights.containers import read_tensors, sha256_of
from mmpetl.models.weights.convert import FAMILY_CLASSES, is_known
from mmpetl.models.weights.entries import Entries, Entry
from mmpetl.models.weights.errors import OF_SHAPES, WeightsError, misshapen, shorten
from mmpetl.models.weights.facts import compare_facts
from mmpetl.models.weights.identity import check_name, describe
from mmpetl.models.weights.layouts import (
    FAMILY_TITLES,
    Layout,
    count_classes,
    count_indexed,
    find_layout,
    trunk_prefix,
)
from mmpetl.models.weights.load_own import load_own
from mmpetl.models.weights.own_names import check_finite
from mmpetl.models.weights.report import LoadReport
from mmpetl.models.weights.resize import (
    inflate_patches,
    inflate_window,
    resize_grid,
    resize_window,
    resize_window_3d,
    source_grid,
)
from mmpetl.models.weights.tables import fit_table
from mmpetl.models.weights.target import LIBRARIES, Target

# What a file may hold that no backbone takes: (pattern on canonical names, reason).
LEFT_ASIDE: tuple[tuple[str, str], ...] = (
    (r'^(head|heads|head_dist|fc|cls_head)\.', 'head'),
    (r'^pre_logits\.', 'pre_logits'),
    (r'^pooler\.', 'pooler'),
    (r'^proj$', 'projection to the text space'),
    (r'^(decoder|encoder_to_decoder)', 'decoder'),
    (r'^mask_token$', 'mask token of pre-training'),
    (
        r'(^|\.)(relative_position_index|attn_mask|position_ids)$',
        'index or mask, rebuilt',
    ),
)
HINTS: tuple[tuple[str, str, str], ...] = (
    (
        'unexpected',
        r'\.ls[12]\.gamma$',
        'the file has layer scale: build the model with layer_scale_init_value',
    ),
    (
        'missing',
        r'\.ls[12]\.gamma$',
        'the model has layer scale, the file has none',
    ),
    (
        'unexpected',
        r'^norm_pre\.',
        'the file is CLIP-like: build the model with pre_norm=True',
    ),
    ('missing', r'^norm_pre\.', 'the model expects a CLIP-like file (pre_norm)'),
    (
        'missing',
        r'^norm\.',
        'the file was tuned with mean pooling and has no norm before it',
    ),
    (
        'unexpected',
        r'^reg_token$',
        'the file has register tokens: build a model of timm with reg_tokens',
    ),
    (
        'unexpected',
        r'^absolute_pos_embed$',
        'the file has absolute positions: build a model of OpenMMLab with '
        'use_abs_pos_embed=True',
    ),
    (
        'missing',
        r'^absolute_pos_embed$',
        'the model has absolute positions, the file has none',
    ),
    ('missing', r'^reg_token$', 'the model has register tokens, the file has none'),
)


@dataclass
class _Host:
    """A plain backbone, seen through its own naming."""

    backbone: nn.Module
    title: str
    prefix: str
    layout: Layout
    entries: Entries

    @property
    def trunk(self) -> nn.Module:
        """The module below ``prefix``: the backbone itself, or timm's inside it."""
        return self.backbone.get_submodule(self.prefix.rstrip('.'))


@dataclass
class _Plan:
    """Canonical entries on their way from a file into a host."""

    where: str
    layout: Layout
    entries: Entries
    dropped: list[tuple[str, str]]
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    fresh: dict[str, str]

    def drop(self, name: str, reason: str) -> None:
        self.dropped.append((self.entries.pop(name).source, reason))


def load_base_weights(
    backbone: nn.Module,
    path: str | os.PathLike,
    *,
    head_classes: int | None = None,
    part: str | None = None,
    inflate: bool = False,
    trunk: Iterable[str] = (),
) -> LoadReport:
    """Fill a plain backbone from an official weight file.

    A class has two kinds of files: those in its own names, which every module reads
    (also whole detectors, segmentors, classifiers, recognisers, and models of
    transformers), and official ones that are converted. docs/weights.md lists them by
    class. Position and relative-position tables are resized where the model's input
    or window differs. Values are copied into the existing parameters, so dtype and
    device stay the model's; no key is touched unless all fit.

    Args:
        backbone: A plain module: initialised, nothing injected.
        path: npz, safetensors, torch or TorchScript file, the index of shards, or a
            folder as the hub of transformers keeps it; a path, or an address as
            :func:`resolve` reads it.
        head_classes: If given, the classifier in the file must have as many classes:
            21843 guards against a fine-tuned ViT in place of the 21k trunk. A file
            without a classifier cannot be told apart and is refused too.
        part: Which weights, of a file that has several: ``'teacher'``,
            ``'state_dict_ema'``. By default the model, and never one of two that
            learn from each other.
        inflate: Let an image Swin start a Video Swin, as its authors did: the patch
            embedding is repeated over time and divided by its length, position tables
            are repeated over all distances in time.
        trunk: Of a whole model, the paths that the file must fill in full, as
            ``('backbone',)`` of a detector. What lies elsewhere is filled where names
            and shapes fit, and reported where not. Empty: all but a classifier.

    Returns:
        What was matched, dropped, resized and left at its initial value.

    Raises:
        WeightsNotFoundError: Nothing at ``path``.
        WeightsError: The file is damaged, foreign or made for another model, or it
            bears the name of a published file and is another stage of that model's
            training; the one line names the file, what differs and, where known, the
            way out.
    """
    where = os.fspath(path)
    target = Target.of(backbone)
    _refuse_delta(target)
    host = None if tuple(trunk) else _host_of(backbone, target)
    path = resolve(path)
    tensors, container, notes = read_tensors(path, part)
    if _has_delta(tensors):
        raise WeightsError(
            f'{where} holds a delta (keys below petl), not base weights; give the file '
            'that the delta was trained on, or fold the delta first'
        )
    found = count_classes(tensors)
    if head_classes is not None and found != head_classes:
        has = f'one of {found} classes' if found else 'none'
        raise WeightsError(
            f'{where}: a classifier of {head_classes} classes is expected, the file '
            f'has {has}; it is another training stage of the model'
        )
    _refuse_other_heads(target, tensors, where)
    if host is None:
        own = load_own(target, tensors, where, trunk)
        return replace(
            own,
            sha256=sha256_of(path),
            container=container,
            head_classes=None if own.head_classes == 0 else found,
            notes=(*notes, *own.notes),
        )
    plan = _read(tensors, where)
    inflated = plan.layout.family == 'swin' and host.layout.family == 'video_swin'
    if plan.layout.family != host.layout.family and not (inflated and inflate):
        hint = '; pretrained2d=True of the backbone inflates it' if inflated else ''
        raise WeightsError(
            f'{where} holds {FAMILY_TITLES[plan.layout.family]} ({plan.layout.name} '
            f'names), the model is {FAMILY_TITLES[host.layout.family]} ({host.title})'
            + hint
        )
    facts = describe(tensors, plan.layout, plan.entries)
    if inflated:
        notes += (_inflate(plan, host),)
    _fit_norms(plan, host)
    _leave_aside(plan, host)
    _refuse_other_size(plan, host)
    remark = check_name(path, facts)
    _resize(plan, host)
    _refuse_mismatch(plan, host)
    _copy(plan, host)
    name_of = {name: entry.source for name, entry in host.entries.items()}
    return LoadReport(
        path=where,
        sha256=sha256_of(path),
        container=container,
        layout=plan.layout.name,
        family=plan.layout.family,
        matched=tuple(host.prefix + name_of[name] for name in plan.entries),
        dropped=tuple(plan.dropped),
        resized=tuple(
            (host.prefix + name_of[n], old, new) for n, old, new in plan.resized
        ),
        fresh=tuple((host.prefix + name_of[n], why) for n, why in plan.fresh.items()),
        head_classes=found,
        release=facts.release,
        notes=tuple(filter(None, [*notes, remark, *_notes(plan, host)])),
    )


def _host_of(backbone: nn.Module, target: Target) -> _Host | None:
    """A model of one of the families; None for one that is read by its own names."""
    for name in target.classes():
        if name in FAMILY_CLASSES:
            return _inspect(backbone, target)
        if is_known(name):
            return None
    # A class of the user's own may bear the names of a family.
    if type(target.core).__module__.partition('.')[0] in LIBRARIES:
        return None
    try:
        return _inspect(backbone, target)
    except WeightsError:
        return None


def _inspect(backbone: nn.Module, target: Target) -> _Host:
    title = target.title
    params = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
    state = {n: t for n, t in backbone.state_dict().items() if n in params}
    prefix = trunk_prefix(state, title)
    outside = [name for name in state if not name.startswith(prefix)]
    if outside:
        raise WeightsError(
            f'{title} has more than a trunk ({shorten(outside)}); pass the backbone '
            f'alone, which is .{prefix.rstrip(".")}'
        )
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    layout = find_layout(inside, title)
    if not layout.native:
        raise WeightsError(f'{title} bears {layout.name} names, which only files have')
    return _Host(backbone, title, prefix, layout, layout.read(inside))


def _refuse_delta(target: Target) -> None:
    if _has_delta(target.model.state_dict()):
        raise WeightsError(
            f'{target.title} has a method injected; load the base weights before, or '
            'eject it'
        )


def _has_delta(names: Iterable[str]) -> bool:
    return any('.petl.' in f'.{name}' for name in names)


def _read(tensors: Mapping[str, Tensor], where: str) -> _Plan:
    prefix = trunk_prefix(tensors, where)
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    layout = find_layout(inside, where)
    dropped = [
        (name, _reason(name) or f'outside of {prefix.rstrip("./")}')
        for name in tensors
        if not name.startswith(prefix)
    ]
    try:
        read = layout.read(inside)
    except OF_SHAPES as error:
        raise misshapen(where, layout.name, error) from None
    entries = {
        name: Entry(tensor, prefix + source) for name, (tensor, source) in read.items()
    }
    return _Plan(where, layout, entries, dropped, [], {})


def _reason(name: str) -> str | None:
    for pattern, reason in LEFT_ASIDE:
        if re.search(pattern, name):
            return reason
    return None


def _leave_aside(plan: _Plan, host: _Host) -> None:
    """Drop what no backbone takes, and excuse a model's own classifier."""
    for name in list(plan.entries):
        reason = _reason(name)
        if reason is not None:
            plan.drop(name, reason)
    for name in host.entries:
        if _reason(name) == 'head':
            plan.fresh[name] = 'head'
    # A sinusoid table is a buffer that VideoMAE's class builds for its own size.
    sinusoid = host.layout.family == 'videomae' and 'pos_embed' not in host.entries
    if sinusoid and 'pos_embed' in plan.entries:
        plan.drop('pos_embed', 'position table, rebuilt')


def _fit_norms(plan: _Plan, host: _Host) -> None:
    """The norms behind the trunk differ by task; the rest of it does not."""
    if host.layout.family in ('swin', 'video_swin'):
        _fit_swin_norms(plan, host)
        return
    if 'attn_pool.latent' not in host.entries:
        for name in [n for n in plan.entries if n.startswith('attn_pool.')]:
            plan.drop(name, 'attention pooling, which the model does not have')
    for kind in ('norm', 'fc_norm'):
        in_file = [f'{kind}.{p}' for p in ('weight', 'bias')]
        if in_file[0] in host.entries:
            if kind == 'fc_norm' and in_file[0] not in plan.entries:
                why = 'norm after pooling, not in a file that was not tuned with it'
                plan.fresh.update({n: why for n in in_file if n in host.entries})
            continue
        for name in in_file:
            if name in plan.entries:
                plan.drop(name, f'{kind}, which the model does not have')


def _fit_swin_norms(plan: _Plan, host: _Host) -> None:
    last = count_indexed(host.entries, 'layers') - 1
    lone = 'norm.weight' in host.entries
    for part in ('weight', 'bias'):
        dense = f'norm{last}.{part}'
        if lone and dense in plan.entries:
            plan.entries[f'norm.{part}'] = plan.entries.pop(dense)
    for name in list(plan.entries):
        if re.match(r'^norm\d*\.', name) and name not in host.entries:
            plan.drop(name, 'output norm, which the model does not have')
    for name in host.entries:
        if re.match(r'^norm\d+\.', name) and name not in plan.entries:
            plan.fresh[name] = 'output norm of a stage, not in the file'


def _refuse_other_size(plan: _Plan, host: _Host) -> None:
    difference = compare_facts(host.layout.family, plan.entries, host.entries)
    if difference:
        raise WeightsError(f'{plan.where} does not fit {host.title}: {difference}')


HEADS = re.compile(
    r'^(?!.*\btxt/).*encoderblock_0/MultiHeadDotProductAttention_[01]/query/kernel$'
)


def _refuse_other_heads(
    target: Target, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Flax keeps heads as an axis; a model of other heads takes the same shapes."""
    theirs = [t.shape[1] for n, t in tensors.items() if HEADS.match(n) and t.dim() == 3]
    counts = (getattr(module, 'num_heads', None) for module in target.model.modules())
    ours = {count for count in counts if isinstance(count, int)}
    if theirs and ours and not ours & set(theirs):
        raise WeightsError(
            f'{where} does not fit {target.title}: {theirs[0]} heads in the file, '
            f'{min(ours)} in the model'
        )


def _inflate(plan: _Plan, host: _Host) -> str:
    """Give an image Swin's tensors the axis of time; what was done, for the log."""
    stem = 'patch_embed.proj.weight'
    steps = host.entries[stem].tensor.shape[2]
    for name, (tensor, source) in plan.entries.items():
        if name == stem:
            new = inflate_patches(tensor, steps)
        elif name.endswith('relative_position_bias_table') and name in host.entries:
            try:
                new = inflate_window(tensor, _window_of(host, name))
            except ValueError as error:
                raise WeightsError(
                    f'{plan.where}: {source} cannot be inflated for {host.title}: '
                    f'{error}'
                ) from None
        else:
            continue
        plan.entries[name] = Entry(new, source)
    return f'an image Swin, inflated to patches of {steps} frames'


def _window_of(host: _Host, name: str) -> tuple[int, int, int]:
    """Size of the window that a relative-position table is for."""
    owner = host.entries[name].source.removesuffix('.relative_position_bias_table')
    return tuple(host.trunk.get_submodule(owner).window_size)


def _resize(plan: _Plan, host: _Host) -> None:
    for name, (tensor, source) in list(plan.entries.items()):
        if name not in host.entries:
            continue
        target = tuple(host.entries[name].tensor.shape)
        is_table = tensor.dim() == 3 and tensor.shape[::2] == target[::2]
        if name == 'pos_embed' and host.layout.family == 'vit' and is_table:
            new = _resize_positions(plan, host, tensor)
        elif name == 'absolute_pos_embed' and is_table:
            new = _resize_absolute(plan, host, tensor, source)
        elif (
            name.endswith('relative_position_bias_table')
            and tensor.shape[0] != target[0]
            and tensor.shape[1:] == target[1:]
        ):
            new = _resize_bias(plan, host, name, tensor, target[0])
        else:
            continue
        if new is not tensor:
            plan.resized.append((name, tuple(tensor.shape), tuple(new.shape)))
        plan.entries[name] = Entry(new, source)
    if 'cls_token' in plan.entries and 'cls_token' not in host.entries:
        plan.drop('cls_token', 'class token, which the model does not have')


def _resize_positions(plan: _Plan, host: _Host, table: Tensor) -> Tensor:
    """To the model's grid; a class token's row is kept, folded or cut."""
    embed = host.trunk.patch_embed
    new = getattr(embed, 'init_out_size', None) or embed.grid_size
    new = (int(new[0]), int(new[1]))
    ours = host.entries['pos_embed'].tensor.shape[1] - new[0] * new[1]
    theirs = _rows_in_front(plan, table, new, ours)
    if theirs == 1 and ours == 0:
        if 'cls_token' in host.entries:
            _fold_position(plan, table[:, :1])
        table, theirs = table[:, 1:], 0
    if theirs != ours:
        return table
    old = source_grid(table[:, theirs:], new)
    if old is None:
        raise WeightsError(
            f'{plan.where}: its {table.shape[1] - theirs} positions are no square '
            f'grid, nor one of the shape of the {new[0]} x {new[1]} of {host.title}, '
            'to which they cannot be resized'
        )
    return table if old == new else resize_grid(table, old, new, theirs)


def _resize_absolute(plan: _Plan, host: _Host, table: Tensor, source: str) -> Tensor:
    """Swin's table, which has no rows but those of the grid."""
    target = Target.of(host.trunk)
    name = host.entries['absolute_pos_embed'].source
    try:
        return fit_table(target, name, table)
    except ValueError as error:
        raise WeightsError(
            f'{plan.where}: {source} {tuple(table.shape)} cannot be resized to the '
            f'{tuple(target.tensors[name].shape)} of {host.title}: {error}'
        ) from None


def _rows_in_front(plan: _Plan, table: Tensor, new: tuple[int, int], ours: int) -> int:
    """Rows of a table that belong to tokens: as in the model, one, or none."""
    tokens = [plan.entries.get(name) for name in ('cls_token', 'reg_token')]
    tensors = [entry.tensor for entry in tokens if entry is not None]
    most = sum(tensor.shape[1] for tensor in tensors if tensor.dim() == 3)
    for rows in (ours, 1):
        if rows <= most and source_grid(table[:, rows:], new) is not None:
            return rows
    return 0


def _fold_position(plan: _Plan, row: Tensor) -> None:
    """Add a class token's position to it, where the model's tokens have none.

    As DINOv2's files with registers go into timm's models.
    """
    token, source = plan.entries['cls_token']
    plan.entries['cls_token'] = Entry(token.float() + row.float(), source)


def _resize_bias(
    plan: _Plan, host: _Host, name: str, table: Tensor, rows: int
) -> Tensor:
    try:
        if host.layout.family == 'swin':
            return resize_window(table, rows)
        return resize_window_3d(table, _window_of(host, name))
    except ValueError as error:
        raise WeightsError(
            f'{plan.where}: {plan.entries[name].source} cannot be resized to the '
            f'{rows} rows of {host.title}: {error}'
        ) from None


def _refuse_mismatch(plan: _Plan, host: _Host) -> None:
    missing = [n for n in host.entries if n not in plan.entries and n not in plan.fresh]
    unexpected = [n for n in plan.entries if n not in host.entries]
    shapes = [
        f'{plan.entries[name].source} {tuple(plan.entries[name].tensor.shape)} in the '
        f'file, {tuple(entry.tensor.shape)} in the model'
        for name, entry in host.entries.items()
        if name in plan.entries
        and plan.entries[name].tensor.shape != entry.tensor.shape
    ]
    problems = []
    if missing:
        names = shorten(host.prefix + host.entries[n].source for n in missing)
        problems.append(f'{len(missing)} keys of the model are not in it ({names})')
    if unexpected:
        names = shorten(plan.entries[n].source for n in unexpected)
        problems.append(f'{len(unexpected)} of its keys have no place ({names})')
    if shapes:
        problems.append(f'{len(shapes)} shapes differ ({shorten(shapes, 2)})')
    if not problems:
        return
    groups = {'missing': missing, 'unexpected': unexpected}
    hints = [
        hint
        for group, pattern, hint in HINTS
        if any(re.search(pattern, name) for name in groups[group])
    ]
    raise WeightsError(
        f'{plan.where} ({plan.layout.name} names) does not fit {host.title}: '
        f'{"; ".join(problems + hints)}'
    )


@torch.no_grad()
def _copy(plan: _Plan, host: _Host) -> None:
    for name, (tensor, source) in plan.entries.items():
        if not tensor.is_floating_point():
            raise WeightsError(
                f'{plan.where}: {source} is {tensor.dtype}, which holds no weights; '
                'save them as floating point'
            )
        dtype = host.entries[name].tensor.dtype
        check_finite(tensor, dtype, f'{plan.where}: {source}')
    for name, (tensor, _) in plan.entries.items():
        target = host.entries[name]
        parameter = host.trunk.get_parameter(target.source)
        parameter.copy_(host.layout.write(name, tensor))


def _notes(plan: _Plan, host: _Host) -> list[str]:
    """What names cannot carry but features depend on."""
    if plan.layout.name not in ('OpenAI CLIP', 'transformers CLIP'):
        return []
    notes = []
    kinds = {type(m).__name__ for m in host.backbone.modules()}
    if 'GELU' in kinds and 'QuickGELU' not in kinds:
        notes.append('CLIP was trained with quick GELU, the model has the exact one')
    epsilons = {m.eps for m in host.backbone.modules() if isinstance(m, nn.LayerNorm)}
    if epsilons != {1e-5}:
        notes.append(f'CLIP has a LayerNorm eps of 1e-5, the model {sorted(epsilons)}')
    return notes
