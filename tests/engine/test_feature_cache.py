"""Features read from disk give the run that the trunk gives, or none are read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import KillAt, Killed
from PIL import Image
from torch import nn

from mmpetl.core import PETLError
from mmpetl.datasets.fixed import drawing_step
from mmpetl.engine import FeatureCacheHook
from mmpetl.engine.feature_files import FACTS, FeatureSet, key_of, make_room
from mmpetl.engine.hooks import feature_cache
from mmpetl.engine.hooks.feature_cache import read_features_file, with_features

PROBE = {'type': 'LinearProbe'}
COUNT = 20
TWO_EPOCHS = {'by_epoch': True, 'max_epochs': 2, 'val_interval': 1}
LOAD = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}
RESIZE = {'type': 'Resize', 'scale': 32}
PACK = {'type': 'PackInputs'}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    """20 pictures of 40 px of four classes, and a list of them."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.RandomState(0)
    for number in range(COUNT):
        picture = rng.randint(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(picture).save(root / f'{number:02d}.png')
    lines = (f'{number:02d}.png {number % 4}\n' for number in range(COUNT))
    (root / 'list.txt').write_text(''.join(lines))
    return root


@pytest.fixture
def base(tmp_path) -> str:
    return _base(tmp_path / 'base.pth', 0)


def _base(path: Path, seed: int) -> str:
    from mmpretrain.models import VisionTransformer
    from pictures import BACKBONE

    torch.manual_seed(seed)
    settings = {k: v for k, v in BACKBONE.items() if k != 'type'}
    state = VisionTransformer(**settings).state_dict()
    torch.save({k: 0.3 * torch.randn_like(v) for k, v in state.items()}, path)
    return str(path)


@pytest.fixture
def run(make_runner, pictures, base, tmp_path):
    """``run(folder, asked)`` is a runner on the pictures; ``asked`` its features."""

    def make(folder, asked=None, steps=(LOAD, RESIZE, PACK), data=pictures, **changes):
        changes = {'method': PROBE, 'checkpoint': base, **changes}
        runner = make_runner(folder, **changes)
        dataset = {
            'type': 'mmpretrain.CustomDataset',
            'data_root': str(data),
            'ann_file': 'list.txt',
            'pipeline': list(steps),
        }
        runner._train_dataloader.dataset = dataset
        runner._val_dataloader.dataset = {**dataset, 'test_mode': True}
        if asked is not None:
            with_features(runner, {'folder': str(tmp_path / 'features'), **asked})
        return runner

    return make


def head_of(runner) -> dict[str, torch.Tensor]:
    return runner.model.head.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def counted(runner) -> list[int]:
    """Sizes of the batches that a block of the trunk has seen."""
    seen: list[int] = []
    block: nn.Module = runner.model.backbone.layers[0]
    block.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    return seen


def scores(runner, count: int = 4) -> list[float]:
    kept = runner.message_hub.log_scalars['val/accuracy/top1'].data[0].tolist()
    assert len(kept) == count
    return kept


def key(runner) -> str:
    runner.train()
    return read_features_file(runner.work_dir)['train'].key


def test_a_run_on_stored_features_is_bit_equal_and_runs_no_trunk(run) -> None:
    plain = run('plain')
    plain.train()
    filled = run('filled', {})
    filled.train()
    read = run('read', {})
    seen = counted(read)
    read.train()
    assert same(head_of(plain), head_of(filled))
    assert same(head_of(plain), head_of(read))
    assert scores(plain) == scores(filled) == scores(read)
    # What is compared: a batch of 8 and the rest of an epoch, 4, of each phase.
    assert sorted(seen) == [4, 4, 8, 8]
    kept = read_features_file(read.work_dir)
    first = read_features_file(filled.work_dir)
    assert (kept['train'].computed, first['train'].computed) == (0, COUNT)
    assert kept['val'].pictures == COUNT
    assert kept['train'].bytes == COUNT * 32 * 4
    assert (kept['train'].checked, kept['train'].difference) == (12, 0.0)
    # Behind the training everything is as it was.
    assert 'forward' not in vars(read.model.backbone)
    before = len(seen)
    read.val()
    assert len(seen) == before + 3


@pytest.mark.parametrize(
    'method',
    [
        {'type': 'LST', 'reduction': 4},
        {'type': 'DTL'},
        pytest.param({'type': 'LAST'}, marks=pytest.mark.slow),
        pytest.param({'type': 'ResTuningBypass'}, marks=pytest.mark.slow),
    ],
    ids=lambda method: method['type'],
)
def test_a_side_network_reads_the_stream_of_the_trunk(run, method) -> None:
    changes = {'method': method, 'checkpoint': None, 'train_cfg': TWO_EPOCHS}
    plain = _trained(run('plain', **changes))
    read = run('read', {}, **changes)
    passes = []
    norm = read.model.backbone.layers[0].ln1
    norm.register_forward_hook(lambda *_: passes.append(1))
    read.train()
    kept = read_features_file(read.work_dir)['train']
    # Two blocks, 17 tokens of 32 channels in each.
    assert kept.bytes == COUNT * 2 * 17 * 32 * 4
    assert same(plain.model.state_dict(), read.model.state_dict())
    assert scores(plain, 2) == scores(read, 2)
    # Of each phase: whose blocks are fixed, 3 batches that are stored, 2 that are
    # compared, and one for what leaves the backbone.
    if method['type'] != 'ResTuningBypass':  # which runs blocks on its own stream too
        assert len(passes) == 2 * 7
    assert not any('sublayers' in vars(m) for m in read.model.modules())


def test_a_record_says_what_was_read(run, tmp_path) -> None:
    from mmpetl.benchmark.collect import features_of

    runner = run('run', {'limit_gib': 1})
    runner.train()
    found = features_of(Path(runner.work_dir))
    assert set(found) == {'train', 'val'}
    assert len(found['train'].pop('key')) == 32
    assert found['train'] == {
        'pictures': COUNT,
        'computed': COUNT,
        'checked': 12,
        'difference': 0.0,
    }
    none = run('none', {'limit_gib': 0, 'folder': str(tmp_path / 'empty')})
    none.train()
    assert features_of(Path(none.work_dir)) == {}


@pytest.mark.slow
def test_a_run_of_iterations_reads_them_too(run) -> None:
    plain = run('plain', by_epoch=False)
    plain.train()
    read = run('read', {}, by_epoch=False)
    read.train()
    assert same(head_of(plain), head_of(read))
    assert read_features_file(read.work_dir)['train'].key
    with pytest.raises(PETLError, match='num_workers=0'):
        run('workers', {}, by_epoch=False, num_workers=1).train()


def test_a_killed_run_goes_on_to_the_same_end(run) -> None:
    whole = run('whole')
    whole.train()
    killed = run('killed', {}, hooks=[KillAt(5)])
    with pytest.raises(Killed):
        killed.train()
    resumed = run('killed', {}, resume=True)
    resumed.train()
    assert same(head_of(whole), head_of(resumed))


def test_a_kill_while_they_are_computed_loses_no_whole_piece(run, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, 'PIECE_BYTES', 1)
    add, written = FeatureSet.add, []

    def add_two(self, start, rows):
        if len(written) == 2:
            raise Killed
        written.append(start)
        add(self, start, rows)

    monkeypatch.setattr(FeatureSet, 'add', add_two)
    with pytest.raises(Killed):
        run('killed', {}).train()
    monkeypatch.setattr(FeatureSet, 'add', add)
    again = run('again', {})
    again.train()
    assert written == [0, 8]
    assert read_features_file(again.work_dir)['train'].computed == COUNT - 16


def test_base_pictures_and_preprocessing_make_keys_and_places_do_not(
    run, pictures, tmp_path
) -> None:
    moved, changed = tmp_path / 'moved', tmp_path / 'changed'
    shutil.copytree(pictures, moved)
    shutil.copytree(pictures, changed)
    file = changed / '03.png'
    Image.open(file).rotate(90).save(file)
    first = key(run('first', {}))
    assert key(run('moved', {}, data=moved)) == first
    others = [
        key(run('pictures', {}, data=changed)),
        key(run('base', {}, checkpoint=_base(tmp_path / 'other.pth', 1))),
        key(run('step', {}, [LOAD, {**RESIZE, 'interpolation': 'bicubic'}, PACK])),
    ]
    norm = run('norm', {})
    norm.model.data_preprocessor.mean += 1
    others.append(key(norm))
    assert len({first, *others}) == 1 + len(others)


@pytest.mark.slow
def test_keeping_pictures_in_memory_makes_no_key(run) -> None:
    once = {'type': 'mmpetl.LoadOnce', 'transforms': [LOAD, RESIZE]}
    assert key(run('kept', {}, [once, PACK])) == key(run('read', {}))


def test_a_damaged_piece_is_found_and_made_anew(run, tmp_path) -> None:
    kept = read_features_file(_trained(run('first', {})).work_dir)
    (piece,) = (tmp_path / 'features' / kept['train'].key).glob('*.safetensors')
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    again = _trained(run('again', {}))
    assert read_features_file(again.work_dir)['train'].computed == COUNT
    assert 'is damaged; its features are made anew' in _log(again)
    piece.write_bytes(piece.read_bytes()[:-5])
    cut = _trained(run('cut', {}))
    assert read_features_file(cut.work_dir)['train'].computed == COUNT
    assert same(head_of(again), head_of(cut))


def _trained(runner):
    runner.train()
    return runner


def _log(runner) -> str:
    return next(Path(runner.log_dir).glob('*.log')).read_text()


def test_rows_that_the_trunk_does_not_give_are_made_anew(run, tmp_path) -> None:
    """Whole files under the right key with other numbers: what no key can tell."""
    first = _trained(run('first', {}))
    folder = tmp_path / 'features' / read_features_file(first.work_dir)['train'].key
    facts = json.loads((folder / FACTS).read_text())
    assert key_of(facts) == folder.name
    forged = FeatureSet(folder, COUNT, facts)
    forged.open()
    forged.clear()
    forged.add(0, (torch.zeros(COUNT, 32),))
    again = _trained(run('again', {}))
    assert read_features_file(again.work_dir)['train'].computed == COUNT
    assert 'differs from the trunk by up to' in _log(again)
    assert same(head_of(first), head_of(again))


@pytest.mark.slow
def test_a_trunk_whose_rows_move_with_the_batch_is_run_each_time(run) -> None:
    plain = _trained(run('plain'))
    moving = run('moving', {})
    norm = moving.model.backbone.ln1

    def move(module, args, out):
        return out + 1e-3 * torch.rand(()) * (moving.iter == 0)

    handle = norm.register_forward_hook(move)
    hook = next(h for h in moving.hooks if isinstance(h, FeatureCacheHook))
    hook.after_train = lambda runner: None
    before = FeatureCacheHook.before_train

    def look(runner):
        before(hook, runner)
        handle.remove()

    hook.before_train = look
    moving.train()
    kept = read_features_file(moving.work_dir)['train']
    assert 'differ by up to' in kept.why
    assert not kept.key
    assert 'the trunk computes them each time' in _log(moving)
    assert same(head_of(plain), head_of(moving))


def test_a_set_above_the_limit_is_not_kept_and_it_is_said(run, tmp_path) -> None:
    over = _trained(run('over', {'limit_gib': 1e-6}))
    kept = read_features_file(over.work_dir)['train']
    assert 'limit_gib' in kept.why
    assert not kept.key
    assert not list((tmp_path / 'features').glob('*/*.safetensors'))


def test_room_is_made_by_what_was_used_longest_ago(tmp_path) -> None:
    keys = [f'{number:032x}' for number in range(4)]
    for age, name in enumerate(keys[:3]):
        rows = FeatureSet(tmp_path / name, 10, {})
        rows.add(0, (torch.zeros(10, 100),))
        os.utime(tmp_path / name / FACTS, (1000 + age, 1000 + age))
    (tmp_path / 'notes').mkdir()
    size = sum(f.stat().st_size for f in (tmp_path / keys[0]).iterdir())
    assert not make_room(tmp_path, keys[3], 3 * size + 1, 3 * size)
    assert make_room(tmp_path, keys[3], size, 3 * size)
    assert sorted(p.name for p in tmp_path.iterdir()) == [*keys[1:3], 'notes']


def test_rows_come_in_the_order_that_is_asked_for_in_any_type(tmp_path) -> None:
    a = torch.arange(12.0).reshape(6, 2)
    b = torch.arange(6).to(torch.bfloat16)
    rows = FeatureSet(tmp_path / 'set', 6, {'any': 1})
    rows.add(4, (a[4:], b[4:]))
    rows.add(0, (a[:4], b[:4]))
    again = FeatureSet(tmp_path / 'set', 6, {'any': 1})
    assert again.missing() == list(range(6))
    again.open()
    assert again.missing() == []
    found = again.rows([5, 0, 3])
    assert torch.equal(found[0], a[[5, 0, 3]])
    assert torch.equal(found[1], b[[5, 0, 3]])


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        (
            {'method': {'type': 'LoRA', 'rank': 2}},
            'LoRA trains .* inside of the blocks',
        ),
        (
            {'steps': (LOAD, RESIZE, {'type': 'RandomFlip', 'prob': 0.5}, PACK)},
            'RandomF',
        ),
    ],
    ids=['trained trunk', 'random pictures'],
)
def test_what_varies_is_refused_in_a_line(run, changes, line) -> None:
    with pytest.raises(PETLError, match=line):
        run('refused', {}, **changes).train()


