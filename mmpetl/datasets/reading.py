"""A file that cannot be decoded is named in one line, whatever the task.

The transforms that read files belong to four projects and fail in as many ways, some
silently. ``guard_reading`` wraps the pipeline of a built data set; the pipeline in the
config, and with it upstream's inferencers, stay as they are.

Files are looked at once in a run, when they are first read (:mod:`.soundness`). What
becomes of a bad training sample is the config's to say (:mod:`.ledger`); an evaluation
never leaves one out.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dataset import BaseDataset, Compose

from mmpetl.core import PETLError
from mmpetl.datasets.ledger import Ledger, TellBadSamples, ledger_of
from mmpetl.datasets.loader_watch import Board, Watch, watched
from mmpetl.datasets.maps import fault_of_stored, sizes
from mmpetl.datasets.soundness import END, fault_of_file, lacks_its_end

if TYPE_CHECKING:
    from mmengine.runner import Runner

# The transforms that open files, by the verb their names begin with, and by decoder.
_READERS = ('Load', 'Decord', 'PyAV', 'OpenCV', 'Pillow', 'RawFrame', 'Imdecode')


_MAPS = {'gt_seg_map': 'seg_map_path', 'gt_depth_map': 'depth_map_path'}
"""Where transforms put a map of the whole picture, and where its file's name is."""

_IN_A_ROW = 100
"""So many samples that are no good, one after the other, and a run stops."""
_LEFT_OUT = 1000
"""So many samples that transforms leave out, one after the other, and a run stops."""

_UNSEEN, _SOUND, _ENDLESS = range(3)
"""What is known of a sample's files: nothing, whole, whole but for the end's mark."""


class UnreadableFileError(PETLError):
    """A listed file cannot be decoded, or does not hold what it is listed for.

    A worker's exception reaches the main process as its whole traceback in one string;
    its last line, where the message is, is kept.
    """

    def __init__(self, message: str) -> None:
        if 'Original Traceback' in message:
            message = message.rstrip().splitlines()[-1].split(': ', 1)[-1]
        super().__init__(message)


