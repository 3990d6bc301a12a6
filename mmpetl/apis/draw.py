"""Pictures and videos with predictions drawn on them."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from functools import cache
from math import isnan
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmpetl.apis.predict import Box, Prediction, Segmentation
from mmpetl.compat.pictures import eight_bits
from mmpetl.core import PETLError
from mmpetl.core.boundary import regular_file
from mmpetl.core.part_files import whole_file
from mmpetl.datasets.walk import check_utf8

SHORT_SIDE = 360
"""Smaller inputs are enlarged until text beside them can be read."""
LONG_SIDE = 8192
"""And only so far, whatever their form."""
INK, PAPER, BAR = (25, 25, 25), (255, 255, 255), (70, 120, 190)


def draw_image(
    image: str | os.PathLike, predictions: Sequence[Prediction], out: str | os.PathLike
) -> Path:
    """The image with its classes, their scores and bars below it."""
    picture, _ = _open(image)
    canvas = _below(picture, _ranking_height(picture.width, len(predictions)))
    _ranking(canvas, predictions, picture.height)
    return _save(canvas, out)


def draw_video(
    video: str | os.PathLike, predictions: Sequence[Prediction], out: str | os.PathLike
) -> Path:
    """The video as mp4 with its classes and scores below every frame.

    Raises:
        PETLError: No frame can be read, no writer exists, or a path is no UTF-8.
    """
    import cv2

    check_utf8(video)
    check_utf8(out)
    reader = cv2.VideoCapture(str(video))
    fps = reader.get(cv2.CAP_PROP_FPS) or 25.0
    out = Path(out)
    if out.suffix.lower() != '.mp4':
        raise PETLError(f'{out} cannot be written: videos are written as .mp4')
    out.parent.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    with whole_file(out, '.mp4') as part:
        while True:
            there, frame = reader.read()
            if not there:
                break
            picture, _ = _enlarge(Image.fromarray(frame[..., ::-1]))
            height = _ranking_height(picture.width, len(predictions))
            canvas = _below(picture, height + (picture.height + height) % 2)
            _ranking(canvas, predictions, picture.height)
            if writer is None:
                codec = cv2.VideoWriter_fourcc(*'mp4v')
                writer = cv2.VideoWriter(str(part), codec, fps, canvas.size)
                if not writer.isOpened():
                    raise PETLError(f'OpenCV cannot write {out}; choose another place')
            writer.write(np.ascontiguousarray(np.asarray(canvas)[..., ::-1]))
            count += 1
        reader.release()
        if writer is None:
            raise PETLError(f'no frame of {video} can be read; the file is damaged')
        writer.release()
    return out


def draw_segmentation(
    image: str | os.PathLike,
    result: Segmentation,
    out: str | os.PathLike,
    opacity: float = 0.6,
    legend: int = 15,
) -> Path:
    """The image under the classes' colours, and a legend with each class's share."""
    picture = with_segments(image, result, opacity)
    colours = _colours_of(result)
    entries = [(k, v) for k, v in result.shares().items() if k < len(colours)][:legend]
    size = _text_size(picture.width)
    font, row = _font(size), round(size * 1.6)
    texts = [f'{result.classes[k]}  {100 * v:.1f}%' for k, v in entries]
    width = max((int(font.getlength(t)) for t in texts), default=0) + 3 * row
    height = max(picture.height, row * len(entries) + row)
    canvas = Image.new('RGB', (picture.width + width, height), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    left = picture.width + row // 2
    for i, ((label, _), text) in enumerate(zip(entries, texts, strict=True)):
        top = row // 2 + i * row
        swatch = (left, top, left + size, top + size)
        fill = tuple(int(c) for c in colours[label])
        draw.rectangle(swatch, fill=fill, outline=INK)
        draw.text((left + row, top + size / 2), text, INK, font, anchor='lm')
    return _save(canvas, out)


def with_segments(
    image: str | os.PathLike, result: Segmentation, opacity: float = 0.6
) -> Image.Image:
    """The image under the classes' colours; pixels of no class stay as they are."""
    picture, factor = _open(image)
    colours = _colours_of(result)
    labels = result.labels.repeat(factor, 0).repeat(factor, 1)
    known = labels < len(colours)
    tint = colours[np.where(known, labels, 0)]
    mixed = (1 - opacity) * np.asarray(picture) + opacity * tint
    mixed = np.where(known[..., None], mixed, np.asarray(picture))
    return Image.fromarray(mixed.round().astype(np.uint8))


def _colours_of(result: Segmentation) -> np.ndarray:
    count = len(result.classes)
    return np.asarray([_colour(i, result.palette) for i in range(count)], np.float64)


def draw_detection(
    image: str | os.PathLike,
    boxes: Sequence[Box],
    out: str | os.PathLike,
    palette: Sequence[Sequence[int]] | None = None,
) -> Path:
    """The image with boxes, names and scores, and masks where there are any."""
    return _save(with_boxes(image, boxes, palette), out)


