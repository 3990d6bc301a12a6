"""Something-Something V2, Kinetics-400 and HMDB51: clips and lists in MMAction2's form.

A list line is ``<path below the video folder> <label>``. A path must hold no blank, so
class folders are renamed with underscores.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json, read_utf8
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.classes import HMDB51_CLASSES, KINETICS400_CLASSES
from mmpetl.datasets.convert.dense import Counts
from mmpetl.datasets.convert.files import PART, write_lines
from mmpetl.datasets.convert.jobs import run_all
from mmpetl.datasets.lines import as_label, is_file
from mmpetl.datasets.walk import check_utf8, files_below

VIDEOS = ('.mp4', '.avi', '.mkv', '.webm')
Encoder = Literal['ffmpeg', 'opencv']


@dataclass(frozen=True)
class Clip:
    """A listed clip: its path below the video folder, and its label."""

    path: str
    label: int


# --- looking into clips ------------------------------------------------------


def count_frames(path: Path) -> int:
    """Frames of a clip; its first and its last one are decoded.

    Raises:
        PETLError: It cannot be opened, holds no frame, or does not decode to its end.
    """
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames = len(reader)
        if frames:
            reader[0]
            reader[frames - 1]
    except Exception as error:  # decord raises its own and plain RuntimeErrors
        lines = [line for line in str(error).splitlines() if line.strip()]
        why = lines[-1] if lines else type(error).__name__
        raise PETLError(f'cannot read the clip {path}: {why}') from None
    if not frames:
        raise PETLError(f'the clip {path} holds no frame')
    return frames


def _clips_below(folder: Path) -> list[Path]:
    """Clips at any depth, by path, through links; none that is hidden."""
    found = files_below(folder) if folder.is_dir() else []
    return [p for p in found if p.suffix.lower() in VIDEOS and p.is_file()]


# --- re-encoding -------------------------------------------------------------


def find_encoder(wanted: Encoder) -> Callable[[Path, Path], None]:
    """What re-encodes a clip.

    ``ffmpeg`` writes H.264 at CRF 18. ``opencv`` needs nothing to be installed, but
    writes MPEG-4 part 2, whose loss is larger: a result should say so.

    Raises:
        PETLError: ffmpeg is not on the PATH.
    """
    if wanted == 'opencv':
        return _encode_opencv
    program = shutil.which('ffmpeg')
    if program is None:
        raise PETLError(
            'ffmpeg is not on the PATH; install it, or re-encode with --encoder opencv '
            '(MPEG-4 part 2, a larger loss)'
        )

    timing = _keep_timing(program)

    def encode(source: Path, target: Path) -> None:
        command = [program, '-nostdin', '-v', 'error', '-y', '-i', str(source), '-an']
        # H.264 in 4:2:0 needs even sides. The clip's own frames and times are kept.
        command += ['-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2', *timing]
        command += ['-c:v', 'libx264', '-crf', '18', '-preset', 'fast']
        command += ['-pix_fmt', 'yuv420p', '-threads', '1', '-f', 'mp4', str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f'exit {done.returncode}']
            raise PETLError(f'ffmpeg cannot re-encode {source}: {lines[-1]}')

    return encode


def _keep_timing(program: str) -> list[str]:
    """The option that neither repeats nor drops frames; renamed in ffmpeg 5.1."""
    done = subprocess.run([program, '-version'], capture_output=True, text=True)
    number = re.match(r'ffmpeg version n?(\d+)\.(\d+)', done.stdout)
    is_old = number is not None and (int(number[1]), int(number[2])) < (5, 1)
    return ['-vsync' if is_old else '-fps_mode', 'passthrough']


def _encode_opencv(source: Path, target: Path) -> None:
    import cv2

    check_utf8(source)
    check_utf8(target)
    clip = cv2.VideoCapture(str(source))
    rate = clip.get(cv2.CAP_PROP_FPS) or 12.0
    writer = None
    try:
        while True:
            found, frame = clip.read()
            if not found:
                break
            if writer is None:
                height, width = frame.shape[:2]
                codec = cv2.VideoWriter_fourcc(*'mp4v')
                writer = cv2.VideoWriter(str(target), codec, rate, (width, height))
                if not writer.isOpened():
                    raise PETLError(f'OpenCV has no writer for {target}')
            writer.write(frame)
    finally:
        clip.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise PETLError(f'OpenCV cannot read a frame of {source}')


def reencode(source: Path, target: Path, encode: Callable[[Path, Path], None]) -> bool:
    """Re-encode one clip unless it is there; it gets its name when it decodes.

    Returns:
        Whether it was written.

    Raises:
        PETLError: The source or the result does not decode, or frames were lost.
    """
    if target.is_file():
        return False
    before = count_frames(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix tells OpenCV the container.
    part = target.with_name(f'{target.stem}{PART}{target.suffix}')
    try:
        encode(source, part)
        after = count_frames(part)
        if after != before:
            raise PETLError(
                f'{source} has {before} frames, its copy {after}; nothing was kept'
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return True


# --- Something-Something V2 --------------------------------------------------


def convert_ssv2(
    videos: Path,
    labels: Path,
    root: Path,
    encoder: Encoder = 'ffmpeg',
    workers: int = 1,
) -> Counts:
    """``ssv2/videos/<id>.mp4`` from ``<id>.webm``, and the two lists.

    Args:
        videos: Folder with the ``.webm`` (or ``.mp4``) clips of the release.
        labels: Folder with the annotation files of the release, in either naming:
            ``labels.json``, ``train.json``, ``validation.json``, or each with
            ``something-something-v2-`` in front.
        root: Data root.
        encoder: See ``find_encoder``.
        workers: Clips at a time.

    Raises:
        PETLError: Missing or malformed annotations, a listed clip that is missing or
            does not decode, or no ffmpeg.
    """
    facts = facts_of('ssv2')
    folder = root / facts.path
    table = _ssv2_labels(labels, facts.num_classes)
    lists: dict[str, list[Clip]] = {}
    for split, name in (('train', 'train'), ('val', 'validation')):
        entries = _read_ssv2(labels, name, list[_Ssv2Entry])
        lists[split] = [_ssv2_clip(entry, table, name) for entry in entries]
    clips = [clip for part in lists.values() for clip in part]
    todo = [c for c in clips if not is_file(folder / 'videos' / c.path)]
    if todo:
        encode = find_encoder(encoder)
        found = {path.stem: path for path in _clips_below(videos)}
        missing = [c.path for c in todo if Path(c.path).stem not in found]
        if missing:
            raise PETLError(
                f'{len(missing):,} of {len(clips):,} listed clips are not in {videos}, '
                f'{Path(missing[0]).stem}.webm for one'
            )

        def work(clip: Clip) -> bool:
            source = found[Path(clip.path).stem]
            return reencode(source, folder / 'videos' / clip.path, encode)

        run_all(todo, work, workers, 'ssv2', len(todo))
    return _write_lists(folder, facts_of('ssv2').splits, lists)


class _Ssv2Entry(msgspec.Struct):
    id: str | int
    template: str


def _read_ssv2(folder: Path, name: str, kind: Any) -> Any:
    for file in (f'{name}.json', f'something-something-v2-{name}.json'):
        path = folder / file
        if path.is_file():
            return read_json(path, kind)
    raise PETLError(
        f'{folder} has neither {name}.json nor something-something-v2-{name}.json'
    )


def _ssv2_labels(folder: Path, num_classes: int) -> dict[str, int]:
    """Template to label, 0 to ``num_classes - 1``."""
    form = f'labels.json in {folder} is not {{template: label}}'
    try:
        read = _read_ssv2(folder, 'labels', dict[str, int | str])
    except PETLError as error:
        if 'has neither' in str(error):
            raise
        raise PETLError(f'{form}: {error}') from None
    table = {
        template: as_label(number) if isinstance(number, str) else number
        for template, number in read.items()
    }
    for template, number in table.items():
        if number is None:
            raise PETLError(f'{form}: {template!r} has {read[template]!r}')
    odd = [k for k, label in table.items() if not 0 <= label < num_classes]
    if odd or len(set(table.values())) != len(table):
        which = f'{odd[0]!r} has label {table[odd[0]]}' if odd else 'two share a label'
        raise PETLError(
            f'labels.json in {folder} is not that of Something-Something V2: {which}, '
            f'labels are 0 to {num_classes - 1}'
        )
    return table


def _ssv2_clip(entry: _Ssv2Entry, table: Mapping[str, int], name: str) -> Clip:
    # The table has no brackets around the placeholders.
    template = entry.template.replace('[', '').replace(']', '')
    number = as_label(entry.id) if isinstance(entry.id, str) else entry.id
    if template not in table or number is None:
        raise PETLError(
            f'{name}.json: an entry is not {{id, template}} with a template of '
            f'labels.json: id {entry.id!r}, {template!r}'
        )
    return Clip(f'{number}.mp4', table[template])


# --- Kinetics-400 ------------------------------------------------------------


def convert_kinetics400(
    root: Path,
    annotations: Mapping[str, Path] | None = None,
    workers: int = 1,
    check: bool = True,
) -> Counts:
    """Lists of the clips in ``kinetics400/videos_train`` and ``videos_val``.

    A clip's class is what the release's CSV (``label,youtube_id,time_start,time_end,
    split``) says of it, wherever it lies, or without a CSV the folder it lies in, which
    must then bear a class's name. Labels are the places of the names in alphabetical
    order of all 400, whether or not a copy holds them all. Blanks in folders become
    underscores. A clip that does not decode is left out and named in
    ``kinetics400_<split>_unreadable.txt``.

    Args:
        root: Data root.
        annotations: CSV by split, needed where folders are not classes.
        workers: Clips that are looked into at a time.
        check: Open each clip; without it, none is left out.

    Raises:
        PETLError: No clips, or clips whose class is unknown.
    """
    facts = facts_of('kinetics400')
    folder = root / facts.path
    labelled = {
        split.name: _labelled(
            folder / split.images, (annotations or {}).get(split.name)
        )
        for split in facts.splits
    }
    lists: dict[str, list[Clip]] = {}
    for split in facts.splits:
        videos = folder / split.images
        _without_blanks(videos, [path for path, _ in labelled[split.name]])
        clips = [
            Clip(_underscored(path), label) for path, label in labelled[split.name]
        ]
        if check:
            clips, bad = _readable(videos, clips, workers, f'kinetics400 {split.name}')
            report = folder / f'kinetics400_{split.name}_unreadable.txt'
            if bad:
                write_lines(report, bad)
            else:
                report.unlink(missing_ok=True)
        lists[split.name] = clips
    return _write_lists(folder, facts.splits, lists)


def _letters(name: str) -> str:
    """A class's name without what copies spell differently: blanks, apostrophes."""
    return re.sub('[^a-z0-9]', '', name.lower())


