"""Checks of the data on disk before a run spends time on it.

Annotation files are read, the files that they list are only looked up, not opened.
Whatever is wrong is one line that names the list, the line and the file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS as ALL_DATASETS
from PIL import Image

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_utf8, regular_file
from mmpetl.datasets.annotations import CocoFile, read_coco, read_voc, remarks_of_coco
from mmpetl.datasets.lines import as_label, is_file, repeats
from mmpetl.datasets.maps import fault_of_form


@dataclass
class _Asked:
    """What a check is told beside the data set's config, and where it remarks."""

    scope: str | None = None
    num_classes: int | None = None
    scored: bool = True
    remarks: list[str] = field(default_factory=list)


Checker = Callable[[Mapping[str, Any], _Asked], int]


def missing_folder(
    path: str | os.PathLike[str], what: str, names: Iterable[str] = ()
) -> PETLError:
    """The error for a data folder that is not there; says what ``MMPETL_DATA`` is.

    Args:
        path: The folder.
        what: Who needs it.
        names: Names that it may bear instead.
    """
    root = os.environ.get('MMPETL_DATA')
    state = f"is '{root}'" if root else "is not set, so configs look below 'data'"
    others = ', '.join(names)
    also = f' (nor is one called {others})' if others else ''
    return PETLError(
        f"{what} needs the folder '{path}', which does not exist{also}; configs of "
        f'mmpetl look below MMPETL_DATA, which {state}, others where their data_root '
        'says.'
    )


def check_config(
    cfg: Mapping[str, Any],
    phases: tuple[str, ...],
    remarks: list[str] | None = None,
) -> dict[str, int]:
    """Check the data sets of the loaders of a config.

    Args:
        cfg: A whole config.
        phases: Which loaders are going to be used, of ``train``, ``val`` and ``test``.
        remarks: Is given a line for each thing that is odd and no error: files that a
            list names twice or under two labels, boxes that reach beyond a picture.

    Returns:
        Number of samples found, by phase, before any filtering by the data set.

    Raises:
        PETLError: See ``check_dataset``.
    """
    scope, num_classes = cfg.get('default_scope'), _classes_of_model(cfg.get('model'))
    found = {}
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader')
        if loader:
            found[phase] = check_dataset(
                loader['dataset'],
                scope,
                num_classes,
                remarks,
                scored=not _only_formats(cfg.get(f'{phase}_evaluator')),
            )
    return found


def _only_formats(evaluator: Any) -> bool:
    """Whether an evaluator writes predictions down and scores none."""
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    given = [metric for metric in metrics if isinstance(metric, Mapping)]
    return bool(given) and all(metric.get('format_only') for metric in given)


def check_dataset(
    cfg: Mapping[str, Any],
    scope: str | None = None,
    num_classes: int | None = None,
    remarks: list[str] | None = None,
    scored: bool = True,
) -> int:
    """Check that a data set's annotations and the files they list are there.

    Args:
        cfg: The ``dataset`` of a loader; repeated and joined sets are followed.
        scope: The config's ``default_scope``, for names that bear no scope.
        num_classes: Classes of the model's head, for lists that bear no class names.
        remarks: See ``check_config``.
        scored: Whether annotations are needed in a test set.

    Returns:
        Number of samples found.

    Raises:
        PETLError: A folder, list or listed file is missing, a line or an annotation is
            malformed, a label is out of range, or nothing is annotated.
    """
    if remarks is None:
        remarks = []
    name = str(cfg['type']).rpartition('.')[-1]
    inner = cfg.get('datasets') or [cfg[key] for key in ('dataset',) if key in cfg]
    if inner:
        return sum(
            check_dataset(part, scope, num_classes, remarks, scored) for part in inner
        )
    checker = _CHECKERS.get(name) or _checker_by_base(cfg['type'], scope)
    return checker(cfg, _Asked(scope, num_classes, scored, remarks))


def _classes_of_model(model: Mapping[str, Any] | None) -> int | None:
    """Class count of a classifier's head; dense sets know their classes themselves."""
    for key in ('head', 'cls_head'):
        count = ((model or {}).get(key) or {}).get('num_classes')
        if count:
            return int(count)
    return None


def _class_names(cfg: Mapping[str, Any], scope: str | None) -> tuple[str, ...]:
    """Class names given in the config, else those of the data set's class."""
    given = (cfg.get('metainfo') or {}).get('classes')
    if given is None:
        cls = _resolve(cfg['type'], scope)
        given = getattr(cls, 'METAINFO', {}).get('classes', ())
    return tuple(given)


