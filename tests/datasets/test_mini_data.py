"""Mini sets: on disk as the official ones are, deterministic, whole or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from mmpetl.datasets import CORRUPTIONS, mini
from mmpetl.datasets.mini import dense, glyphs, images, motion, scenes, storage, videos


@pytest.fixture(scope='module')
def root(tiny_root) -> Path:
    return tiny_root


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def entries(path: Path) -> list[tuple[str, int]]:
    pairs = (line.split(' ') for line in path.read_text().splitlines())
    return [(name, int(label)) for name, label in pairs]


# --- glyphs ------------------------------------------------------------------


def test_upstream_has_73_classes_and_no_digit():
    assert len(set(glyphs.LETTERS)) == len(glyphs.LETTERS) == 73
    assert not set(glyphs.LETTERS) & set(glyphs.DIGITS)


def test_no_two_letters_are_the_same_drawing():
    masks = [glyphs.glyph_mask(char, 'DejaVuSans').tobytes() for char in glyphs.LETTERS]
    assert len(set(masks)) == 73


@pytest.mark.parametrize('angle', [0, 90, 180, 270])
def test_place_puts_the_centre_where_it_is_told(angle):
    pose = glyphs.Pose(x=20.5, y=11.5, size=10, angle=angle)
    cover = glyphs.place(glyphs.glyph_mask('square'), pose, 32, 40)
    rows, cols = np.mgrid[:32, :40] + 0.5  # pixel centres
    assert np.average(cols, weights=cover) == pytest.approx(20.5, abs=0.3)
    assert np.average(rows, weights=cover) == pytest.approx(11.5, abs=0.3)


def test_place_turns_counter_clockwise():
    pose = glyphs.Pose(x=16, y=16, size=24, angle=90)
    cover = glyphs.place(glyphs.glyph_mask('arrow'), pose, 32, 32)
    head, tail = cover[:, :16].sum(0).max(), cover[:, 16:].sum(0).max()
    assert head > tail  # an upward arrow points left


def test_colours_keep_their_contrast():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ink, ground = glyphs.colour_pair(rng, 110)
        assert abs(glyphs.luminance(ink) - glyphs.luminance(ground)) >= 110


# --- making ------------------------------------------------------------------


def test_the_same_seed_is_the_same_bytes(tmp_path):
    names = ['digits', 'svhn', 'coco', 'VOC2007', 'ADEChallengeData2016', 'ssv2']
    for folder in ('a', 'b'):
        mini.make(tmp_path / folder, names, 'tiny', seed=3)
    mini.make(tmp_path / 'c', names, 'tiny', seed=4)
    a, b, c = (digest(tmp_path / folder) for folder in 'abc')
    assert a == b
    pictures = [key for key in a if key.endswith(('.jpg', '.mp4'))]
    assert sum(a[key] != c.get(key) for key in pictures) > 0.9 * len(pictures)


def test_a_set_does_not_depend_on_its_neighbours(tmp_path, root):
    mini.make(tmp_path, ['coco'], 'tiny')
    assert digest(tmp_path / 'coco') == digest(root / 'coco')


def test_what_is_complete_is_left_alone(tmp_path):
    done = []
    mini.make(tmp_path, ['svhn'], 'tiny', report=lambda *made: done.append(made))
    mini.make(tmp_path, ['svhn'], 'tiny', report=lambda *made: done.append(made))
    mini.make(tmp_path, ['svhn'], 'tiny', 1, lambda *made: done.append(made))
    name = 'vtab-1k/svhn'
    assert done == [(name, True), (name, False), (name, True)]


def test_an_interrupted_set_is_not_there(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(images, 'save_lines', stop)
        with pytest.raises(KeyboardInterrupt):
            mini.make(tmp_path, ['svhn'], 'tiny')
    assert not (tmp_path / 'vtab-1k/svhn').exists()
    mini.make(tmp_path, ['svhn'], 'tiny')
    assert mini.is_made(tmp_path, 'vtab-1k/svhn', 'tiny')
    assert [path.name for path in (tmp_path / 'vtab-1k').iterdir()] == ['svhn']


def test_an_interrupted_preparation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    names, done = ['svhn', 'counting', 'dtd', 'dsprites_loc'], []

    def report(name: str, made: bool) -> None:
        done.append((name.rpartition('/')[2], made))
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mini.make(tmp_path, names, 'tiny', report=report)
    before = digest(tmp_path)
    mini.make(tmp_path, names, 'tiny', report=report)
    assert [made for _, made in done] == [True, True, False, False, True, True]
    after = digest(tmp_path)
    assert before.items() <= after.items()
    assert not (tmp_path / storage.SCRATCH).exists()


def test_two_processes_make_a_set_once(tmp_path):
    import multiprocessing

    context = multiprocessing.get_context('fork')
    queue = context.Queue()

    def work() -> None:
        mini.make(tmp_path, ['dtd'], 'tiny', report=lambda _, made: queue.put(made))

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    made = [queue.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(made) == [False, False, True]
    assert mini.is_made(tmp_path, 'vtab-1k/dtd', 'tiny')


def test_the_stamp_says_what_is_in_a_set(root):
    manifest = storage.read_stamp(root / 'vtab-1k/dtd')['manifest']
    assert set(manifest) == {
        f'vtab-1k/dtd/{split}.txt'
        for split in ('train800', 'val200', 'train800val200', 'test')
    }
    entry = manifest['vtab-1k/dtd/train800.txt']
    content = (root / 'vtab-1k/dtd/train800.txt').read_bytes()
    assert entry['sha256'] == hashlib.sha256(content).hexdigest()
    assert entry['count'] == 47
    assert entry['labels'] == list(range(47))


def test_a_set_that_is_being_replaced_can_be_killed_at_any_moment(
    tmp_path, monkeypatch
):
    mini.make(tmp_path, ['digits'], 'tiny')
    remove = storage.shutil.rmtree

    def killed(folder: Path, *args, **kwargs) -> None:
        for stamp in Path(folder).rglob(storage.STAMP):  # any order is possible
            stamp.unlink()
            raise KeyboardInterrupt
        remove(folder, *args, **kwargs)

    monkeypatch.setattr(storage.shutil, 'rmtree', killed)
    with pytest.raises(KeyboardInterrupt):
        mini.make(tmp_path, ['digits'], 'tiny', seed=1)
    monkeypatch.undo()
    mini.make(tmp_path, ['digits'], 'tiny', seed=1)
    assert mini.is_made(tmp_path, 'vtab-1k/digits', 'tiny', seed=1)


def test_a_clip_that_is_not_written_to_its_end_is_told(tmp_path, monkeypatch):
    class Full:
        """As OpenCV's on a full disk: it says nothing."""

        def __init__(self, path: str, *args) -> None:
            Path(path).write_bytes(b'\0\0\0\x20ftypisom')

        def isOpened(self) -> bool:
            return True

        def write(self, frame: np.ndarray) -> None: ...

        def release(self) -> None: ...

    monkeypatch.setattr(motion.cv2, 'VideoWriter', Full)
    monkeypatch.setattr(motion.cv2, 'VideoWriter_fourcc', lambda *_: 0, raising=False)
    with pytest.raises(OSError, match='could not write'):
        motion.save_clip(tmp_path / 'a.mp4', np.zeros((3, 32, 32, 3), np.uint8))


