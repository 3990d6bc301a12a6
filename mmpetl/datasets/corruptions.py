"""Corruptions of pictures at five severities: a shifted set from any test set.

Kinds and the idea of five severities follow Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
https://arxiv.org/abs/1903.12261; the constants are ours, relative to the picture's
side, so that small pictures are corrupted as much as large ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mmpetl.core import PETLError, suggest
from mmpetl.registry import TRANSFORMS

SEVERITIES = (1, 2, 3, 4, 5)


def _gaussian_noise(
    image: np.ndarray, std: float, rng: np.random.Generator
) -> np.ndarray:
    """Normal noise on every value; ``std`` is a share of the full range."""
    return image + rng.normal(0, 255 * std, image.shape)


def _blur(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur; its radius is ``share`` of the shorter side."""
    radius = share * min(image.shape[:2])
    picture = Image.fromarray(image.astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float64)


def _contrast(image: np.ndarray, keep: float, rng: np.random.Generator) -> np.ndarray:
    """Draw every value towards the picture's mean; ``keep`` of the distance stays."""
    mean = image.mean((0, 1), keepdims=True)
    return mean + keep * (image - mean)


def _brightness(
    image: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Add ``share`` of the full range to every value."""
    return image + 255 * share


def _rotation(
    image: np.ndarray, degrees: float, rng: np.random.Generator
) -> np.ndarray:
    """Turn by ``degrees``, to a side that chance picks; the rim is repeated."""
    pad = int(np.ceil(0.3 * max(image.shape[:2])))
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
    angle = degrees * rng.choice((-1, 1))
    turned = Image.fromarray(wide.astype(np.uint8)).rotate(
        float(angle), Image.Resampling.BILINEAR
    )
    height, width = image.shape[:2]
    return np.asarray(turned, np.float64)[pad : pad + height, pad : pad + width]


def _occlusion(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A square in the picture's mean colour hides ``share`` of the shorter side."""
    height, width = image.shape[:2]
    side = max(1, round(share * min(height, width)))
    top = rng.integers(height - side + 1)
    left = rng.integers(width - side + 1)
    out = image.copy()
    out[top : top + side, left : left + side] = image.mean((0, 1))
    return out


Corrupt = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

CORRUPTIONS: Mapping[str, tuple[Corrupt, tuple[float, ...]]] = {
    'gaussian_noise': (_gaussian_noise, (0.06, 0.12, 0.18, 0.26, 0.38)),
    'blur': (_blur, (0.015, 0.03, 0.045, 0.065, 0.09)),
    'contrast': (_contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),
    'brightness': (_brightness, (0.12, 0.22, 0.32, 0.42, 0.52)),
    'rotation': (_rotation, (8, 15, 22, 30, 40)),
    'occlusion': (_occlusion, (0.2, 0.3, 0.4, 0.5, 0.6)),
}
"""Name to function and its strength at severity 1 to 5."""


def check_corruption(kind: str, severity: int) -> None:
    """Raise PETLError unless there is such a corruption."""
    if kind not in CORRUPTIONS:
        raise PETLError(
            f'unknown corruption {kind!r}.{suggest(kind, CORRUPTIONS)} There are: '
            f'{", ".join(CORRUPTIONS)}'
        )
    if severity not in SEVERITIES:
        raise PETLError(f'a corruption has severity 1 to 5, got {severity!r}')


def corrupt(image: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    """A corrupted copy of a picture.

    The same picture, kind, severity and seed give the same result on every machine.

    Args:
        image: (H, W, 3), uint8; the order of the channels does not matter.
        kind: A key of :data:`CORRUPTIONS`.
        severity: 1, hardly visible, to 5.
        seed: Another seed, other noise.

    Returns:
        (H, W, 3), uint8.

    Raises:
        PETLError: Unknown kind or severity, or no such picture.
    """
    check_corruption(kind, severity)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise PETLError(
            f'a corruption takes pictures (H, W, 3) of uint8, got '
            f'{tuple(image.shape)} of {image.dtype}; put it in front of normalisation'
        )
    # By content, so that neither order nor place of the files matters.
    content = zlib.crc32(np.ascontiguousarray(image).tobytes())
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), severity, content))
    function, levels = CORRUPTIONS[kind]
    out = function(image.astype(np.float64), levels[severity - 1], rng)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class Corruption:
    """Corrupt ``results['img']``; stands right behind the reading of the file.

    Args:
        kind: A key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: Seed of noise, places and directions.
    """

    def __init__(self, kind: str, severity: int, seed: int = 0) -> None:
        check_corruption(kind, severity)
        self.kind = kind
        self.severity = severity
        self.seed = seed

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results['img'] = corrupt(results['img'], self.kind, self.severity, self.seed)
        return results

    def __repr__(self) -> str:
        return f'Corruption(kind={self.kind!r}, severity={self.severity})'
