"""Which official names a class of model can be filled from.

The class decides, and nothing else does: tensors of one shape mean different things in
different architectures. What a converter returns is then held against the model's own
names in full, so a file that it was not made for is refused.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from mmpetl.core import PETLError
from mmpetl.core.sitemap import SiteMap, class_name, find_site_map
from mmpetl.models.weights import official_convnets as convnets
from mmpetl.models.weights import official_transformers as official
from mmpetl.models.weights.entries import State, Tensors, renamed
from mmpetl.models.weights.errors import (
    OF_SHAPES,
    SeveralTrunksError,
    WeightsError,
    misshapen,
    several_trunks,
)
from mmpetl.models.weights.layouts import find_layout, trunk_prefix
from mmpetl.models.weights.own_names import Spare
from mmpetl.models.weights.tables import is_table
from mmpetl.models.weights.target import Target, library_of
from mmpetl.models.weights.transformers_names import (
    beit_of_transformers,
    dinov2_to_transformers,
    dinov3_of_transformers,
    segformer_of_transformers,
)


class Converted(NamedTuple):
    """A state in a model's own names, and the naming that it came from.

    Attributes:
        title: What the user is told, e.g. ``'official SegFormer'``.
        state: Tensors by the model's names.
        prefix: What stood before the names in the file; what lies outside is not in
            the state.
        resized: (name, shape in the file, shape in the state) of tables that a
            converter of upstream has resized.
    """

    title: str
    state: State
    prefix: str = ''
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()


Reader = Callable[[Tensors, Target, str], Converted | None]


def conversions(target: Target, tensors: Tensors, where: str) -> Iterator[Converted]:
    """The states that a file may stand for, in the model's names.

    Args:
        target: The model.
        tensors: The file.
        where: The file, for messages.
    """
    site_map = _described(target.model)
    if site_map is not None:
        state = site_map.convert(target.model, dict(tensors))
        if state is not None:
            yield Converted(f'{type(site_map).__name__}.convert', state)
    for name in target.classes():
        for reader in READERS.get(name, ()):
            try:
                found = reader(tensors, target, where)
            except OF_SHAPES as error:
                raise misshapen(where, target.title, error) from None
            if found is not None:
                yield found
        if name in READERS:
            return
    root = library_of(target.core)
    if root == 'timm':
        yield from _of_timm(tensors, target, where)
    elif root == 'transformers':
        yield from _of_transformers(tensors, target, where)


def part_known(model: nn.Module) -> str | None:
    """The path of the first part of a model whose class is known here."""
    for path, module in model.named_modules():
        names = {class_name(cls) for cls in type(module).__mro__}
        if path and (names & FAMILY_CLASSES or any(map(is_known, names))):
            return path
    return None


def is_known(name: str) -> bool:
    """Whether a class, by package and name, has converters here."""
    return name in READERS or name in SPARE


def spare_of(target: Target) -> tuple[Spare, ...]:
    """Tensors that a model of this class, or a file for it, may have alone."""
    for name in target.classes():
        if name in SPARE:
            return SPARE[name]
    return ()


def may_lack(model: nn.Module, name: str) -> bool:
    """Whether files for the class of a model come without one of its tensors."""
    spares = spare_of(Target.of(model))
    return any(s.side != 'file' and re.search(s.pattern, name) for s in spares)


def _described(model: nn.Module) -> SiteMap | None:
    try:
        return find_site_map(model)
    except PETLError:
        return None


def _below(tensors: Tensors, stem: str, where: str) -> tuple[str, State] | None:
    """The path at which a name matches, and the tensors below it.

    Raises:
        WeightsError: There are several, none inside of another.
    """
    pattern = re.compile(rf'^(?P<prefix>(?:.*\.)?){stem}')
    found = {m['prefix'] for k in tensors if (m := pattern.match(k))}
    outer = [p for p in sorted(found) if not any(p.startswith(q) for q in found - {p})]
    if not outer:
        return None
    if len(outer) > 1:
        raise several_trunks(where, outer)
    prefix = outer[0]
    inside = {
        k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)
    }
    return prefix, inside


def _resnet(tensors: Tensors, target: Target, where: str) -> Converted | None:
    found = _below(tensors, r'layer1\.0\.conv1\.weight$', where)
    if found is None:
        return None
    state = convnets.resnet_to_mm(found[1], set(target.tensors))
    return Converted('torchvision or timm ResNet', state, found[0])


def _reader(
    title: str,
    stem: str,
    *steps: Callable[[Tensors], State],
) -> Reader:
    """A converter for files in which some name matches ``stem``."""

    def read(tensors: Tensors, target: Target, where: str) -> Converted | None:
        found = _below(tensors, stem, where)
        if found is None:
            return None
        prefix, state = found
        for step in steps:
            state = step(state)
        return Converted(title, state, prefix)

    return read


def _vit(step: Callable[[Tensors], State]) -> Reader:
    """A converter of all namings of a plain ViT that have a layout."""

    def read(tensors: Tensors, target: Target, where: str) -> Converted | None:
        found = _vit_names(tensors, where)
        return found and found._replace(state=step(found.state))

    return read


def _vit_names(tensors: Tensors, where: str) -> Converted | None:
    """A plain ViT in canonical names."""
    try:
        prefix = trunk_prefix(tensors, where)
        inside = {
            k.removeprefix(prefix): t
            for k, t in tensors.items()
            if k.startswith(prefix)
        }
        layout = find_layout(inside, where)
    except SeveralTrunksError:
        raise
    except WeightsError:
        return None
    if layout.family != 'vit':
        return None
    state = {k: entry.tensor for k, entry in layout.read(inside).items()}
    return Converted(layout.name, state, prefix)


def _beit(tensors: Tensors, target: Target, where: str) -> Converted | None:
    found = _beit_names(tensors, where)
    if found is None:
        return None
    state = official.beit_to_mm(found.state, set(target.tensors))
    return found._replace(state=state)


def _beit_names(tensors: Tensors, where: str) -> Converted | None:
    """A BEiT in its authors' names."""
    found = _below(tensors, r'blocks\.0\.attn\.qkv\.weight$', where)
    if found is not None:
        return Converted('official BEiT or MAE', found[1], found[0])
    stem = r'embeddings\.patch_embeddings\.projection\.weight$'
    found = _below(tensors, stem, where)
    if found is not None:
        return Converted('transformers BEiT', beit_of_transformers(found[1]), found[0])
    return None


