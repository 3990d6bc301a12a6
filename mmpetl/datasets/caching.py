"""Pictures decoded once: what a small training set allows."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dataset import Compose

from mmpetl.core import check_range
from mmpetl.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadOnce:
    """Runs its transforms once per picture and keeps the result for later epochs.

    The transforms must be the same in every epoch: reading, resizing. What they give is
    copied before it is handed on, so that later steps may write into it. Each loading
    process keeps its own pictures, for as long as it lives (``persistent_workers``).

    Args:
        transforms: Configs of the transforms, the first of which reads ``img_path``.
        max_images: Pictures kept at most; further ones are read every time.
        max_bytes: Bytes of pixels kept at most, 256 MiB by default.
    """

    def __init__(
        self,
        transforms: list[dict[str, Any]],
        max_images: int = 1000,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_range('LoadOnce', 'max_images', max_images, 0)
        check_range('LoadOnce', 'max_bytes', max_bytes, 0)
        self.transforms = Compose(transforms)
        self.max_images = max_images
        self.max_bytes = max_bytes
        self._kept: dict[str, dict[str, Any]] = {}
        self._bytes = 0

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """``results`` with ``img`` and what else the transforms add."""
        # A picture may be read from a mended copy; the list's name stays the same.
        key = results.get('listed_path', results['img_path'])
        kept = self._kept.get(key)
        if kept is None:
            before = set(results)
            made = self.transforms(dict(results))
            if made is None:
                return None
            kept = {k: v for k, v in made.items() if k not in before}
            size = sum(v.nbytes for v in kept.values() if isinstance(v, np.ndarray))
            room = self._bytes + size <= self.max_bytes
            if not room or len(self._kept) >= self.max_images:
                return made
            self._kept[key] = kept
            self._bytes += size
        return {**results, **{k: _copied(v) for k, v in kept.items()}}

    def __repr__(self) -> str:
        return (
            f'LoadOnce({len(self.transforms.transforms)} transforms, '
            f'max_images={self.max_images}, max_bytes={self.max_bytes})'
        )


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value