def test_foreign_files_are_never_replaced(tmp_path):
    real = tmp_path / 'coco' / 'train2017' / '000000000009.jpg'
    real.parent.mkdir(parents=True)
    real.write_bytes(b'precious')
    with pytest.raises(FileExistsError, match='did not write'):
        mini.make(tmp_path, ['coco'], 'tiny')
    assert real.read_bytes() == b'precious'


def test_an_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="'digit'; nearest: digits"):
        mini.make(tmp_path, ['digit'])
    with pytest.raises(ValueError, match="'tiny' or 'small', got 'huge'"):
        mini.make(tmp_path, ['digits'], size='huge')


def test_names_can_be_groups():
    assert mini.names_for(['fgvc']) == tuple(f'fgvc/{n}' for n in images.FGVC_TASKS)
    assert not set(mini.names_for()) & set(mini.UPSTREAM)


# --- VTAB-1k and FGVC --------------------------------------------------------


@pytest.mark.parametrize('task', ['digits', *images.VTAB_CLASSES])
def test_vtab_lists_name_pictures_that_are_there(root, task):
    folder = root / 'vtab-1k' / task
    lists = {
        split: entries(folder / f'{split}.txt')
        for split in ('train800', 'val200', 'train800val200', 'test')
    }
    classes = images.VTAB_CLASSES.get(task, 10)
    for split, lines in lists.items():
        for index, (name, label) in enumerate(lines):
            assert name == f'images/{split}/{index:06d}.jpg'
            assert cv2.imread(str(folder / name)) is not None
            assert 0 <= label < classes
    joined = [label for split in ('train800', 'val200') for _, label in lists[split]]
    assert joined == [label for _, label in lists['train800val200']]


