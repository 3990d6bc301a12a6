"""The map of a model that no file describes: its layers are its sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.errors import PETLError
from mmpetl.core.leaves import (
    AttentionLeaf,
    ConvLeaf,
    GroupedLeaf,
    LeafHost,
    LinearLeaf,
    PointwiseLeaf,
    foreign_class,
    layer_affine,
    leaf_of,
    pads_itself,
    swap_leaves,
    swap_root,
    unswap,
)
from mmpetl.core.patterns import in_short
from mmpetl.core.role import Kind, Place, Role
from mmpetl.core.site import Site
from mmpetl.core.sitemap import CONVOLUTIONS, SiteMap, is_below, is_norm, norm_family

HEADS = ('classifier', 'fc', 'head', 'head_dist', 'heads')
"""Names of parts that are task heads, besides those that end in ``_head``."""

POSITIONS = ('pos_embed', 'position_embedding', 'positional_embedding')
POSITION_BIASES = ('rel_pos', 'relative_position', 'attention_bias')
TOKENS = ('cls_token', 'class_token', 'dist_token', 'mask_token', 'reg_token')
TOKENS += ('register_tokens', 'class_embedding')
SCALES = ('gamma', 'layer_scale', 'lambda', 'ls1', 'ls2')

PROJECTIONS = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, *CONVOLUTIONS)


class LeafMap(SiteMap):
    """Layers of any model as sites, and what can be told of its parameters.

    Blocks are the members of a ``ModuleList`` or ``Sequential`` whose members have one
    class, which occurs twice or more, and hold two projections or more each. A head is
    what the model itself says (timm's ``default_cfg``), else its parts with a name of
    :data:`HEADS`.

    Args:
        model: The model, swapped or not.
    """

    own_forward = True

    def __init__(self, model: nn.Module) -> None:
        self.host = foreign_class(model)
        self.head = tuple(_heads(model))
        self.places: tuple[Site, ...] = ()

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for path, block, _ in _blocks(backbone):
            yield path, block

    def sites(self, backbone: nn.Module) -> list[Site]:
        blocks = _blocks(backbone)
        sites: list[Site] = []
        for path, module, leaf in layers_of(backbone):
            if isinstance(leaf, str) or self.in_head(path):
                continue
            block, stage = _block_of(path, blocks)
            facts = {'block': block, 'stage': stage, 'num_blocks': len(blocks)}
            sites += _sites_of(path, module, leaf, facts)
        return [*sites, *self.places]

    def block_of(self, backbone: nn.Module, path: str) -> dict[str, Any]:
        """Block and stage that a module lies in, as fields of a site."""
        blocks = _blocks(backbone)
        block, stage = _block_of(path, blocks)
        return {'block': block, 'stage': stage, 'num_blocks': len(blocks)}

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        return {}

    def affine(self, backbone: nn.Module, site: Site) -> Affine:
        if site in self.places:
            raise PETLError(
                f'{site} is a place by name and no affine map, so nothing can be read '
                'from it or folded into it'
            )
        found = layer_affine(str(site), backbone.get_submodule(site.host), site.kind)
        self._check_tied(backbone, site)
        return found

    def _check_tied(self, backbone: nn.Module, site: Site) -> None:
        """Refuse a parameter that another module owns too: both would change."""
        own = {id(p) for p in backbone.get_submodule(site.host).parameters()}
        for path, module in backbone.named_modules():
            tied = any(id(p) in own for p in module._parameters.values())
            if tied and not is_below(path, site.host):
                raise PETLError(
                    f'{site.host} shares its weight with {path}, so nothing can be '
                    'folded into it for one of them; untie them first, or export the '
                    'delta'
                )

    def roles(self, backbone: nn.Module) -> list[Role]:
        owners = dict(backbone.named_modules())
        blocks = _blocks(backbone)
        last = max((stage for _, _, stage in blocks), default=0)
        roles, seen = [], -1
        for name, param in backbone.named_parameters():
            if 'petl' in name.split('.'):
                continue
            path = name.rpartition('.')[0]
            block, stage = _block_of(name, blocks)
            place: Place = ''
            if self.in_head(name):
                place = 'head'
            elif block is not None:
                seen, place = max(seen, stage), 'block'
            elif seen >= 0:  # behind a block, by order of registration
                place, stage = ('merging', seen) if seen < last else ('out', last)
            kind = _kind_of(name, param, owners[path], place, path in _paths(blocks))
            part = ''
            if kind in ('projection', 'norm', 'inner_norm', 'final_norm', 'head'):
                part = 'bias' if _is_bias(name, param) else 'weight'
            norm = norm_family(owners[path]) if 'norm' in kind else ''
            shape = tuple(param.shape)
            roles.append(Role(name, shape, kind, part, place, block, stage, norm))
        return roles

    def check(self, backbone: nn.Module) -> None:
        """Any model will do."""

    def settle(self, backbone: nn.Module) -> None:
        places = {site.host: site.channels_first for site in self.places}
        swap_leaves(backbone, places)

    def swap(self, backbone: nn.Module) -> None:
        swap_root(backbone)

    def unswap(self, backbone: nn.Module) -> None:
        unswap(backbone.modules())


# -------------------------------------------------------------------- layers


def layers_of(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, type[LeafHost] | str]]:
    """Path and module of every layer, and what runs its site, or why nothing does."""
    inside: str | None = None
    for path, module in model.named_modules():
        if 'petl' in path.split('.') or module is model:
            continue
        if inside is not None and is_below(path, inside):
            if isinstance(module, nn.Linear):
                yield (
                    path,
                    module,
                    f'{inside} reads its weight and never calls it; name {inside}',
                )
            continue
        leaf = leaf_of(module)
        if leaf:
            yield path, module, leaf
            inside = path if isinstance(module, nn.MultiheadAttention) else None


def layer_facts(module: nn.Module) -> str:
    """Class and sizes of a layer: ``Linear 768->2304``, ``Conv2d 64->64 3x3``."""
    name = foreign_class(module).__name__
    if isinstance(module, nn.Linear):
        return f'{name} {module.in_features}->{module.out_features}'
    if isinstance(module, nn.MultiheadAttention):
        return f'{name} {module.embed_dim}, {module.num_heads} heads'
    if hasattr(module, 'kernel_size'):
        kernel = 'x'.join(map(str, module.kernel_size))
        groups = f' groups={module.groups}' if module.groups > 1 else ''
        return f'{name} {module.in_channels}->{module.out_channels} {kernel}{groups}'
    weight = module._parameters.get('weight')
    return name if weight is None else f'{name} {len(weight)}'


def layer_rows(model: nn.Module) -> list[tuple[str, str, int]]:
    """Every layer, grouped: path in short, class with sizes and remarks, how many."""
    site_map = LeafMap(model)
    facts = {}
    for path, module, leaf in layers_of(model):
        remark = ''
        if isinstance(leaf, str):
            where, _, rest = leaf.partition('; name ')
            remark = '  (not by itself: its MultiheadAttention)' if rest else ''
            remark = remark or f'  (no: {where})'
        elif site_map.in_head(path):
            remark = '  (head)'
        facts[path] = layer_facts(module) + remark
    return in_short(facts, facts)


def _sites_of(
    path: str, module: nn.Module, leaf: type[LeafHost], facts: dict[str, Any]
) -> list[Site]:
    if leaf is AttentionLeaf:
        d, heads = module.embed_dim, module.num_heads
        rows = ('attn.qkv', 3 * d), *((f'attn.{k}', d) for k in ('q', 'k', 'v', 'proj'))
        return [Site(k, path, d, out, num_heads=heads, **facts) for k, out in rows]
    if leaf is LinearLeaf:
        widths = module.in_features, module.out_features
        return [Site('layer.linear', path, *widths, **facts)]
    if leaf is PointwiseLeaf:
        widths = module.in_channels, module.out_channels
        return [Site('layer.linear', path, *widths, **facts)]
    if leaf in (ConvLeaf, GroupedLeaf):
        seen = module.weight[0].numel()
        kernel = tuple(module.kernel_size)
        pads = (0,) * len(kernel) if pads_itself(module) else tuple(module.padding)
        more = {'kernel': kernel, 'stride': tuple(module.stride), 'padding': pads}
        more['dilation'] = tuple(module.dilation)
        kind = cast(type[ConvLeaf], leaf).kind
        return [Site(kind, path, seen, module.out_channels, **more, **facts)]
    width = len(module.weight)
    return [Site('layer.norm', path, width, width, **facts)]


# --------------------------------------------------------------------- blocks

Blocks = list[tuple[str, nn.Module, int]]


def _blocks(model: nn.Module) -> Blocks:
    """Path, module and stage of every block, in the order of registration."""
    lists = [
        (path, module, _members(module))
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    counts = Counter(
        foreign_class(part)
        for _, _, members in lists
        if all(map(_is_block, members))
        for part in members
    )
    # A stage may hold a single block of a class that others repeat.
    found = [
        (path, module)
        for path, module, members in lists
        if members and counts[foreign_class(members[0])] > 1
    ]
    # Of lists inside of lists the inner ones: stages hold blocks.
    paths = [path for path, _ in found]
    inner = [
        (path, module)
        for path, module in found
        if not any(is_below(other, path) or not path for other in set(paths) - {path})
    ]
    return [
        (f'{path}.{name}'.lstrip('.'), child, stage)
        for stage, (path, module) in enumerate(inner)
        for name, child in module._modules.items()
        if name != 'petl'
    ]


def _members(module: nn.Module) -> list[nn.Module]:
    """What a list holds, where all of it is of one class."""
    members = [part for name, part in module._modules.items() if name != 'petl']
    alike = len({foreign_class(part) for part in members}) == 1
    return members if alike else []


def _is_block(module: nn.Module) -> bool:
    """Whether a module, no layer itself, holds two projections or more."""
    if isinstance(module, PROJECTIONS):
        return False
    return sum(isinstance(part, PROJECTIONS) for part in module.modules()) > 1


def _paths(blocks: Blocks) -> set[str]:
    return {path for path, _, _ in blocks}


def _block_of(name: str, blocks: Blocks) -> tuple[int | None, int | None]:
    for i, (path, _, stage) in enumerate(blocks):
        if is_below(name, path):
            return i, stage
    return None, None


# ---------------------------------------------------------------------- roles


def _heads(model: nn.Module) -> list[str]:
    """Paths of the task heads of a model that hold parameters."""
    names: tuple[str, ...] = ()
    for path, module in model.named_modules():
        config = getattr(module, 'default_cfg', None)
        said = config.get('classifier') if isinstance(config, Mapping) else None
        said = (said,) if isinstance(said, str) else tuple(said or ())
        names += tuple(f'{path}.{name}'.lstrip('.') for name in said)
    if not names:
        names = tuple(
            name
            for name, _ in model.named_children()
            if name in HEADS or name.endswith(('_head', '_heads'))
        )
    parts = dict(model.named_modules())
    return [n for n in names if n in parts and any(True for _ in parts[n].parameters())]


def _kind_of(
    name: str, param: Tensor, owner: nn.Module, place: Place, at_block: bool
) -> Kind:
    last = name.rpartition('.')[2]
    if place == 'head':
        return 'head'
    if is_norm(owner) and param.ndim == 1:
        return 'final_norm' if place == 'out' else 'norm'
    if isinstance(owner, PROJECTIONS) and not at_block:
        return 'projection'
    tests: tuple[tuple[Kind, tuple[str, ...], Callable[[str], bool]], ...] = (
        ('position', POSITIONS, last.__contains__),
        ('position_bias', POSITION_BIASES, last.__contains__),
        ('token', TOKENS, last.startswith),
        ('scale', SCALES, last.startswith),
    )
    where = name.rpartition('.')[0]
    if isinstance(owner, nn.Embedding):
        last = where.rpartition('.')[2]
        tests = tuple((k, w, last.__contains__) for k, w, _ in tests[:1])
    for kind, words, test in tests:
        if any(test(word) for word in words):
            return kind
    return 'projection' if last == 'weight' or _is_bias(name, param) else 'other'


def _is_bias(name: str, param: Tensor) -> bool:
    """Whether a parameter is an additive vector: ``bias``, ``q_bias``, ``bias_k``."""
    last = name.rpartition('.')[2]
    named = last.endswith('_bias') or last.startswith('bias_')
    return last == 'bias' or (named and param.squeeze().ndim == 1)