def _resolve(name: Any, scope: str | None) -> Any:
    if not isinstance(name, str):
        return name
    full = name if '.' in name or not scope else f'{scope}.{name}'
    return ALL_DATASETS.get(full)


def _checker_by_base(name: Any, scope: str | None) -> Checker:
    """The check of the nearest known ancestor of a data set's class."""
    for cls in getattr(_resolve(name, scope), '__mro__', ()):
        if cls.__name__ in _CHECKERS:
            return _CHECKERS[cls.__name__]
    return _check_paths


def _join(cfg: Mapping[str, Any], path: str) -> Path:
    """``path`` below the data root, as MMEngine joins them."""
    return Path(os.path.expanduser(os.path.join(cfg.get('data_root') or '', path)))


def _need_folder(path: Path, cfg: Mapping[str, Any]) -> None:
    if not path.is_dir():
        raise missing_folder(path, str(cfg['type']))


def _need_file(path: Path, cfg: Mapping[str, Any]) -> None:
    if path.exists():
        regular_file(path, 'annotation file')
        return
    if not path.parent.is_dir():
        raise missing_folder(path.parent, str(cfg['type']))
    raise PETLError(f"{cfg['type']} needs the file '{path}', which does not exist.")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The non-empty lines of a list of upstream's, with their numbers from 1."""
    text = read_utf8(path, 'list')
    with path.open('rb') as file:
        if file.read(3) == b'\xef\xbb\xbf':
            raise PETLError(
                f"The list '{path}' begins with a byte order mark, which its reader "
                'takes for a part of the first name; save it as UTF-8 without one.'
            )
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line]
    if not lines:
        raise PETLError(f"The list '{path}' is empty.")
    return lines


def _check_own(cfg: Mapping[str, Any], asked: _Asked) -> int:
    """Our own sets check everything when they are built."""
    dataset = ALL_DATASETS.build({**cfg, 'pipeline': []})
    if asked.num_classes is not None and dataset.num_classes > asked.num_classes:
        raise PETLError(
            f"{cfg['type']} '{dataset.ann_file or dataset.folder}' has "
            f'{dataset.num_classes} classes, the model has {asked.num_classes}; set '
            f"the head's num_classes."
        )
    infos = map(dataset.get_data_info, range(len(dataset)))
    entries = ((_file_of(info), _label_of(info)) for info in infos)
    asked.remarks += repeats(entries, str(dataset.ann_file or dataset.folder))
    return len(dataset)


def _check_videos(cfg: Mapping[str, Any], asked: _Asked) -> int:
    """Lists of ``path label`` (VideoDataset) or ``folder frames label`` (Rawframe)."""
    is_frames = 'Rawframe' in str(cfg['type'])
    columns = (
        ('frame folder', 'frame count', 'label')
        if is_frames
        else ('video path', 'label')
    )
    ann_file = _join(cfg, cfg['ann_file'])
    _need_file(ann_file, cfg)
    prefix = cfg.get('data_prefix') or {}
    folder = _join(cfg, prefix.get('img' if is_frames else 'video') or '')
    _need_folder(folder, cfg)
    delimiter = cfg.get('delimiter', ' ')
    lines = _lines(ann_file)
    entries = []
    for number, line in lines:
        where, parts = f'{ann_file}:{number}', line.split(delimiter)
        label = as_label(parts[-1])
        counts = [as_label(part) for part in parts[1:-1]]
        if len(parts) != len(columns) or label is None or None in counts:
            wanted = delimiter.join(f'<{column}>' for column in columns)
            raise PETLError(f"{where}: '{line}' is not '{wanted}'.")
        if not os.path.exists(folder / parts[0]):
            raise PETLError(f"{where}: there is no file '{folder / parts[0]}'.")
        _need_label(label, cfg.get('num_classes') or asked.num_classes, where)
        entries.append((parts[0], label))
    asked.remarks += repeats(entries, str(ann_file))
    return len(lines)


def _need_label(label: int, num_classes: int | None, where: str) -> None:
    if label < 0 or (num_classes is not None and label >= num_classes):
        top = 'up' if num_classes is None else f'to {num_classes - 1}'
        raise PETLError(f'{where}: label {label} is out of range, classes are 0 {top}.')