def test_digits_are_the_real_ones_each_once(tmp_path):
    from sklearn.datasets import load_digits

    mini.make(tmp_path, ['digits'])
    folder = tmp_path / 'vtab-1k/digits'
    splits = {s: entries(folder / f'{s}.txt') for s in ('train800', 'val200', 'test')}
    assert [len(lines) for lines in splits.values()] == [800, 200, 797]
    seen = []
    for lines in splits.values():
        for name, label in lines:
            grey = cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
            small = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA)
            seen.append((small.astype(float).ravel(), label))
    data = load_digits()
    pixels = np.stack([picture for picture, _ in seen]) * 16 / 255
    distance = (pixels**2).sum(1)[:, None] - 2 * pixels @ data.data.T
    nearest = (distance + (data.data**2).sum(1)).argmin(1)
    assert len(set(nearest)) > 0.98 * 1797
    assert np.mean(data.target[nearest] == [label for _, label in seen]) > 0.99


@pytest.mark.parametrize('task', ['counting', 'textures'])
def test_own_tasks_are_of_32_px_and_show_their_classes(root, task):
    lines = entries(root / f'vtab-1k/{task}/train800.txt')
    assert len(lines) == 20
    assert {label for _, label in lines} == set(range({'counting': 6}.get(task, 8)))
    for name, _ in lines:
        picture = cv2.imread(str(root / f'vtab-1k/{task}' / name))
        assert picture.shape == (32, 32, 3)


def test_a_counted_picture_holds_as_many_figures():
    rng = np.random.default_rng(0)
    for label in range(images.NUM_COUNTS):
        found = []
        for _ in range(20):
            picture = images._draw_few(rng, label).astype(float)
            away = np.abs(picture - np.median(picture, (0, 1))).sum(-1) > 120
            # a moon or a ring may fall into parts, never so that the median changes
            found.append(cv2.connectedComponents(away.astype(np.uint8))[0] - 1)
        assert np.median(found) == label + 1


