"""Archives, pictures and clips that the tests of the converters are fed with."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.datasets.mini.storage import STAMP


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != STAMP
    }


def pack(target: Path, files: dict[str, bytes]) -> Path:
    """A zip or tar, by the suffix of its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == '.zip':
        with zipfile.ZipFile(target, 'w') as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return target
    mode = 'w:gz' if target.suffix in ('.gz', '.tgz') else 'w'
    with tarfile.open(target, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target


def under(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f'{prefix}/{name}': content for name, content in files.items()}


def refused(*parts: str):
    """One line that says each of ``parts``."""

    class Check:
        def __enter__(self):
            self.context = pytest.raises(PETLError)
            self.caught = self.context.__enter__()

        def __exit__(self, *error):
            result = self.context.__exit__(*error)
            message = str(self.caught.value)
            assert '\n' not in message
            for part in parts:
                assert part in message
            return result

    return Check()


def jpeg(shade: int = 90, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (side, side), (shade, 40, 200 - shade)).save(buffer, 'JPEG')
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new('L', (4, 4), 3).save(buffer, 'PNG')
    return buffer.getvalue()


def voc_archives(official: Path, folder: Path) -> list[Path]:
    """VOC as it is published: trainval and test of 2007 apart, 2012."""
    files = tree(official / 'VOCdevkit')
    test = files['VOC2007/ImageSets/Main/test.txt'].decode().split()

    def is_test(name: str) -> bool:
        stem = Path(name).stem
        return name.startswith('VOC2007') and (stem == 'test' or stem in test)

    parts = {
        'VOCtest_06-Nov-2007.tar': {n: c for n, c in files.items() if is_test(n)},
        'VOCtrainval_06-Nov-2007.tar': {
            n: c for n, c in files.items() if n[:7] == 'VOC2007' and not is_test(n)
        },
        'VOCtrainval_11-May-2012.tar': {
            n: c for n, c in files.items() if n[:7] == 'VOC2012'
        },
    }
    extra = {'VOC2007/SegmentationClass/x.png': png()}
    parts['VOCtrainval_06-Nov-2007.tar'] |= extra
    return [
        pack(folder / name, under('VOCdevkit', part)) for name, part in parts.items()
    ]


class Stop(BaseException):
    """What a user's Ctrl-C is."""


def cub(official: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    files = tree(official / 'fgvc' / 'CUB_200_2011')
    splits = {n: c for n, c in files.items() if n.endswith('.json')}
    return {n: c for n, c in files.items() if n not in splits}, splits


def clip_file(path: Path, frames: int = 6, codec: str = 'VP80', side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(str(path), fourcc, 12, (side, side))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((side, side, 3), 20 + 15 * index, np.uint8))
    writer.release()
    return path