_KINETICS = {_letters(name): k for k, name in enumerate(KINETICS400_CLASSES)}


def _labelled(videos: Path, table: Path | None) -> list[tuple[PurePath, int]]:
    """(path below ``videos``, label) of each clip; nothing on disk is changed."""
    if not videos.is_dir():
        raise PETLError(f'there is no {videos}; put the clips of the release there')
    listed = None if table is None else _kinetics_table(table)
    clips, unknown = [], []
    for path in _clips_below(videos):
        if ' ' in path.name:
            raise PETLError(f'{path} holds a blank, which separates columns; rename it')
        if listed is None:
            label = _KINETICS.get(_letters(path.parent.name))
        else:
            # 0123456789a_000012_000022: the id itself may hold underscores.
            label = listed.get(path.stem, listed.get(path.stem.rsplit('_', 2)[0]))
        if label is None:
            unknown.append(path)
        clips.append((path.relative_to(videos), label))
    if not clips:
        raise PETLError(f'{videos} holds no clip ({", ".join(VIDEOS)})')
    if unknown:
        why = (
            f'{unknown[0].parent.name} is none of the 400 classes: put clips in a '
            'folder per class, or give the CSV of the split'
            if table is None
            else f'{table} does not list it: give the CSV that belongs to the clips, '
            'or move them away'
        )
        raise PETLError(
            f'the class of {len(unknown):,} of {len(clips):,} clips in {videos} is '
            f'unknown, {unknown[0]} for one; {why}'
        )
    return clips