@pytest.mark.parametrize('task', ['digits', 'counting', 'textures'])
def test_corrupted_copies_are_of_the_test_split(root, task):
    plain = entries(root / f'vtab-1k/{task}/test.txt')[:4]
    folder = root / f'vtab-1k/{task}_c'
    kinds = sorted(path.name for path in folder.iterdir() if path.name != 'images')
    assert set(kinds) == {'.mmpetl-mini.json', 'none', *CORRUPTIONS}

    def read(path: Path) -> np.ndarray:
        return cv2.imread(str(path)).astype(float)

    own = [read(root / f'vtab-1k/{task}' / name) for name, _ in plain]
    kept = entries(folder / 'none/0.txt')
    assert [label for _, label in kept] == [label for _, label in plain]
    for picture, (name, _) in zip(own, kept, strict=True):
        assert np.array_equal(picture, read(folder / name))
    for kind in CORRUPTIONS:
        change = []
        for severity in range(1, 6):
            lines = entries(folder / kind / f'{severity}.txt')
            assert [label for _, label in lines] == [label for _, label in plain]
            pictures = [read(folder / name) for name, _ in lines]
            pairs = zip(own, pictures, strict=True)
            change.append(np.mean([np.abs(a - b).mean() for a, b in pairs]))
        assert change[0] > 0.5
        assert change[4] > change[0]


@pytest.mark.parametrize(
    ('task', 'classes'),
    [
        ('CUB_200_2011', 200),
        ('nabirds', 555),
        ('OxfordFlower', 102),
        ('StanfordDogs', 120),
        ('StanfordCars', 196),
    ],
)
def test_fgvc_splits_hold_all_classes_and_their_pictures(root, task, classes):
    folder = root / 'fgvc' / task
    below = {'CUB_200_2011': 'images', 'nabirds': 'images', 'StanfordDogs': 'Images'}
    ids, keys = set(), []
    for split in ('train', 'val', 'test'):
        content = json.loads((folder / f'{split}.json').read_text())
        ids |= set(content.values())
        keys += content
    assert len(ids) == classes
    assert 0 not in ids
    assert len(keys) == len(set(keys))
    for key in keys[:: len(keys) // 5]:
        assert (folder / below.get(task, '.') / key).is_file()


def test_nabirds_ids_have_gaps(root):
    ids = set(json.loads((root / 'fgvc/nabirds/train.json').read_text()).values())
    assert max(ids) - min(ids) + 1 > len(ids)


# --- video -------------------------------------------------------------------


@pytest.mark.parametrize('task', ['kinetics400', 'ssv2', 'hmdb51'])
def test_clips_are_real_mp4_of_the_stated_length(root, task):
    import decord

    facts = videos.VIDEO_TASKS[task]
    for split, name in facts.lists.items():
        for path, label in entries(root / task / name):
            reader = decord.VideoReader(str(root / task / facts.folders[split] / path))
            assert len(reader) == facts.frames
            assert reader[0].shape == (80, 80, 3)
            assert 0 <= label < len(facts.casts)
            assert path.endswith('.mp4')
            assert ' ' not in path


def test_the_three_splits_of_hmdb51_part_the_same_clips(root):
    parts = {}
    for number in (1, 2, 3):
        lists = [
            entries(root / f'hmdb51/hmdb51_{name}_split_{number}_videos.txt')
            for name in ('train', 'val')
        ]
        assert [len(lines) for lines in lists] == [4, 2]
        parts[number] = {name for name, _ in lists[1]}
        assert len(set(lists[0]) | set(lists[1])) == 6
    assert not parts[1] & parts[2]
    assert not parts[2] & parts[3]


def test_no_two_motions_are_the_same():
    paths = {
        name: tuple(motion.MOTIONS[name](t) for t in np.linspace(0, 1, 9))
        for name in motion.MOTIONS
    }
    assert len(set(paths.values())) == len(paths) == 24


def centre(frame: np.ndarray) -> np.ndarray:
    """Where the frame differs from its corner's colour."""
    off = np.abs(frame.astype(float) - frame[0, 0]).sum(-1) > 150
    return np.argwhere(off).mean(0)[::-1]


@pytest.mark.parametrize(
    ('name', 'direction'),
    [('right', (1, 0)), ('left', (-1, 0)), ('up', (0, -1)), ('down', (0, 1))],
)
def test_a_clip_moves_the_way_its_class_says(name, direction):
    rng = np.random.default_rng(1)
    actors = [motion.Actor('A', motion.MOTIONS[name])]
    clip = motion.draw_clip(rng, actors, 8, 64)
    way = centre(clip[-1]) - centre(clip[0])
    assert way @ direction > 12
    assert abs(way @ direction[::-1]) < 3


def test_a_sequel_turns_where_the_glyph_rests():
    path = motion.then(motion.MOTIONS['right'], motion.MOTIONS['up'])
    start, middle, end = (path(t) for t in (0.0, 0.5, 1.0))
    assert (middle.x, middle.y) == (0, 0)
    assert start.x < 0
    assert start.y == 0
    assert end.x == 0
    assert end.y < 0


# --- dense -------------------------------------------------------------------


def test_scene_boxes_are_tight_and_things_stand_out():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = scenes.draw_scene(rng, dense.VOC_GLYPHS)
        assert scene.things
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert thing.mask[top:bottom, left:right].sum() == thing.mask.sum()
            inside = thing.mask[top:bottom, left:right]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_coco_files_are_read_by_pycocotools(root):
    from pycocotools.coco import COCO

    for split, count in (('train2017', 4), ('val2017', 2)):
        path = root / 'coco/annotations' / f'instances_{split}.json'
        coco = COCO(str(path))
        assert len(coco.getCatIds()) == 80
        assert max(coco.getCatIds()) == 90
        assert len(coco.getImgIds()) == count
        for annotation in coco.loadAnns(coco.getAnnIds()):
            mask = coco.annToMask(annotation)
            x, y, width, height = annotation['bbox']
            inside = mask[y : y + height, x : x + width].sum()
            assert inside >= 0.97 * mask.sum()
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.3)
        for image in coco.loadImgs(coco.getImgIds()):
            picture = cv2.imread(str(root / 'coco' / split / image['file_name']))
            assert picture.shape[:2] == (image['height'], image['width'])