FOREIGN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError)
"""How timm's filters fail on names that they were not made for."""


def _of_timm(tensors: Tensors, target: Target, where: str) -> Iterator[Converted]:
    """Through the filter that timm keeps beside the model."""
    model = target.core
    for found in _for_timm(tensors, target, where):
        if type(model).__name__ in FEATURE_LISTS:
            yield found
            return
        _refuse_lost_bias(found.state, target, where)
        state = _filtered(found.state, model)
        if state is not None:
            yield Converted(
                f"{found.title}, through timm's filter",
                state,
                found.prefix,
                _resampled(found.state, state, target, where),
            )


def _filtered(state: State, model: nn.Module) -> State | None:
    """What the filter in the module of a model's class gives, None where it fails."""
    modules = [sys.modules.get(cls.__module__) for cls in type(model).__mro__]
    found = (getattr(module, 'checkpoint_filter_fn', None) for module in modules)
    convert = next(filter(None, found), None)
    if convert is None:
        return None
    # The filters index, and some print.
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            return dict(convert(dict(state), model))
    except FOREIGN:
        return None


def _resampled(
    state: State, filtered: State, target: Target, where: str
) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
    """Tables that a filter of timm has resized.

    Raises:
        WeightsError: It has resized the kernel of the patches, too, of which it says
            nothing.
    """
    found = []
    for name, tensor in filtered.items():
        is_kernel = name.endswith('patch_embed.proj.weight')
        source = state.get(name)
        if source is None or not (is_kernel or is_table(name)):
            continue
        old, new = tuple(source.shape), tuple(tensor.shape)
        if is_kernel and len(old) == len(new) and old != new:
            sizes = [' x '.join(map(str, shape[2:])) for shape in (old, new)]
            raise WeightsError(
                f'{where} does not fit {target.title}: patch size {sizes[0]} in the '
                f'file, {sizes[1]} in the model'
            )
        if not torch.equal(source, tensor):
            found.append((name, old, new))
    return tuple(found)