def _underscored(path: PurePath) -> str:
    return path.as_posix().replace(' ', '_')


def _without_blanks(videos: Path, clips: Iterable[PurePath]) -> None:
    """Rename folders of clips that have blanks, the inner ones first."""
    folders = {videos / p for clip in clips for p in clip.parents if ' ' in p.name}
    for below in sorted(folders, key=lambda path: (-len(path.parts), path)):
        target = below.with_name(below.name.replace(' ', '_'))
        if target.exists():
            raise PETLError(f'{below} and {target} are one class; merge them')
        below.rename(target)


def _kinetics_table(path: Path) -> dict[str, int]:
    """Clip name, and bare id where it has one class, to label."""
    table: dict[str, int] = {}
    classes_of: dict[str, set[int]] = {}
    try:
        with io.StringIO(read_utf8(path, 'table'), newline='') as file:
            for row in csv.DictReader(file):
                label = _KINETICS.get(_letters(row['label']))
                if label is None:
                    raise PETLError(
                        f'{path} names the class {row["label"]!r}, which is none of '
                        'the 400; give the CSV of Kinetics-400'
                    )
                start, end = int(row['time_start']), int(row['time_end'])
                clip = f'{row["youtube_id"]}_{start:06d}_{end:06d}'
                if table.setdefault(clip, label) != label:
                    raise PETLError(
                        f'{path} gives {clip} two classes, '
                        f'{KINETICS400_CLASSES[table[clip]]!r} and {row["label"]!r}; '
                        'get the official one'
                    )
                classes_of.setdefault(row['youtube_id'], set()).add(label)
    except FileNotFoundError:
        raise PETLError(f'there is no {path}') from None
    except PETLError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise PETLError(
            f'{path} has no columns label, youtube_id, time_start, time_end ({error})'
        ) from None
    bare = {id: labels.pop() for id, labels in classes_of.items() if len(labels) == 1}
    return bare | table