def test_coco_names_are_those_that_mmdet_knows():
    from mmdet import datasets

    assert datasets.CocoDataset.METAINFO['classes'] == dense.COCO_CLASSES
    assert datasets.VOCDataset.METAINFO['classes'] == dense.VOC_CLASSES


@pytest.mark.parametrize(
    ('year', 'splits'), [(2007, ['trainval', 'test']), (2012, ['trainval'])]
)
def test_voc_boxes_lie_within_their_pictures(root, year, splits):
    folder = root / f'VOCdevkit/VOC{year}'
    for split in splits:
        names = (folder / f'ImageSets/Main/{split}.txt').read_text().split()
        assert names
        for name in names:
            tree = ElementTree.parse(folder / 'Annotations' / f'{name}.xml').getroot()
            picture = cv2.imread(str(folder / 'JPEGImages' / f'{name}.jpg'))
            size = [int(tree.find(f'size/{tag}').text) for tag in ('height', 'width')]
            assert list(picture.shape[:2]) == size
            for thing in tree.iter('object'):
                assert thing.find('name').text in dense.VOC_CLASSES
                for axis, side in zip('yx', size, strict=True):
                    low = int(thing.find(f'bndbox/{axis}min').text)
                    high = int(thing.find(f'bndbox/{axis}max').text)
                    assert 1 <= low < high <= side


def test_ade_maps_hold_official_labels_and_match_their_pictures(root):
    known = {0, *dense.ADE_GROUNDS.values(), *dense.ADE_THINGS}
    seen = set()
    for split in ('training', 'validation'):
        folder = root / 'ADEChallengeData2016'
        pictures = sorted((folder / 'images' / split).iterdir())
        assert pictures
        for path in pictures:
            label_path = folder / 'annotations' / split / f'{path.stem}.png'
            labels = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
            assert labels.shape == cv2.imread(str(path)).shape[:2]
            seen |= set(np.unique(labels).tolist())
    assert seen <= known
    assert 0 in seen
    assert max(seen) <= 150
