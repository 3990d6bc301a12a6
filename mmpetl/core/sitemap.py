"""Site maps: what one backbone class offers, and how its instances are swapped."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from mmpetl.core.affine import Affine
from mmpetl.core.errors import PETLError
from mmpetl.core.host import BackboneHost, BlockHost
from mmpetl.core.site import Site
from mmpetl.registry import BACKBONES


class SiteMap:
    """Base of the descriptions in ``mmpetl/backbones``, one file per backbone class.

    A description names the foreign class it serves, gives the swapped classes, and
    lists the sites.

    Attributes:
        host: The foreign backbone class.
        host_block: The foreign block class.
        head: Path prefixes of task heads inside of the backbone; they always train.
        swapped: Subclass of ``(BackboneHost, host)``.
        swapped_block: Subclass of ``(BlockHost, host_block)``.
    """

    host: type[nn.Module]
    host_block: type[nn.Module]
    head: tuple[str, ...] = ()
    swapped: type[BackboneHost]
    swapped_block: type[BlockHost]

    def example(self) -> nn.Module:
        """An instance of the size that papers use, for the support grid and counts."""
        raise NotImplementedError

    def core(self, backbone: nn.Module) -> nn.Module:
        """The module that holds the blocks; a wrapper returns what it wraps."""
        return backbone

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of every block, in the order of the forward pass."""
        raise NotImplementedError

    def sites(self, backbone: nn.Module) -> list[Site]:
        """Every site of this backbone, in the order of the forward pass."""
        raise NotImplementedError

    def ends(self, backbone: nn.Module) -> dict[str, nn.Module]:
        """Modules behind the sites that lie outside of blocks, by :attr:`Site.key`."""
        raise NotImplementedError

    def affine(self, backbone: nn.Module, site: Site) -> Affine:
        """The base weights behind a site of a swapped backbone.

        Raises:
            PETLError: The site is no affine map.
        """
        found = None
        if site.block is not None:
            found = backbone.get_submodule(site.host).affine(str(site), site.kind)
        else:
            module = self.ends(backbone).get(site.key)
            if getattr(module, 'weight', None) is not None:
                found = Affine.of(str(site), module.weight, module.bias)
        if found is None:
            raise PETLError(
                f'{site} is no affine map, so nothing can be folded into it'
            )
        return found

    def check(self, backbone: nn.Module) -> None:
        """Refuse variants of the class whose forward pass differs.

        Called before anything else is asked or changed.
        """

    def swap(self, backbone: nn.Module) -> None:
        """Change the classes of the backbone and its blocks."""
        for path, block in self.blocks(backbone):
            if type(block) is not self.host_block:
                raise PETLError(
                    f'{path} is a {type(block).__name__}; the site map of '
                    f'{self.host.__name__} describes blocks of class '
                    f'{self.host_block.__name__}'
                )
        for _, block in self.blocks(backbone):
            block.__class__ = self.swapped_block
        backbone.__class__ = self.swapped

    def unswap(self, backbone: nn.Module) -> None:
        """Give every instance its own class back."""
        for _, block in self.blocks(backbone):
            block.__class__ = self.host_block
        backbone.__class__ = self.host


def block_sites(
    host: str, dims: int, mlp_dims: int, *, windowed: bool = False, **facts: Any
) -> list[Site]:
    """The sites of one block, in the order of its forward pass.

    Args:
        host: Path of the block.
        dims: Width of the stream.
        mlp_dims: Hidden width of the feed-forward network.
        windowed: Whether attention runs in windows, which have no grid.
        facts: Further fields of :class:`Site`, the same for all.
    """
    d, m = dims, mlp_dims
    inside = not windowed
    layout = (
        ('tokens', d, d, True),
        ('block', d, d, True),
        ('norm1', d, d, True),
        ('attn', d, d, True),
        ('attn.qkv', d, 3 * d, inside),
        ('attn.q', d, d, inside),
        ('attn.k', d, d, inside),
        ('attn.v', d, d, inside),
        ('attn.core', d, d, False),
        ('attn.proj', d, d, inside),
        ('attn.branch', d, d, True),
        ('attn.skip', d, d, True),
        ('attn.sum', d, d, True),
        ('norm2', d, d, True),
        ('ffn', d, d, True),
        ('ffn.fc1', d, m, True),
        ('ffn.fc2', m, d, True),
        ('ffn.branch', d, d, True),
        ('ffn.skip', d, d, True),
        ('ffn.sum', d, d, True),
    )
    return [
        Site(kind, host, i, o, has_grid=grid, mlp_dims=m, **facts)
        for kind, i, o, grid in layout
    ]


def _load_descriptions(backbone: nn.Module) -> None:
    """Import the files whose name starts with a package the backbone comes from.

    ``mmpretrain_vit.py`` is read when an mmpretrain backbone asks, and not before:
    importing an OpenMMLab package takes seconds.
    """
    package = importlib.import_module('mmpetl.backbones')
    roots = {cls.__module__.partition('.')[0] for cls in type(backbone).__mro__}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.partition('_')[0] in roots & set(sys.modules):
            importlib.import_module(f'mmpetl.backbones.{info.name}')


def find_site_map(backbone: nn.Module) -> SiteMap:
    """The site map that describes a backbone.

    Raises:
        PETLError: No file of ``mmpetl/backbones`` describes its class.
    """
    _load_descriptions(backbone)
    maps = [cls() for cls in dict.fromkeys(BACKBONES.module_dict.values())]
    for site_map in maps:
        if type(backbone) in (site_map.host, getattr(site_map, 'swapped', None)):
            return site_map
    for site_map in maps:
        if isinstance(backbone, site_map.host):
            raise PETLError(
                f'{type(backbone).__name__} is a subclass of '
                f'{site_map.host.__module__}.{site_map.host.__name__}, whose forward '
                'pass may differ; describe it in a file of its own in mmpetl/backbones'
            )
    known = ', '.join(sorted({m.host.__name__ for m in maps})) or 'none of its package'
    raise PETLError(
        f'no site map for {type(backbone).__module__}.{type(backbone).__name__} '
        f'(described here: {known}); CONTRIBUTING.md shows how to add one file to '
        'mmpetl/backbones'
    )