def _for_timm(tensors: Tensors, target: Target, where: str) -> Iterator[Converted]:
    """States in names that the filter of the model may know."""
    name = type(target.core).__name__
    wants = set(target.tensors)
    if name in FEATURE_LISTS:
        yield Converted('timm', _flattened(tensors, wants))
        return
    if name == 'Beit':
        found = _beit_names(tensors, where)
        if found is not None:
            state = official.share_table(found.state, wants)
            yield found._replace(state=official.fit_bias(state, wants))
        return
    stem = r'embeddings\.patch_embeddings\.weight$'
    if name == 'Eva' and (found := _below(tensors, stem, where)) is not None:
        state = dinov3_of_transformers(found[1])
        yield Converted('transformers DINOv3', state, found[0])
        return
    # The filters know some paths themselves, and not those of training scripts.
    states = [('', dict(tensors))]
    found = _below(tensors, r'patch_embed\.proj\.weight$', where)
    if found is not None and found[0]:
        states.append(found)
    for prefix, state in states:
        if name == 'VisionTransformerDistilled':
            state = renamed(state, (r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma'))
        yield Converted('official names', state, prefix)


FEATURE_LISTS = ('FeatureListNet', 'FeatureDictNet')
"""What ``timm.create_model(..., features_only=True)`` makes of a ConvNet."""


def _flattened(tensors: Tensors, wants: set[str]) -> State:
    """The names of timm's feature lists: ``stages_0.x`` for ``stages.0.x``."""
    state: State = {}
    for name, tensor in tensors.items():
        parts = name.split('.')
        flat = [
            '.'.join(['_'.join(parts[:n]), *parts[n:]]) for n in range(1, len(parts))
        ]
        state[next((new for new in flat if new in wants), name)] = tensor
    return state


def _refuse_lost_bias(state: State, target: Target, where: str) -> None:
    """The filter of timm drops the bias of DINOv3 where the model has none for it."""
    if any(name.endswith('.attn.q_bias') for name in target.tensors):
        return
    if 'storage_tokens' not in state:
        return
    lost = [k for k, t in state.items() if k.endswith('attn.qkv.bias') and t.any()]
    if lost:
        raise WeightsError(
            f'{where}: {lost[0]} is not zero, and {target.title} has no such bias; '
            'build the model with qkv_bias=True'
        )


def _of_transformers(
    tensors: Tensors, target: Target, where: str
) -> Iterator[Converted]:
    """Through the loader of transformers, which knows the names of its releases."""
    model = target.core
    if not hasattr(type(model), 'from_pretrained'):
        return
    title, prefix = "transformers' own loader", ''
    is_dinov2 = type(model).__name__.startswith('Dinov2')
    found = _vit_names(tensors, where) if is_dinov2 else None
    if found is not None and found.title == 'timm ViT':
        title, prefix = f'official DINOv2, through {title}', found.prefix
        tensors = dinov2_to_transformers(found.state)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            loaded, info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=dict(tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                # Not that of the config, in which values would be rounded.
                dtype=torch.promote_types(model.dtype, torch.float32),
            )
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        line = str(error).strip().splitlines()
        raise WeightsError(
            f'{where}: transformers cannot load it into {target.title}: '
            f'{line[0] if line else type(error).__name__}'
        ) from error
    state = {k: t.detach() for k, t in loaded.state_dict().items()}
    for name in info['missing_keys']:
        state.pop(name, None)
    for name, *_ in info['mismatched_keys']:
        # Position tables keep their last names: ours are resized, others refused.
        state.pop(name, None)
        same = [t for k, t in tensors.items() if k.endswith(name)]
        if len(same) == 1:
            state[name] = same[0]
    for name in info['unexpected_keys']:
        state[name] = tensors[name] if name in tensors else torch.empty(0)
    yield Converted(title, state, prefix)


FAMILY_CLASSES = frozenset(
    {
        'mmpretrain.VisionTransformer',
        'mmpretrain.SwinTransformer',
        'mmdet.SwinTransformer',
        'mmseg.SwinTransformer',
        'mmaction.VisionTransformer',
        'mmaction.SwinTransformer3D',
        'timm.VisionTransformer',
        'timm.SwinTransformer',
    }
)
"""Classes that are filled by way of the canonical names of their family."""

PYRAMID_STEM = r'patch_embed1\.proj\.weight$'
SEGFORMER_STEM = r'(?:encoder\.block\.0\.0\.|stages\.0\.blocks\.0\.layernorm_before\.)'
TWINS_STEM = r'patch_embeds\.0\.proj\.weight$'
BEIT_READERS: tuple[Reader, ...] = (_beit,)

READERS: dict[str, tuple[Reader, ...]] = {
    'mmseg.MixVisionTransformer': (
        _reader('official SegFormer', PYRAMID_STEM, official.pyramid_to_mm),
        _reader(
            'transformers SegFormer',
            SEGFORMER_STEM,
            segformer_of_transformers,
            official.pyramid_to_mm,
        ),
    ),
    'mmdet.PyramidVisionTransformer': (
        _reader('official PVT', PYRAMID_STEM, official.pyramid_to_mm),
        _reader(
            'timm PVTv2',
            r'stages\.0\.blocks\.0\.attn\.q\.weight$',
            official.pvt_v2_of_timm,
            official.pyramid_to_mm,
        ),
    ),
    'mmseg.PCPVT': (_reader('official Twins', TWINS_STEM, official.twins_to_mmseg),),
    'mmpretrain.PCPVT': (
        _reader('official Twins', TWINS_STEM, official.twins_to_mmpretrain),
    ),
    'mmseg.MSCAN': (
        _reader(
            'official SegNeXt',
            r'patch_embed1\.proj\.0\.weight$',
            official.mscan_to_mmseg,
        ),
    ),
    'mmseg.BEiT': BEIT_READERS,
    'mmpretrain.BEiTViT': BEIT_READERS,
    'mmseg.VisionTransformer': (_vit(official.vit_to_mmseg),),
    'mmpretrain.DeiT3': (_vit(official.vit_to_mmpretrain),),
    'mmpretrain.DistilledVisionTransformer': (_vit(official.vit_to_mmpretrain),),
    'mmpretrain.ViTEVA02': (
        _reader(
            'official EVA-02',
            r'patch_embed\.proj\.weight$',
            official.eva02_to_mmpretrain,
        ),
    ),
    'mmpretrain.ViTSAM': (
        _reader(
            'official SAM', r'patch_embed\.proj\.weight$', official.sam_to_mmpretrain
        ),
    ),
    'mmpretrain.SwinTransformerV2': (
        _reader(
            'official Swin v2',
            r'patch_embed\.proj\.weight$',
            official.swin_v2_to_mmpretrain,
        ),
    ),
    'mmpretrain.ConvNeXt': (
        _reader(
            'official ConvNeXt',
            r'downsample_layers\.0\.0\.weight$',
            convnets.convnext_to_mmpretrain,
        ),
        _reader(
            'timm ConvNeXt',
            r'stem\.0\.weight$',
            convnets.convnext_of_timm,
            convnets.convnext_to_mmpretrain,
        ),
    ),
    **dict.fromkeys(
        ('mmpretrain.ResNet', 'mmdet.ResNet', 'mmseg.ResNet'),
        (_resnet,),
    ),
}
"""Converters by package and class; those of the nearest base class hold."""

OUTPUT = 'output norm, on one side alone'


def _outputs(pattern: str) -> Spare:
    return Spare(pattern, OUTPUT)


SPARE: dict[str, tuple[Spare, ...]] = {
    'mmseg.MAE': (
        Spare(
            r'\.relative_position_bias_table$',
            'table of relative positions, starts at 0',
            'model',
        ),
        Spare(
            r'^layers\.\d+\.gamma_[12]$',
            'layer scale, not in a file of pre-training',
            'model',
        ),
        _outputs(r'^ln[12]\.'),
    ),
    'mmseg.BEiT': (_outputs(r'^ln[12]\.'),),
    'mmpretrain.BEiTViT': (_outputs(r'^ln[12]\.'),),
    'mmseg.VisionTransformer': (
        _outputs(r'^(ln1|fc_norm)\.'),
        Spare(
            r'^patch_embed\.projection\.bias$',
            'bias of the patch embedding, which patch_bias=False leaves out',
            'file',
        ),
    ),
    'mmpretrain.DeiT3': (_outputs(r'^ln1\.'),),
    'mmpretrain.DistilledVisionTransformer': (_outputs(r'^(ln1|ln2)\.'),),
    'mmpretrain.ViTEVA02': (_outputs(r'^ln[12]\.'),),
    'mmpretrain.ConvNeXt': (_outputs(r'^norm\d\.'),),
    'mmpretrain.SwinTransformerV2': (_outputs(r'^norm\d\.'),),
    'mmpretrain.PCPVT': (_outputs(r'^norm_after_stage\d\.'),),
    'mmseg.PCPVT': (Spare(r'^norm_list\.', 'norm behind a stage, on one side alone'),),
    'mmdet.PyramidVisionTransformer': (
        Spare(r'^norm\.', OUTPUT, 'file'),
        Spare(r'^cls_token$', 'class token, which the model does not have', 'file'),
    ),
    'timm.Eva': (_outputs(r'^(fc_norm|norm)\.'),),
    'timm.Beit': (_outputs(r'^(fc_norm|norm)\.'),),
    'timm.VisionTransformerDistilled': (_outputs(r'^norm\.'),),
    'timm.ConvNeXt': (_outputs(r'^head\.norm\.'),),
    'timm.SwinTransformerV2': (_outputs(r'^norm\.'),),
    **dict.fromkeys(
        ('timm.FeatureListNet', 'timm.FeatureDictNet'),
        (Spare('', 'beyond the layers that the model keeps', 'file'),),
    ),
    'timm.Hiera': (_outputs(r'^(head\.)?norm\.'),),
}
"""Norms behind a trunk differ by task; nothing of the trunk itself is listed."""
