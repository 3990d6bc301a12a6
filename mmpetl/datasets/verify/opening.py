"""The files themselves: whole, decodable, and maps that are label maps."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from PIL import Image

from mmpetl.compat.pictures import eight_bits
from mmpetl.datasets.catalog import DatasetFacts
from mmpetl.datasets.items import Item
from mmpetl.datasets.lines import is_file
from mmpetl.datasets.maps import fault_of_form, sizes
from mmpetl.datasets.soundness import END, MAX_BYTES, fault_of_picture, lacks_its_end
from mmpetl.datasets.verify.findings import Finding, Report
from mmpetl.datasets.verify.lists import chosen

Progress = Callable[[int, int], None]
"""Called with files done and files to do, as files are opened."""


def check_files(
    facts: DatasetFacts,
    items: dict[str, list[Item]],
    sample: int | None,
    workers: int,
    progress: Progress | None,
    report: Report,
) -> Iterable[Finding]:
    """Open files in threads; the first bad one of each split is named."""
    jobs = [
        (name, item)
        for name, entries in items.items()
        for item in chosen(entries, sample)
        if is_file(item.path)
    ]
    bad: dict[str, list[str]] = defaultdict(list)
    done = 0
    pending: dict[Future, str] = {}
    queue = iter(jobs)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            while True:
                # A bounded queue: millions of files are not millions of futures.
                for name, item in queue:
                    pending[pool.submit(fault_of, facts, item)] = name
                    if len(pending) >= 8 * workers:
                        break
                if not pending:
                    break
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    problem = future.result()
                    name = pending.pop(future)
                    if problem:
                        bad[name].append(problem)
                done += len(finished)
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report.opened = len(jobs)
    for name, problems in bad.items():
        yield Finding(
            name,
            f'{len(problems)} files are damaged: {min(problems)}',
            'fetch or unpack them again',
        )


def fault_of(facts: DatasetFacts, item: Item) -> str | None:
    """Open a sample's files; a line if one of them is damaged or a map is wrong."""
    try:
        problem = _looks_wrong(item.path)
        if problem:
            return problem
        size = _open_video(item.path) if facts.family == 'video' else _open(item.path)
        if item.mask is None or not is_file(item.mask):
            return None
        return _looks_wrong(item.mask) or _fault_of_mask(facts, item.mask, size)
    except Exception as error:  # decoders raise whatever they like
        text = (str(error).strip().splitlines() or [''])[0]
        return f"'{item.path}' cannot be decoded ({type(error).__name__}: {text})"


def _looks_wrong(path: Path) -> str | None:
    """Empty files, and pages that a failed download left under another name."""
    if path.stat().st_size > MAX_BYTES and path.suffix.lower() in PICTURES:
        return f"'{path}' is longer than {MAX_BYTES >> 20} MiB"
    with path.open('rb') as file:
        head = file.read(256).lstrip().lower()
    if not head:
        return f"'{path}' is empty"
    if head.startswith((b'<!doctype', b'<html', b'<?xml', b'version https://git-lfs')):
        return f"'{path}' is a page of text, left by a download that failed"
    return None


PICTURES = frozenset({'.jpg', '.jpeg', '.png', '.bmp', '.webp'})

_ORIENTATION = 0x0112
"""EXIF's tag of how a camera was held: from 5 on, readers turn the picture."""


def _open(path: Path) -> tuple[int, int]:
    """Width and height of a picture as readers turn it, decoded whole."""
    data = path.read_bytes()
    fault = fault_of_picture(data)
    if fault:
        raise ValueError(f'it {fault}')
    whole = data + END if lacks_its_end(data) else data
    with Image.open(io.BytesIO(whole)) as picture:
        picture.load()
        eight_bits(picture)  # of which it must have a version
        width, height = picture.size
        turned = picture.getexif().get(_ORIENTATION, 1) > 4
        return (height, width) if turned else (width, height)


def _open_video(path: Path) -> tuple[int, int]:
    """Width and height of a video whose first and last frames can be decoded."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    if not len(reader):
        raise ValueError('no frames')
    reader.seek_accurate(len(reader) - 1)
    last = reader.next().shape
    reader.seek_accurate(0)
    if reader.next().shape != last:
        raise ValueError('frames differ in size')
    return last[1], last[0]


def _fault_of_mask(
    facts: DatasetFacts, path: Path, size: tuple[int, int]
) -> str | None:
    with Image.open(path) as picture:
        problem = (
            fault_of_form(picture)
            or _fault_of_palette(facts, picture)
            or sizes(picture.size, size)
        )
        if problem:
            return f"map '{path}' {problem}"
        labels = np.asarray(picture)
    # ADE20K keeps 0 for "other"; VOC keeps 255 for the rim.
    allowed = facts.num_classes + (facts.layout == 'ade20k')
    counted = labels[labels != 255] if facts.layout == 'voc_seg' else labels
    if counted.size and int(counted.max()) >= allowed:
        return f"map '{path}' holds label {int(counted.max())}, beyond {allowed - 1}"
    return None


_VOC_COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
"""Red, green and blue of the first five labels of PASCAL VOC."""


def _fault_of_palette(facts: DatasetFacts, picture: Image.Image) -> str | None:
    """Colours that were put into a palette: their numbers are not labels.

    Maps of ADE20K come without a palette; those of VOC with its own, or without.
    """
    if picture.mode != 'P':
        return None
    colours = (picture.getpalette() or [])[: len(_VOC_COLOURS)]
    if facts.layout == 'voc_seg' and colours == _VOC_COLOURS[: len(colours)]:
        return None
    return 'is a palette picture of other colours, whose numbers are not labels'
