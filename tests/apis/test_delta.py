"""Deltas on disk: what goes in comes out, and what does not belong is named."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from mmpetl import apis
from mmpetl.core import PETLError, delta_state, methods_name
from mmpetl.engine.hooks.delta_checkpoint import delta_meta

LORA = {'type': 'LoRA', 'rank': 2}


def scores(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return model(torch.randn(3, 3, 32, 32, generator=g), mode='tensor')


@pytest.fixture
def published(bench):
    """Config, tuned model and its published delta."""
    config = bench.config(LORA)
    model = bench.tuned(config)
    run = apis.load_config(config)
    run.preprocessing = {'normalisation': 'half', 'augmentation': None}
    path = apis.export_delta(model, run, bench.folder / 'pub' / 'ants', {'acc': 0.5})
    return config, model, path


@pytest.mark.parametrize(
    'method',
    [
        LORA,
        {'type': 'SSF'},
        {'type': 'BitFit'},
        {'type': 'SCT', 'num_channels': 8},
        {'type': 'GPS', 'num_weights': 2},
        [LORA | {'blocks': [0]}, {'type': 'VPTDeep', 'num_tokens': 2}],
        ['BitFit', LORA],
    ],
    ids=methods_name,
)
def test_a_published_delta_gives_the_same_model(bench, method):
    config = bench.config(method)
    model = bench.tuned(config)
    path = apis.export_delta(model, config, bench.folder / 'delta')
    again = apis.load_delta(config, path)
    assert torch.equal(scores(model), scores(again))
    assert set(delta_state(model)) == set(apis.read_delta(path).state)


def test_the_record_says_what_is_needed(published):
    _, model, path = published
    record = json.loads(path.with_suffix('.json').read_text())
    assert record['format'] == 1
    assert record['method']['type'] == 'LoRA'
    assert record['method']['rank'] == 2
    assert record['backbone']['arch']['embed_dims'] == 32
    assert record['base'] == 'base.pth'
    assert record['classes'] == ['ant', 'bee', 'cat', 'dog']
    assert record['metrics'] == {'acc': 0.5}
    assert record['preset'] == {'normalisation': 'half', 'augmentation': None}
    assert record['preprocessing'][1] == {'type': 'Resize', 'scale': 32}
    assert record['tensors']['values'] == sum(
        v.numel() for v in delta_state(model).values()
    )
    assert str(path.parent.parent) not in json.dumps(record)


def test_the_delta_is_small_and_data_only(published):
    _, model, path = published
    whole = sum(v.numel() * 4 for v in model.state_dict().values())
    assert path.stat().st_size < whole / 5
    assert sorted(p.name for p in path.parent.iterdir()) == [
        'ants.json',
        'ants.safetensors',
    ]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(path.read_bytes())


def test_either_file_or_the_stem_names_a_delta(published):
    _, _, path = published
    for name in (path, path.with_suffix('.json'), path.with_suffix('')):
        assert apis.read_delta(name).path == path


def test_a_run_checkpoint_is_accepted(bench):
    from mmpetl.engine.hooks.delta_checkpoint import delta_meta

    config = bench.config(LORA)
    model = bench.tuned(config)
    run = bench.folder / 'epoch_1.pth'
    meta = {
        'mmpetl': delta_meta(model),
        'dataset_meta': {'classes': ['w', 'x', 'y', 'z']},
    }
    torch.save({'meta': meta, 'state_dict': delta_state(model)}, run)
    assert torch.equal(scores(apis.load_delta(config, run)), scores(model))
    published = apis.export_delta(run, config, bench.folder / 'from_run')
    assert apis.read_delta(published).dataset['classes'] == ['w', 'x', 'y', 'z']


def test_several_are_published_predict_and_are_told_from_others(bench, picture):
    config = bench.config([{'type': 'BitFit'}, LORA | {'blocks': '1:'}])
    model = bench.tuned(config)
    path = apis.export_delta(model, config, bench.folder / 'delta')
    record = json.loads(path.with_suffix('.json').read_text())
    assert [m['type'] for m in record['method']] == ['BitFit', 'LoRA']
    assert record['where'] == [
        {'layers': None, 'blocks': None},
        {'layers': None, 'blocks': [1]},
    ]
    again = apis.init_model(config, path, 'cpu')
    assert torch.equal(scores(model), scores(again))
    shown = apis.predict_image(again, picture, topk=4)
    assert sum(one.score for one in shown) == pytest.approx(1)
    row = apis.count_config(config)
    assert row['method'] == 'BitFit + LoRA'
    assert row['delta'] == 2 * 2 * 2 * 32
    other = bench.config('BitFit + LoRA', name='other')
    with pytest.raises(PETLError, match='delta'):
        apis.load_delta(other, path)
    single = bench.config(LORA, name='single')
    with pytest.raises(
        PETLError, match=re.escape('is of BitFit + LoRA, the model has')
    ):
        apis.load_delta(single, path)
    # A run's checkpoint with the second method alone in its keys says the same.
    saved = {'state_dict': delta_state(model), 'meta': {'mmpetl': delta_meta(model)}}
    torch.save(saved, bench.folder / 'epoch_1.pth')
    out = apis.export_delta(bench.folder / 'epoch_1.pth', config, bench.folder / 'twin')
    assert torch.equal(scores(apis.load_delta(config, out)), scores(model))


def test_metrics_come_from_best_checkpoints_only(bench):
    from mmengine.logging import HistoryBuffer

    from mmpetl.engine.hooks.delta_checkpoint import delta_meta

    config = bench.config(LORA)
    model = bench.tuned(config)
    buffer = HistoryBuffer()
    buffer.update(41.0)
    buffer.update(73.5)
    content = {
        'meta': {'mmpetl': delta_meta(model)},
        'state_dict': delta_state(model),
        'message_hub': {'log_scalars': {'val/top1': buffer, 'train/loss': buffer}},
    }
    for name, metrics in (
        ('best_top1_epoch_2.pth', {'top1': 73.5}),
        ('epoch_2.pth', {}),
    ):
        torch.save(content, bench.folder / name)
        assert apis.read_delta(bench.folder / name).metrics == metrics

    path = bench.folder / 'best_top1_epoch_2.pth'
    for hub, message in (
        ([1], 'holds no log_scalars'),
        ({'log_scalars': 7}, 'holds no log_scalars'),
        ({'log_scalars': {'val/top1': 7.0}}, 'val/top1 is no buffer with a value'),
        ({'log_scalars': {'val/top1': HistoryBuffer()}}, 'no buffer with a value'),
    ):
        torch.save({**content, 'message_hub': hub}, path)
        with pytest.raises(PETLError, match=message):
            apis.read_delta(path)
    torch.save({**content, 'message_hub': None}, path)
    assert apis.read_delta(path).metrics == {}


def refusal(model, path) -> str:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError) as error:
        apis.load_delta(model, path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert '\n' not in str(error.value)
    return str(error.value)


def test_another_base_is_refused(bench, published):
    _, _, path = published
    other = bench.config(LORA, bench.base('other', seed=9), 'other_run')
    message = refusal(bench.tuned(other), path)
    assert 'base.pth' in message
    assert 'other.pth' in message


def test_another_method_is_refused(bench, published):
    message = refusal(bench.tuned(bench.config({'type': 'SSF'})), published[2])
    assert 'the delta is of LoRA, the model has SSF' in message


def test_other_arguments_are_refused(bench, published):
    message = refusal(
        bench.tuned(bench.config({'type': 'LoRA', 'rank': 4})), published[2]
    )
    assert "'rank': 2" in message
    assert "'rank': 4" in message


def test_another_depth_is_refused(bench, published):
    arch = {
        'embed_dims': 32,
        'num_layers': 3,
        'num_heads': 4,
        'feedforward_channels': 64,
    }
    base = bench.base('deep', arch=arch)
    message = refusal(bench.tuned(bench.config(LORA, base, arch=arch)), published[2])
    assert '2 blocks' in message
    assert 'has 3' in message


@pytest.mark.parametrize('here', [True, False])
def test_another_order_of_channels_is_refused(bench, here):
    file = bench.config(LORA)
    config = apis.load_config(file)
    node = config.model.get('data_preprocessor') or config.data_preprocessor
    assert node.to_rgb
    other = copy.deepcopy(config)
    (other.model.get('data_preprocessor') or other.data_preprocessor).to_rgb = False
    learnt, asked = (other, config) if here else (config, other)
    path = apis.export_delta(bench.tuned(file), learnt, bench.folder / 'delta')
    said = refusal(apis.init_model(asked, device='cpu'), path)
    assert 'colours would be swapped' in said
    assert ('preprocessor does not turn' in said) == here
    again = apis.load_delta(learnt, path)
    assert again.data_preprocessor.to_rgb is not here
    # By itself it knows its own order.
    base = {'model.backbone.checkpoint': config.model.backbone.checkpoint}
    run = apis.open_run(path, options=base)
    assert run.config.model.data_preprocessor.to_rgb is not here


def test_another_head_is_refused(bench, published):
    config = bench.config(LORA)
    config.write_text(config.read_text().replace('num_classes=4', 'num_classes=7'))
    message = refusal(bench.tuned(config), published[2])
    # safetensors keeps no order, so either of the two may be named.
    assert re.search(r'head\.fc\.\w+ has shape \(4,.* in the delta and \(7,', message)


def test_a_model_without_a_method_is_refused(bench, published):
    message = refusal(bench.tuned(bench.config(None)), published[2])
    assert 'delta of LoRA, the model has no method' in message


def change(path: Path, **facts) -> None:
    record = json.loads(path.read_text())
    record.update(facts)
    path.write_text(json.dumps(record))


def test_a_delta_from_before_an_argument_existed_is_read(published):
    config, _, path = published
    method = json.loads(path.with_suffix('.json').read_text())['method']
    del method['drop_rate']
    change(path.with_suffix('.json'), method=method)
    apis.load_delta(config, path)


def test_another_format_is_refused(published):
    config, _, path = published
    change(path.with_suffix('.json'), format=99, version='7.0')
    with pytest.raises(PETLError, match='format 99, this mmpetl reads 1.*mmpetl 7.0'):
        apis.load_delta(config, path)


def test_a_damaged_delta_is_refused(published):
    _, _, path = published
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PETLError, match='damaged, or the two files are of two exports'):
        apis.read_delta(path)
    path.with_suffix('.json').write_text('{"format": 1')
    with pytest.raises(PETLError, match='damaged or no JSON'):
        apis.read_delta(path)
    path.with_suffix('.json').write_text('{"format": 1}')
    with pytest.raises(PETLError, match="it lacks 'method'"):
        apis.read_delta(path)


def test_missing_files_are_named(published):
    _, _, path = published
    path.with_suffix('.json').unlink()
    with pytest.raises(FileNotFoundError, match='there is no .*ants.json'):
        apis.read_delta(path)
    with pytest.raises(FileNotFoundError, match='there is no .*none.safetensors'):
        apis.read_delta(path.with_name('none'))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / 'ran').write_text, ('x',))

    torch.save({'meta': {}, 'state_dict': {}, 'x': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(PETLError, match=r'evil.pth cannot be loaded'):
        apis.read_delta(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


def test_base_weights_are_no_delta(bench):
    with pytest.raises(PETLError, match='no delta of mmpetl.*backbone.checkpoint'):
        apis.read_delta(bench.base())


def test_non_finite_values_are_not_published(bench):
    config = bench.config(LORA)
    model = bench.tuned(config)
    with torch.no_grad():
        model.head.fc.bias[1] = float('nan')
    with pytest.raises(
        PETLError, match=r'head\.fc\.bias holds values that are not fin'
    ):
        apis.export_delta(model, config, bench.folder / 'bad')
    assert not (bench.folder / 'bad.json').exists()


def test_the_config_of_another_run_is_refused(bench):
    model = bench.tuned(bench.config(LORA))
    with pytest.raises(PETLError, match='delta of LoRA, the config has SSF'):
        apis.export_delta(model, bench.config({'type': 'SSF'}), bench.folder / 'x')


def test_a_failed_export_leaves_the_old_one(published, monkeypatch):
    import os

    config, model, path = published
    before = path.read_bytes(), path.with_suffix('.json').read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device', 'ants')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(PETLError, match='cannot write ants: No space left'):
        apis.export_delta(model, config, path, {'acc': 0.9})
    assert (path.read_bytes(), path.with_suffix('.json').read_bytes()) == before
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ('scope', 'dataset', 'count', 'first'),
    [
        ('mmseg', 'ADE20KDataset', 150, 'wall'),
        ('mmdet', 'CocoDataset', 80, 'person'),
        ('mmdet', 'VOCDataset', 20, 'aeroplane'),
    ],
)
def test_class_names_come_from_the_dataset_class(scope, dataset, count, first):
    from mmengine.config import Config

    from mmpetl.apis.building import dataset_meta

    inner = {'type': dataset, 'ann_file': 'absent', 'pipeline': []}
    for node in (inner, {'type': 'RepeatDataset', 'times': 2, 'dataset': inner}):
        config = {'default_scope': scope, 'test_dataloader': {'dataset': node}}
        known = dataset_meta(Config(config))
        assert len(known['classes']) == len(known['palette']) == count
        assert known['classes'][0] == first


def test_class_names_come_from_the_folders_of_a_video_list(tmp_path):
    from mmengine.config import Config

    from mmpetl.apis.building import dataset_meta

    def names(train: str, test: str):
        node = {}
        for phase, text in (('train', train), ('test', test)):
            (tmp_path / phase).write_text(text)
            dataset = {'type': 'VideoDataset', 'ann_file': str(tmp_path / phase)}
            node[f'{phase}_dataloader'] = {'dataset': dataset}
        return dataset_meta(Config({'default_scope': 'mmaction', **node})).get(
            'classes'
        )

    whole = 'nod/a.mp4 0\nwave/b b.mp4 1\nnod/c.mp4 0\n'
    assert names(whole, 'nod/d.mp4 0\n') == ['nod', 'wave']
    assert names('nod/a.mp4 0\nwave/b.mp4 0\n', '') is None  # two names, one label
    assert names('nod/a.mp4 0\nwave/b.mp4 2\n', '') is None  # nothing names label 1
    assert names('1.mp4 0\n2.mp4 1\n', '') is None  # no folders
