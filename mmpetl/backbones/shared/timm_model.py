"""What models of timm with sites share: input sizes, heads, what comes too late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor

from mmpetl.core import BackboneHost, PETLError, injection_of


class KeepsBlocks:
    """A model that upstream would cut, mixed in front of the foreign class."""

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Refused: sites, slots and the frozen base reach over all blocks."""
        raise PETLError(
            'prune_intermediate_layers would cut off blocks that have sites; prune '
            'before inject (features_only=True of timm.create_model does)'
        )


class TimmModel(KeepsBlocks, BackboneHost):
    """A model with a ``patch_embed``, mixed in front of the foreign class."""

    def fitted(self, x: Tensor) -> Tensor:
        """Images of a size that the patch embedding takes, padded where it pads."""
        embed = self.patch_embed
        size = tuple(x.shape[-2:])
        pads = [-n % p for n, p in zip(size, embed.patch_size, strict=True)]
        fixed = embed.img_size if embed.strict_img_size else None
        if fixed is not None and size != tuple(fixed):
            raise PETLError(
                f'the model takes images of {tuple(fixed)}, got {size}; call '
                'set_input_size, or build it with dynamic_img_size=True'
            )
        if embed.dynamic_img_pad:
            return F.pad(x, (0, pads[1], 0, pads[0])) if any(pads) else x
        if embed.img_size is not None and fixed is None and any(pads):
            raise PETLError(
                f'patches of {tuple(embed.patch_size)} do not divide images of {size}; '
                'pad or resize them (patch_embed.dynamic_img_pad=True pads)'
            )
        return x

    def resize_input(
        self,
        img_size: int | tuple[int, int] | None,
        patch_size: int | tuple[int, int] | None,
        resize: Callable[[], object],
        always: bool = False,
    ) -> None:
        """Run upstream's ``set_input_size``, after which its tables are the base.

        Args:
            img_size: What is asked for, None for what is there.
            patch_size: Likewise.
            resize: What changes the model.
            always: Whether tables may change though the size of images does not.

        Raises:
            PETLError: It would change a projection that has sites, or a table that a
                method trains.
        """
        if _differs(patch_size, self.patch_embed.patch_size):
            raise PETLError(
                'set_input_size changes the patch projection, which has sites; change '
                'patch_size before inject'
            )
        record = injection_of(self)[1]
        tables = (*record.site_map.positions, *record.site_map.position_biases)
        taken = [
            (slot, name)
            for slot, facts in record.slots.items()
            for name in sorted(facts.selected)
            if name.rpartition('.')[2] in tables
        ]
        if taken and (always or self.moves(img_size)):
            slot, name = taken[0]
            raise PETLError(
                f'slot {slot!r} trains {name}, which set_input_size resizes; '
                'call it before inject'
            )
        self.convert_base(resize)

    def moves(self, img_size: int | tuple[int, int] | None) -> bool:
        """Whether images of another size than the present one are asked for."""
        return _differs(img_size, self.patch_embed.img_size)

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Another head, which trains; the pooling stays, as the sites follow it."""
        if global_pool not in (None, self.global_pool):
            raise PETLError(
                f'reset_classifier would pool by {global_pool!r} where the sites stand '
                f'for {self.global_pool!r}; change global_pool before inject'
            )
        super().reset_classifier(num_classes)


def _differs(
    asked: int | tuple[int, int] | None, there: tuple[int, int] | None
) -> bool:
    """Whether a size is asked for that is not there."""
    return asked is not None and to_2tuple(asked) != there