def test_mixed_pictures_dropout_and_compiling_are_refused(run) -> None:
    from mmpretrain.models.utils.batch_augments import RandomBatchAugment

    mixing = run('mixing', {})
    mixing.model.data_preprocessor.batch_augments = RandomBatchAugment(
        {'type': 'Mixup', 'alpha': 0.8}
    )
    with pytest.raises(PETLError, match='batch_augments'):
        mixing.train()
    dropping = run('dropping', {})
    dropping.model.backbone.drop_after_pos.train = lambda mode=True: None
    dropping.model.backbone.drop_after_pos.training = True
    dropping.model.backbone.train = lambda mode=True: None
    with pytest.raises(PETLError, match='varies in training'):
        dropping.train()
    compiled = run('compiled', {})
    # As MMEngine does for a config with compile.
    compiled.model.train_step = torch.compile(compiled.model.train_step)
    with pytest.raises(PETLError, match='compiled'):
        compiled.train()


@pytest.mark.parametrize('asked', ['yes', {'size': 3}, {'limit_gib': -1}])
def test_what_is_asked_wrongly_is_said(make_runner, asked) -> None:
    with pytest.raises(PETLError, match='cache_features is|limit_gib is >= 0'):
        with_features(make_runner('wrong'), asked)


def test_a_fixed_step_is_one_that_is_known() -> None:
    class Resize:
        """Of nobody that is known."""

    assert drawing_step([Resize()]) == 'Resize'