def _check_segmentation(cfg: Mapping[str, Any], asked: _Asked) -> int:
    """A folder of images with a map of the same stem for each."""
    prefix = cfg['data_prefix']
    images = _join(cfg, prefix['img_path'])
    _need_folder(images, cfg)
    cls = _resolve(cfg['type'], asked.scope)
    keys = [key for key in ('img_suffix', 'seg_map_suffix') if key in cfg]
    # Empty ones are suffixes too, where lists name whole files.
    suffixes = {key: cfg[key] for key in keys if cfg[key] is not None}
    if len(suffixes) < 2:
        suffixes = _default_suffixes(cls) | suffixes
    image_suffix, map_suffix = suffixes['img_suffix'], suffixes['seg_map_suffix']
    if cfg.get('ann_file'):
        ann_file = _join(cfg, cfg['ann_file'])
        _need_file(ann_file, cfg)
        stems = [(f'{ann_file}:{i}', line) for i, line in _lines(ann_file)]
    else:
        names = sorted(_listed(images, image_suffix))
        stems = [
            (str(p), str(p.relative_to(images))[: -len(image_suffix)]) for p in names
        ]
        if not stems:
            raise PETLError(f"There is no *{image_suffix} in '{images}'.")
    maps = _join(cfg, prefix['seg_map_path']) if prefix.get('seg_map_path') else None
    if maps is not None:
        _need_folder(maps, cfg)
    for where, stem in stems:
        if not is_file(images / (stem + image_suffix)):
            missing = images / (stem + image_suffix)
            raise PETLError(f"{where}: there is no file '{missing}'.")
        if maps is not None and not is_file(maps / (stem + map_suffix)):
            raise PETLError(f"{where}: there is no map '{maps / (stem + map_suffix)}'.")
    if cfg.get('ann_file'):
        asked.remarks += repeats(((stem, None) for _, stem in stems), str(ann_file))
    elif maps is not None:
        alone = {p.relative_to(maps) for p in _listed(maps, map_suffix)}
        alone -= {Path(stem + map_suffix) for _, stem in stems}
        if alone:
            asked.remarks.append(
                f"{maps}: {len(alone)} maps have no picture, '{min(alone)}' for one"
            )
    if maps is not None:
        ignored = {255} | ({0} if _drops_zero(cfg, cls) else set())
        some = stems[:: max(1, len(stems) // _LOOKED_AT)]
        if not any(_labelled(maps / (s + map_suffix), ignored) for _, s in some):
            asked.remarks.append(
                f'{maps}: none of the {len(some)} maps that were looked at holds a '
                'label that counts'
            )
    return len(stems)


def _listed(folder: Path, suffix: str) -> list[Path]:
    """Files that mmseg lists: none that is hidden, as what macOS puts beside others."""
    return [path for path in folder.rglob(f'*{suffix}') if path.name[0] != '.']


_LOOKED_AT = 5
"""Maps of a set, evenly spread, that are opened before a run."""


def _drops_zero(cfg: Mapping[str, Any], cls: Any) -> bool:
    """Whether label 0 counts for none, as the config says or the set's signature."""
    given = cfg.get('reduce_zero_label')
    if given is not None:
        return bool(given)
    for ancestor in cls.__mro__:
        init = ancestor.__dict__.get('__init__')
        found = inspect.signature(init).parameters if init else {}
        if 'reduce_zero_label' in found:
            return found['reduce_zero_label'].default is True
    return False


def _labelled(path: Path, ignored: set[int]) -> bool:
    """Whether a map holds a label that counts; one of another form may."""
    try:
        with Image.open(path) as picture:
            return fault_of_form(picture) is not None or not ignored.issuperset(
                np.unique(np.asarray(picture)).tolist()
            )
    except (OSError, ValueError, SyntaxError):
        return True  # its reader says what is wrong


def _default_suffixes(cls: Any) -> dict[str, str]:
    """File name endings that a segmentation set's signature declares."""
    found = {'img_suffix': '.jpg', 'seg_map_suffix': '.png'}
    for ancestor in reversed(cls.__mro__):
        init = ancestor.__dict__.get('__init__')
        parameters = inspect.signature(init).parameters if init else {}
        for key in found:
            default = parameters[key].default if key in parameters else None
            if isinstance(default, str):
                found[key] = default
    return found


def _check_coco(cfg: Mapping[str, Any], asked: _Asked) -> int:
    """A COCO JSON: its categories include ours, its images are there."""
    ann_file = _join(cfg, cfg['ann_file'])
    _need_file(ann_file, cfg)
    cls = _resolve(cfg['type'], asked.scope)
    data = read_coco(ann_file, getattr(cls, 'ANN_ID_UNIQUE', True))
    names = {entry.name for entry in data.categories}
    wanted = _class_names(cfg, asked.scope)
    absent = [name for name in wanted if name not in names]
    if absent:
        raise PETLError(
            f"'{ann_file}' lacks {len(absent)} of the classes of {cfg['type']}, "
            f"'{absent[0]}' for one; set metainfo=dict(classes=...) to what it has."
        )
    if not cfg.get('test_mode') or asked.scored:
        _need_boxes(data, set(wanted), ann_file)
    folder = _join(cfg, (cfg.get('data_prefix') or {}).get('img', ''))
    _need_folder(folder, cfg)
    for entry in data.images:
        path = folder / entry.file_name
        if not is_file(path):
            raise PETLError(
                f"{ann_file}: image {entry.id} names a missing file '{path}'."
            )
    asked.remarks += remarks_of_coco(data, str(ann_file))
    files = ((entry.file_name, None) for entry in data.images)
    asked.remarks += repeats(files, str(ann_file))
    return len(data.images)


def _need_boxes(data: CocoFile, names: set[str], ann_file: Path) -> None:
    """Something to train on, or to score: what upstream leaves out counts for none."""
    if not data.annotations:
        raise PETLError(
            f"'{ann_file}' has no annotations, and so nothing to train on or to score."
        )
    ids = {entry.id for entry in data.categories if entry.name in names}
    for entry in data.annotations:
        left_out = entry.iscrowd or entry.ignore or entry.area <= 0
        if not left_out and entry.category_id in ids and min(entry.bbox[2:]) >= 1:
            return
    raise PETLError(
        f"'{ann_file}' has no box that counts: all {len(data.annotations):,} are of "
        'crowds, ignored, smaller than a pixel, or of other classes.'
    )


def _check_xml(cfg: Mapping[str, Any], asked: _Asked) -> int:
    """A VOC list of image ids, each with an image and an XML of known classes."""
    ann_file = _join(cfg, cfg['ann_file'])
    _need_file(ann_file, cfg)
    root = _join(cfg, (cfg.get('data_prefix') or {}).get('sub_data_root', ''))
    names = set(_class_names(cfg, asked.scope))
    lines = _lines(ann_file)
    counted, sizeless, beyond = 0, [], []
    for number, image_id in lines:
        where = f'{ann_file}:{number}'
        image = root / cfg.get('img_subdir', 'JPEGImages') / f'{image_id}.jpg'
        xml = root / cfg.get('ann_subdir', 'Annotations') / f'{image_id}.xml'
        for path in (image, xml):
            if not is_file(path):
                raise PETLError(f"{where}: there is no file '{path}'.")
        try:
            found = read_voc(xml)
        except PETLError as error:
            raise PETLError(f'{where}: {error}') from None
        for name, counts in found.objects:
            if name not in names:
                raise PETLError(
                    f"{where}: '{xml}' holds class '{name}', which is none of the "
                    f'{len(names)} classes of {cfg["type"]}.'
                )
            counted += counts
        if found.size is None:
            sizeless.append(xml)
        if found.beyond:
            beyond.append(xml)
    if not counted:
        raise PETLError(
            f"The annotations that '{ann_file}' lists hold no object that counts."
        )
    if sizeless:
        asked.remarks.append(
            f"{ann_file}: {len(sizeless)} annotations state no size, '{sizeless[0]}' "
            'for one; it is read off the pictures'
        )
    if beyond:
        asked.remarks.append(
            f'{ann_file}: {len(beyond)} annotations have boxes beyond their picture, '
            f"'{beyond[0]}' for one"
        )
    asked.remarks += repeats(((name, None) for _, name in lines), str(ann_file))
    return len(lines)


def _file_of(info: Mapping[str, Any]) -> str:
    keys = ('img_path', 'filename', 'frame_dir')
    return next(str(info[key]) for key in keys if key in info)


def _label_of(info: Mapping[str, Any]) -> Any:
    return info.get('gt_label', info.get('label'))


def _check_paths(cfg: Mapping[str, Any], asked: _Asked) -> int:
    """For sets of unknown layout: the root and the annotation file exist."""
    if cfg.get('data_root'):
        _need_folder(_join(cfg, ''), cfg)
    if isinstance(cfg.get('ann_file'), str) and cfg['ann_file']:
        _need_file(_join(cfg, cfg['ann_file']), cfg)
    return 0


_CHECKERS: Mapping[str, Checker] = {
    'VTAB': _check_own,
    'FGVC': _check_own,
    'DenseTasks': _check_own,
    'ImageList': _check_own,
    'OwnPictures': _check_own,
    'StudyImages': _check_own,
    'VideoList': _check_own,
    'VideoDataset': _check_videos,
    'RawframeDataset': _check_videos,
    'BaseSegDataset': _check_segmentation,
    'CocoDataset': _check_coco,
    # Heirs whose files hold other fields.
    'CocoPanopticDataset': _check_paths,
    'LVISV05Dataset': _check_paths,
    'XMLDataset': _check_xml,
}