def with_boxes(
    image: str | os.PathLike,
    boxes: Sequence[Box],
    palette: Sequence[Sequence[int]] | None = None,
    side: int | None = None,
) -> Image.Image:
    """See `draw_detection`; boxes whose score is NaN bear their name alone.

    Args:
        image: File.
        boxes: The best first.
        palette: Colours of classes.
        side: Longer side of what is drawn, px, so that text is read at that size;
            None leaves the picture's own, enlarged where it is small.
    """
    picture, factor = _open(image)
    pixels = np.asarray(picture).astype(np.float64)
    for box in reversed(boxes):
        if box.mask is not None:
            mask = box.mask.astype(bool).repeat(factor, 0).repeat(factor, 1)
            colour = np.asarray(_colour(box.label, palette), np.float64)
            pixels[mask] = 0.55 * pixels[mask] + 0.45 * colour
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    scale: float = factor
    if side is not None:
        share = side / max(canvas.size)
        scale *= share
        canvas = canvas.resize([max(1, round(share * n)) for n in canvas.size])
    draw = ImageDraw.Draw(canvas)
    size = max(11, _text_size(canvas.width) * 3 // 4)
    font = _font(size)
    line = max(2, size // 8)
    for box in reversed(boxes):  # the best on top
        colour = _colour(box.label, palette)
        x0, y0, x1, y1 = (scale * c for c in box.corners)
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=line)
        text = box.name if isnan(box.score) else f'{box.name} {box.score:.2f}'
        width, height = font.getlength(text) + size * 0.6, size * 1.35
        # Above the box, or inside where the picture ends; never beyond the right edge.
        top = y0 - height if y0 >= height else y0
        left = max(0, min(x0, canvas.width - width))
        draw.rectangle((left, top, left + width, top + height), fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        at = (left + size * 0.3, top + height / 2)
        draw.text(at, text, INK if bright else PAPER, font, anchor='lm')
    return canvas


def _open(path: str | os.PathLike) -> tuple[Image.Image, int]:
    try:
        with Image.open(regular_file(path, 'picture')) as file:
            # Models see pictures as their EXIF turns them, and so do boxes and masks.
            return _enlarge(ImageOps.exif_transpose(eight_bits(file)).convert('RGB'))
    except FileNotFoundError:
        raise PETLError(f'there is no picture {path}') from None
    except PETLError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise PETLError(f'cannot read {path}: {error}') from None


def _enlarge(picture: Image.Image) -> tuple[Image.Image, int]:
    """The picture, each pixel ``factor`` x ``factor``, and the factor."""
    factor = -(-SHORT_SIDE // min(picture.size))
    # A picture of one row of pixels would become one of gigabytes.
    factor = max(1, min(factor, LONG_SIDE // max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST), factor


def _text_size(width: int) -> int:
    return max(14, min(36, width // 24))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which MMEngine's matplotlib brings along: Latin, Greek, Cyrillic."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(str(path), size)


def _colour(
    label: int, palette: Sequence[Sequence[int]] | None = None
) -> tuple[int, int, int]:
    """The palette's colour, or one of evenly spread hues."""
    if palette is not None and label < len(palette):
        return tuple(int(c) for c in palette[label])
    hue = (label * 0.61803398875) % 1.0  # golden ratio: neighbours differ
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 0.9))


def colours(count: int) -> list[list[int]]:
    """RGB triples of ``count`` classes, of evenly spread hues."""
    return [list(_colour(i)) for i in range(count)]


def _below(picture: Image.Image, height: int) -> Image.Image:
    canvas = Image.new('RGB', (picture.width, picture.height + height), PAPER)
    canvas.paste(picture, (0, 0))
    return canvas


def _ranking_height(width: int, count: int) -> int:
    row = round(_text_size(width) * 1.6)
    return row * count + row // 2


def _ranking(canvas: Image.Image, predictions: Sequence[Prediction], top: int) -> None:
    """Rows of name, bar and score, from ``top`` on."""
    draw = ImageDraw.Draw(canvas)
    size = _text_size(canvas.width)
    font, row, gap = _font(size), round(size * 1.6), size // 2
    number = font.getlength('100.0%')
    names = canvas.width * 0.5
    start, stop = names + gap, canvas.width - number - 2 * gap
    for i, item in enumerate(predictions):
        middle = top + row // 4 + row * (i + 0.5)
        draw.text((gap, middle), _fit(item.name, font, names - gap), INK, font, 'lm')
        bar = (start, middle - size * 0.3, start, middle + size * 0.3)
        end = start + (stop - start) * min(1.0, max(0.0, item.score))
        draw.rectangle((*bar[:2], end, bar[3]), fill=BAR)
        score = f'{100 * item.score:.1f}%'
        draw.text((canvas.width - gap, middle), score, INK, font, 'rm')


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'{text}…') > width:
        text = text[:-1]
    return f'{text}…'


def _save(canvas: Image.Image, out: str | os.PathLike) -> Path:
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out, out.suffix) as part:
            canvas.save(part)
    except (OSError, ValueError) as error:
        raise PETLError(f'cannot write {out}: {error}') from None
    return out