def _readable(
    videos: Path, clips: list[Clip], workers: int, title: str
) -> tuple[list[Clip], list[str]]:
    def work(clip: Clip) -> bool:
        try:
            return count_frames(videos / clip.path) > 0
        except PETLError:
            return False

    sound = run_all(clips, work, workers, title, len(clips))
    good = [clip for clip, is_sound in zip(clips, sound, strict=True) if is_sound]
    bad = [
        clip.path for clip, is_sound in zip(clips, sound, strict=True) if not is_sound
    ]
    return good, bad


# --- HMDB51 ------------------------------------------------------------------


def convert_hmdb51(videos: Path, splits: Path, root: Path, workers: int = 1) -> Counts:
    """``hmdb51/videos/<class>/<clip>.avi`` and the lists of the three splits.

    Python opens no rar archive: unpack ``hmdb51_org.rar``, the 51 archives in it, and
    ``test_train_splits.rar`` first.

    Args:
        videos: Folder with a folder of clips per class.
        splits: Folder with ``<class>_test_split<1-3>.txt``.
        root: Data root.
        workers: Clips that are copied and looked into at a time.

    Raises:
        PETLError: Missing clips or split files, or a clip that does not decode.
    """
    facts = facts_of('hmdb51')
    folder = root / facts.path
    tables = _hmdb51_tables(splits)
    lists: dict[str, list[Clip]] = {split.name: [] for split in facts.splits}
    clips: dict[str, Clip] = {}
    for label, name in enumerate(HMDB51_CLASSES):
        for number in (1, 2, 3):
            tail = '' if number == 1 else f'_{number}'
            for file, part in tables.get((name, number), {}).items():
                clip = Clip(f'{name}/{file}', label)
                clips[clip.path] = clip
                # 1 trains, 2 tests, 0 is in neither part of this split.
                if part in (1, 2):
                    lists[('train' if part == 1 else 'val') + tail].append(clip)
    source_of = {}
    for path in clips:
        if not is_file(folder / 'videos' / path):
            source_of[path] = videos / path
    missing = [path for path, source in source_of.items() if not is_file(source)]
    if missing:
        raise PETLError(
            f'{len(missing):,} of {len(clips):,} listed clips are not in {videos}, '
            f'{missing[0]} for one; unpack the rar archive of each class there'
        )

    def work(path: str) -> None:
        count_frames(source_of[path])
        _copy_whole(source_of[path], folder / 'videos' / path)

    run_all(source_of, work, workers, 'hmdb51', len(source_of))
    return _write_lists(folder, facts.splits, lists)