class GuardedPipeline:
    """Runs the transforms of ``pipeline``; a reading one that fails names the file.

    Maps must have the size of their picture and one value a pixel; label maps also
    labels that the reader can keep, and that there are. A picture must have the size
    that its annotation states.

    Args:
        pipeline: The data set's own.
        num_labels: Labels that a segmentation map may hold, 0 to ``num_labels - 1``,
            besides ``ignore``; None where maps are not looked at.
        ignore: The label of pixels that do not count.
        size: Samples of the data set, whose files are then looked at once each; 0 to
            look each time.
        must: No sample may be left out, as in an evaluation.
        ledger: Where bad samples are counted; None stops at the first.
        board: Where workers note the sample that they are at.
    """

    def __init__(
        self,
        pipeline: Compose,
        num_labels: int | None = None,
        ignore: int = 255,
        size: int = 0,
        must: bool = False,
        ledger: Ledger | None = None,
        board: Board | None = None,
    ) -> None:
        self.transforms = pipeline.transforms
        self.num_labels = num_labels
        self.ignore = ignore
        self.must = must
        self.ledger = ledger
        self.board = board
        # Shared by all workers, and by those of later epochs.
        self._known = torch.zeros(size, dtype=torch.uint8).share_memory_()
        self._bad = self._none = 0

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """The packed sample, or None where another is to be drawn.

        Raises:
            UnreadableFileError: The sample is no good and may not be left out, or too
                many in a row are not.
        """
        source = _files_of(data)
        if self.board is not None:
            self.board.write(source)
        try:
            sample = self._run(data, source)
        except UnreadableFileError as error:
            if self.must or self.ledger is None or not self.ledger.skips:
                raise
            self.ledger.add('skipped', source, str(error))
            self._bad += 1
            if self._bad >= _IN_A_ROW:
                raise UnreadableFileError(
                    f'{self._bad} samples in a row are no good; the last: {error}'
                ) from None
            return None
        self._bad = 0
        self._none = 0 if sample is not None else self._none + 1
        if self._none and self.must:
            raise UnreadableFileError(
                f'The transforms leave out {source}, and an evaluation may not leave '
                'out a sample.'
            )
        if self._none >= _LEFT_OUT:
            raise UnreadableFileError(
                f'The transforms leave out {self._none:,} samples in a row, the last '
                f'of them {source}.'
            )
        return sample

    def _run(self, data: dict[str, Any], source: str) -> dict[str, Any] | None:
        state = self._look(data, source)
        for transform in self.transforms:
            name = type(transform).__name__
            if not name.startswith(_READERS):
                data = transform(data)
            else:
                with _with_end(data, state) as data:
                    data = _read(transform, data, source, name)
                if data is not None:
                    data = _listed(data)
                if data is not None and self.num_labels and name == 'LoadAnnotations':
                    self._check_labels(data)
                elif data is not None:
                    _check_sizes(data)
            if data is None:
                return None
        return data

    def _look(self, data: Mapping[str, Any], source: str) -> int:
        """Look at the files of a sample, unless that was done."""
        index = data.get('sample_idx', -1)
        known = 0 <= index < len(self._known)
        if known and self._known[index]:
            return int(self._known[index])
        state = _SOUND
        for key in ('img_path', 'seg_map_path'):
            path = data.get(key)
            if not isinstance(path, str) or not os.path.isfile(path):
                continue
            fault = fault_of_file(path)
            if fault and 'decoder says' in fault and self.ledger and self.ledger.takes:
                self.ledger.add('taken', f"'{path}'", f"'{path}' {fault}")
            elif fault:
                raise UnreadableFileError(f"Cannot read '{path}': it {fault}.")
            if key == 'img_path' and _is_endless(path):
                state = _ENDLESS
        if known:
            self._known[index] = state
        return state

    def _check_labels(self, data: dict[str, Any]) -> None:
        labels, file = data['gt_seg_map'], Path(data['seg_map_path'])
        problem = fault_of_stored(file) if file.is_file() else None
        if problem:
            raise UnreadableFileError(f"Map '{file}' {problem}.")
        _check_sizes(data)
        top = int(labels.max(where=labels != self.ignore, initial=0))
        if top >= self.num_labels:
            raise UnreadableFileError(
                f"Map '{data['seg_map_path']}' holds label {top} (after any reduction "
                f'of zero), out of range 0 to {self.num_labels - 1}.'
            )

    def __repr__(self) -> str:
        lines = '\n'.join(f'    {transform}' for transform in self.transforms)
        return f'{type(self).__name__}(\n{lines}\n)'


def _is_endless(path: str) -> bool:
    with open(path, 'rb') as file:
        if file.read(3) != b'\xff\xd8\xff':
            return False
        file.seek(-min(64, os.path.getsize(path)), os.SEEK_END)
        return lacks_its_end(b'\xff\xd8\xff' + file.read())


@contextmanager
def _with_end(data: dict[str, Any], state: int) -> Iterator[dict[str, Any]]:
    """A sample whose picture is a copy with the mark at its end, where that lacks."""
    path = data.get('img_path')
    if state != _ENDLESS or not isinstance(path, str):
        yield data
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy:
        copy.write(Path(path).read_bytes() + END)
        copy.flush()
        yield {**data, 'img_path': copy.name, 'listed_path': path}


def _listed(data: dict[str, Any]) -> dict[str, Any]:
    """A sample under the name that its list gives it."""
    if 'listed_path' in data:
        data['img_path'] = data.pop('listed_path')
    return data


def _files_of(data: Mapping[str, Any]) -> str:
    keys = ('filename', 'frame_dir', 'img_path', 'seg_map_path')
    files = [f"'{data[key]}'" for key in keys if data.get(key)]
    return ' or '.join(files) or 'a sample without a file name'


