"""Moving glyphs: short clips whose class is how things move, not what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .glyphs import Pose, colour_pair, fonts_for, glyph_mask, paint, place, to_picture


@dataclass(frozen=True)
class Shift:
    """How far a glyph has moved from where it would rest.

    Args:
        x: Rightwards, in spans (a span is what a clip of full speed crosses).
        y: Downwards, in spans.
        zoom: Natural logarithm of the change in size, times the speed.
        turn: Quarter turns, counter-clockwise.
        fade: 0 is visible, 1 gone.
    """

    x: float = 0.0
    y: float = 0.0
    zoom: float = 0.0
    turn: float = 0.0
    fade: float = 0.0

    def __sub__(self, start: Shift) -> Shift:
        """The way from ``start`` to here; how visible the glyph is stays."""
        return Shift(
            self.x - start.x,
            self.y - start.y,
            self.zoom - start.zoom,
            self.turn - start.turn,
            self.fade,
        )

    def __rmul__(self, factor: float) -> Shift:
        """The same way, ``factor`` times as far."""
        return Shift(
            factor * self.x,
            factor * self.y,
            factor * self.zoom,
            factor * self.turn,
            self.fade,
        )


Motion = Callable[[float], Shift]
"""Time in [0, 1] to where the glyph is by then."""


def _line(x: float, y: float) -> Motion:
    length = np.hypot(x, y)
    return lambda t: Shift(x=x / length * (t - 0.5), y=y / length * (t - 0.5))


def _wave(t: float, cycles: float) -> float:
    return float(np.sin(2 * np.pi * cycles * t))


def _orbit(sign: int) -> Motion:
    def shift(t: float) -> Shift:
        angle = 2 * np.pi * t
        return Shift(x=0.4 * np.cos(angle), y=-sign * 0.4 * np.sin(angle))

    return shift


MOTIONS: dict[str, Motion] = {
    'right': _line(1, 0),
    'left': _line(-1, 0),
    'up': _line(0, -1),
    'down': _line(0, 1),
    'right-up': _line(1, -1),
    'left-up': _line(-1, -1),
    'right-down': _line(1, 1),
    'left-down': _line(-1, 1),
    'turn-left': lambda t: Shift(turn=2.2 * (t - 0.5)),
    'turn-right': lambda t: Shift(turn=-2.2 * (t - 0.5)),
    'zoom-in': lambda t: Shift(zoom=1.2 * (t - 0.5)),
    'zoom-out': lambda t: Shift(zoom=-1.2 * (t - 0.5)),
    'fade-in': lambda t: Shift(fade=0.9 * (1 - t)),
    'fade-out': lambda t: Shift(fade=0.9 * t),
    'blink': lambda t: Shift(fade=0.45 + 0.45 * _wave(t, 2)),
    'shake': lambda t: Shift(x=0.3 * _wave(t, 2)),
    'hop': lambda t: Shift(y=0.3 * _wave(t, 2)),
    'orbit-left': _orbit(1),
    'orbit-right': _orbit(-1),
    'pulse': lambda t: Shift(zoom=0.6 * _wave(t, 1)),
    'nod': lambda t: Shift(turn=0.7 * _wave(t, 1)),
    'bounce': lambda t: Shift(y=0.5 - abs(_wave(t, 0.5))),
    'slide': lambda t: Shift(x=abs(_wave(t, 0.5)) - 0.5),
    'still': lambda t: Shift(),
}
"""The 24 upstream classes."""


def then(first: Motion, second: Motion) -> Motion:
    """One motion in the first half of a clip, another in the second.

    The turning point is where the glyph would rest, and both ways are a little
    shorter, so that two equal motions do not lead out of the picture.
    """

    def shift(t: float) -> Shift:
        if t < 0.5:
            return 0.7 * (first(2 * t) - first(1.0))
        return 0.7 * (second(2 * t - 1) - second(0.0))

    return shift


@dataclass(frozen=True)
class Actor:
    """A glyph and what it does."""

    glyph: str
    motion: Motion


def draw_clip(
    rng: np.random.Generator,
    actors: Sequence[Actor],
    frames: int,
    side: int,
    speed: tuple[float, float] = (0.6, 1.0),
) -> np.ndarray:
    """Draw a clip.

    Args:
        rng: Source of all randomness.
        actors: One or two; two start in different halves of the picture.
        frames: Length of the clip.
        side: Height and width, px.
        speed: Range of the factor on all movement, 1 crosses half the picture.

    Returns:
        (frames, side, side, 3) uint8 RGB.
    """
    ink, ground = colour_pair(rng)
    slope = np.linspace(-1, 1, side, dtype=np.float32) * rng.uniform(-20, 20)
    backdrop = np.empty((side, side, 3), np.float32)
    backdrop[:] = ground
    backdrop += (slope if rng.uniform() < 0.5 else slope[:, None])[..., None]
    clip = np.empty((frames, side, side, 3), np.float32)
    clip[:] = backdrop
    for index, actor in enumerate(actors):
        offset = 0.0 if len(actors) == 1 else 0.22 * (2 * index - 1)
        _act(rng, actor, clip, ink, offset, rng.uniform(*speed))
    clip += rng.normal(0, rng.uniform(0, 5), clip.shape)
    return to_picture(clip)


def _act(
    rng: np.random.Generator,
    actor: Actor,
    clip: np.ndarray,
    ink: np.ndarray,
    offset: float,
    speed: float,
) -> None:
    frames, side = clip.shape[:2]
    fonts = fonts_for(actor.glyph)
    mask = glyph_mask(actor.glyph, fonts[rng.integers(len(fonts))])
    x, y = side * (0.5 + rng.uniform(-0.08, 0.08, 2))
    x += side * offset
    size = side * rng.uniform(0.3, 0.45)
    tilt = rng.uniform(-20, 20)
    for index, frame in enumerate(clip):
        shift = actor.motion(index / (frames - 1))
        pose = Pose(
            x=x + shift.x * speed * side / 2,
            y=y + shift.y * speed * side / 2,
            size=size * np.exp(shift.zoom * speed),
            angle=tilt + 90 * shift.turn * speed,
        )
        paint(frame, place(mask, pose, side, side) * (1 - shift.fade), ink)


def save_clip(path: Path, clip: np.ndarray, fps: float = 15.0) -> None:
    """Write (T, H, W, 3) uint8 RGB as an mp4 (MPEG-4 part 2) file.

    Raises:
        OSError: OpenCV has no writer for it, or not all of it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = clip.shape[1:3]
    codec = cv2.VideoWriter_fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(path), codec, fps, (width, height))
    if not writer.isOpened():
        raise OSError(f'OpenCV cannot write mp4 video ({path})')
    for frame in clip:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    # A writer does not say that the disk is full.
    written = cv2.VideoCapture(str(path))
    count = int(written.get(cv2.CAP_PROP_FRAME_COUNT))
    written.release()
    if count != len(clip):
        raise OSError(f'could not write {path}')