def _copy_whole(source: Path, target: Path) -> None:
    part = target.with_name(target.name + PART)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)
        os.replace(part, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise PETLError(f'cannot copy {source} to {target}: {error.strerror}') from None


def _hmdb51_tables(folder: Path) -> dict[tuple[str, int], dict[str, int]]:
    """(class, split number) to {file: part}.

    Raises:
        PETLError: No files of the first split, malformed ones, two that differ, or a
            class that is none of the 51.
    """
    tables: dict[tuple[str, int], dict[str, int]] = {}
    below = files_below(folder) if folder.is_dir() else []
    for path in below:
        if re.fullmatch(r'.*_test_split[123]\.txt', path.name) is None:
            continue
        name, _, number = path.stem.rpartition('_test_split')
        rows = {}
        for count, line in enumerate(read_utf8(path).split('\n'), 1):
            columns = line.split()
            if not columns:
                continue
            if len(columns) != 2 or columns[1] not in ('0', '1', '2'):
                raise PETLError(f"{path}:{count}: {line!r} is not '<clip> <0|1|2>'")
            rows[columns[0]] = int(columns[1])
        if name not in HMDB51_CLASSES:
            raise PETLError(
                f'{path} is of the class {name!r}, none of the 51 of HMDB51'
            )
        if tables.setdefault((name, int(number)), rows) != rows:
            raise PETLError(f'{folder} holds two files {path.name} that differ')
    if not any(number == 1 for _, number in tables):
        raise PETLError(
            f'{folder} has no <class>_test_split1.txt; unpack test_train_splits.rar '
            'there (unrar x, 7z x)'
        )
    return tables


# --- lists -------------------------------------------------------------------


def _write_lists(
    folder: Path, splits: Sequence[Any], lists: Mapping[str, Sequence[Clip]]
) -> Counts:
    """Write the lists, which declare the set complete, and count them.

    Raises:
        PETLError: One that must be there would be empty.
    """
    counts: Counts = []
    for split in splits:
        if not lists[split.name] and not split.optional:
            raise PETLError(
                f'no clip is left for {split.file} in {folder}, so no list is written; '
                'a set of no clips is neither trained nor tested on'
            )
    for split in splits:
        lines = [f'{clip.path} {clip.label}' for clip in lists[split.name]]
        if not lines and split.optional:
            continue
        write_lines(folder / split.file, lines)
        counts.append((split.name, len(lines), split.size))
    return counts