def _check_sizes(data: Mapping[str, Any]) -> None:
    """Each map is (H, W), as its picture was before any resizing."""
    stated, read = (data.get('height'), data.get('width')), data.get('ori_shape')
    if 'instances' in data and read is not None and None not in stated:
        if tuple(read[:2]) != stated:
            raise UnreadableFileError(
                f"Picture '{data.get('img_path')}' is {read[1]} x {read[0]}, its "
                f'annotation says {stated[1]} x {stated[0]}.'
            )
    for key, file in _MAPS.items():
        if data.get(key) is None:
            continue
        where, shape = data.get(file), data[key].shape
        if len(shape) != 2:
            raise UnreadableFileError(
                f"Map '{where}' has {shape[-1]} values a pixel as its transform reads "
                'it, colours for one; keep indices, and read them with '
                "imdecode_backend='pillow'."
            )
        picture = data.get('ori_shape') or shape
        problem = sizes(shape[::-1], tuple(picture[1::-1]))
        if problem:
            raise UnreadableFileError(f"Map '{where}' {problem}.")


def _read(
    transform: Callable[[dict], dict | None],
    data: dict[str, Any],
    source: str,
    name: str,
) -> dict[str, Any] | None:
    try:
        result = transform(data)
    except Exception as error:
        lines = str(error).strip().splitlines()
        why = f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
        why = re.sub(r' <[^<>]* object at 0x[0-9a-f]+>', '', why)  # Pillow's buffer
        raise UnreadableFileError(f'Cannot read {source} ({name}: {why}).') from error
    # OpenCV opens any file and counts no frames in what it does not understand.
    if result is not None and result.get('total_frames') == 0:
        raise UnreadableFileError(f'Cannot read {source} ({name}: no frames in it).')
    return result


def guard_reading(
    dataset: Any,
    must: bool = False,
    ledger: Ledger | None = None,
    board: Board | None = None,
) -> None:
    """Wrap the pipelines of ``dataset`` and of the sets it repeats or joins, once.

    Args:
        dataset: A data set of MMEngine, wrapped or not. Others are left alone.
        must: No sample may be left out, as in an evaluation. A set in test mode never
            leaves one out.
        ledger: Where bad samples are counted; None stops at the first.
        board: Where workers note the sample that they are at.
    """
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            guard_reading(inner, must, ledger, board)
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(dataset, BaseDataset) and isinstance(pipeline, Compose):
        # Segmentation sets are those that know of an ignored label.
        ignore = getattr(dataset, 'ignore_index', None)
        classes = dataset.metainfo.get('classes')
        labels = {} if ignore is None else {'ignore': ignore}
        if labels and classes:
            labels['num_labels'] = len(classes)
        dataset.pipeline = GuardedPipeline(
            pipeline,
            **labels,
            size=len(dataset) if dataset._fully_initialized else 0,
            must=must or dataset.test_mode,
            ledger=ledger,
            board=board,
        )


def guard_runner(runner: Runner) -> None:
    """Guard every data set that ``runner`` is going to build, and its loaders.

    Call it between ``Runner.from_cfg`` and ``train``, ``val`` or ``test``: loaders are
    built lazily, and an iteration-based loop starts their workers at once.

    Raises:
        PETLError: ``on_bad_sample`` or ``on_damaged_jpeg`` of the config is none of
            its values.
    """
    build = runner.build_dataloader
    ledger = ledger_of(runner.cfg, runner.work_dir)
    watches: list[Watch] = []

    def build_guarded(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get('dataloader')
        phase = next(
            (p for p in _PHASES if given is getattr(runner, f'_{p}_dataloader', None)),
            None,
        )
        loader = build(*args, **kwargs)
        patient = isinstance(given, Mapping) and 'timeout' in given
        watch = watched(loader, f'{phase or "train"}_dataloader', patient)
        if watch is not None:
            watches.append(watch)
        guard_reading(
            loader.dataset,
            must=phase in ('val', 'test'),
            ledger=ledger,
            board=watch and watch.board,
        )
        return loader

    runner.build_dataloader = build_guarded
    runner.register_hook(TellBadSamples(ledger))
    for phase in _PHASES:
        setattr(runner, phase, _explained(getattr(runner, phase), watches))


_PHASES = ('train', 'val', 'test')


def _explained(run: Callable[..., Any], watches: list[Watch]) -> Callable[..., Any]:
    """A method of a runner whose errors of dead workers, raised anywhere, are told."""

    def run_explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except RuntimeError as error:
            for told in filter(None, (watch.explain(error) for watch in watches)):
                raise told from None
            raise

    return run_explained
