"""What evaluators keep is written, read back bit for bit, and scored to the same."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator

from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError
from mmpetl.engine.hooks import PredictionsHook, ResultsHook
from mmpetl.engine.hooks.results import pack, read_results, scored, unpack


def evaluator(scope: str, node, meta) -> Evaluator:
    with scope_of(SimpleNamespace(get=lambda key, default=None: scope)):
        found = Evaluator(node)
    found.dataset_meta = meta
    return found


def measured(tmp_path, found: Evaluator, samples, hooks=()):
    """Metrics of a test loop, and what the hook wrote of it."""
    said = []
    loop = SimpleNamespace(dataloader=_Loader(samples), evaluator=found)
    runner = SimpleNamespace(
        test_loop=loop, hooks=list(hooks), logger=SimpleNamespace(warning=said.append)
    )
    hook = ResultsHook(str(tmp_path / 'results.json.gz'))
    for index, sample in enumerate(samples):
        found.process(data_samples=[sample])
        hook.after_test_iter(runner, index)
    metrics = found.evaluate(len(samples))
    hook.after_test_epoch(runner, metrics)
    return metrics, tmp_path / 'results.json.gz', said


class _Loader(list):
    """A loader of one sample a batch."""

    @property
    def dataset(self):
        return self


def again(scope, node, path):
    kept = read_results(path)
    return scored(evaluator(scope, node, kept.meta).metrics, kept)


def boxes(count: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * 60
    return torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=draw)], 1)


def detection(seed: int):
    found, truth = boxes(6, seed), boxes(3, seed)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    masks = torch.zeros(6, 80, 80, dtype=torch.bool)
    for mask, (x, y, right, low) in zip(
        masks, found.round().int().tolist(), strict=True
    ):
        mask[y:low, x:right] = True
    instances = [
        {
            'bbox': box.tolist(),
            'bbox_label': int(label),
            'ignore_flag': 0,
            'mask': [[*box[:2].tolist(), *box[2:].tolist(), float(box[0]), 70.0]],
        }
        for box, label in zip(truth, labels[:3], strict=True)
    ]
    return {
        'img_id': seed,
        'ori_shape': (80, 80),
        'instances': instances,
        'pred_instances': {
            'bboxes': found,
            'scores': torch.linspace(0.9, 0.3, 6),
            'labels': labels,
            'masks': masks,
        },
        'gt_instances': {'bboxes': truth, 'labels': labels[:3]},
        'ignored_instances': {
            'bboxes': torch.zeros(0, 4),
            'labels': torch.zeros(0, dtype=torch.long),
        },
    }


def test_areas_of_classes_give_the_same_miou(tmp_path):
    node = {'type': 'IoUMetric', 'iou_metrics': ['mIoU']}
    meta = {'classes': ('sky', 'tree', 'road'), 'palette': [[0, 0, 0]] * 3}
    draw = torch.Generator().manual_seed(0)
    maps = torch.randint(3, (4, 2, 1, 16, 16), generator=draw)
    samples = [
        {'pred_sem_seg': {'data': found}, 'gt_sem_seg': {'data': truth}}
        for found, truth in maps
    ]
    metrics, path, _ = measured(tmp_path, evaluator('mmseg', node, meta), samples)
    assert again('mmseg', node, path) == metrics
    assert 0 < metrics['mIoU'] < 100
    assert read_results(path).meta == {'classes': ['sky', 'tree', 'road']}


def test_boxes_and_masks_give_the_same_ap(tmp_path):
    node = {'type': 'CocoMetric', 'metric': ['bbox', 'segm']}
    meta = {'classes': ('cat', 'dog')}
    samples = [detection(seed) for seed in (1, 2)]
    metrics, path, _ = measured(tmp_path, evaluator('mmdet', node, meta), samples)
    assert again('mmdet', node, path) == metrics
    assert 0 < metrics['coco/bbox_mAP'] <= 1
    assert metrics['coco/segm_mAP'] >= 0


def test_boxes_give_the_same_ap_of_voc(tmp_path):
    node = {'type': 'VOCMetric', 'metric': 'mAP', 'eval_mode': '11points'}
    meta = {'classes': ('cat', 'dog'), 'dataset_type': 'VOC2007'}
    samples = [detection(seed) for seed in (1, 2)]
    metrics, path, _ = measured(tmp_path, evaluator('mmdet', node, meta), samples)
    assert again('mmdet', node, path) == metrics
    assert 0 < metrics['pascal_voc/mAP'] <= 1


def test_the_same_results_are_the_same_bytes(tmp_path):
    node = [{'type': 'mmpetl.DepthError'}]
    truth = torch.rand(1, 8, 8) + 1
    sample = {'pred_depth_map': {'data': truth + 0.1}, 'gt_depth_map': {'data': truth}}
    files = []
    for name in 'ab':
        (tmp_path / name).mkdir()
        metrics, path, _ = measured(
            tmp_path / name, evaluator('mmseg', node, {}), [sample]
        )
        assert again('mmseg', node, path) == metrics
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert metrics['depth/rmse'] == pytest.approx(0.1, abs=1e-6)


def test_a_run_with_predictions_leaves_no_results(tmp_path):
    hook = PredictionsHook(str(tmp_path / 'predictions.npz'))
    hook._handle = object()
    node = [{'type': 'mmpetl.DepthError'}]
    truth = torch.ones(1, 2, 2)
    sample = {'pred_depth_map': {'data': truth}, 'gt_depth_map': {'data': truth}}
    found = evaluator('mmseg', node, {})
    _, path, _ = measured(tmp_path, found, [sample], [hook])
    assert not path.exists()


def test_what_no_file_can_hold_is_said_and_kills_no_run(tmp_path):
    node = [{'type': 'mmpetl.DepthError'}]
    found = evaluator('mmseg', node, {})
    found.metrics[0].process = lambda data_batch, data_samples: found.metrics[
        0
    ].results.append(object())
    found.metrics[0].compute_metrics = lambda results: {'odd': 1.0}
    metrics, path, said = measured(tmp_path, found, [{}])
    assert metrics == {'depth/odd': 1.0}
    assert not path.exists()
    assert 'keeps a object' in said[0]


def test_packed_values_come_back_bit_for_bit():
    value = {
        'a': torch.tensor([0.1, float('nan'), -0.0]),
        'b': (np.float32(0.1), np.zeros((0, 4), np.float64), np.array(True)),
        'c': [b'\x00PQ\xff', 'text', None, 3, {'tuple': 1}],
        'd': torch.arange(6, dtype=torch.int16).reshape(2, 3).T,
    }
    back = unpack(json.loads(json.dumps(pack(value))))
    assert back['a'].numpy().tobytes() == value['a'].numpy().tobytes()
    assert isinstance(back['b'], tuple)
    assert back['b'][0].dtype == np.float32
    assert back['b'][1].shape == (0, 4)
    assert back['b'][2].shape == ()
    assert back['c'] == value['c']
    assert torch.equal(back['d'], value['d'])
    assert back['d'].dtype == torch.int16


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (lambda b: b[:40], 'cut off'),
        (lambda b: b'{}', 'no gzip'),
        (lambda b: b + b'more', 'behind its end'),
        (lambda b: gzip.compress(b'{"format": 1}'), 'meta'),
        (
            lambda b: gzip.compress(b'{"format": 9, "meta": {}, "metrics": []}'),
            'format 9',
        ),
    ],
)
def test_a_damaged_file_is_refused_in_a_line(tmp_path, damage, said):
    path = tmp_path / 'results.json.gz'
    whole = b'{"format": 1, "meta": {}, "metrics": []}'
    path.write_bytes(damage(gzip.compress(whole)))
    with pytest.raises(PETLError, match=said):
        read_results(path)


def test_a_file_that_expands_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_MAX_TEXT_MIB', '1')
    path = tmp_path / 'results.json.gz'
    path.write_bytes(gzip.compress(b' ' * (3 << 20)))
    with pytest.raises(PETLError, match='more than 1 MiB'):
        read_results(path)


@pytest.mark.parametrize(
    'value',
    [
        {'array': ['float32', [2], 'AAAA']},
        {'array': ['object', [1], 'AAAA']},
        {'array': ['float32', [-1], '']},
        {'array': ['float32', [1 << 62, 4], '']},
        {'array': 'text'},
        {'bytes': '%%'},
        {'tuple': 3},
    ],
)
def test_arrays_that_are_not_what_they_say_are_refused(value):
    with pytest.raises(PETLError, match='file of results'):
        unpack(value)


def test_predictions_of_several_processes_are_those_of_the_whole_set(
    tmp_path, monkeypatch
):
    """Two processes see every second sample, and one of them a sample twice."""
    from mmpetl.engine.hooks import predictions

    logits = torch.arange(10.0).reshape(5, 2)
    labels = [0, 1, 0, 1, 0]
    other = [(logits[i].numpy(), labels[i]) for i in (1, 3, 0)]

    def collect(mine, size):
        pairs = zip(mine, other, strict=True)
        return [row for pair in pairs for row in pair][:size]

    monkeypatch.setattr(predictions, 'get_world_size', lambda: 2)
    monkeypatch.setattr(predictions, 'collect_results', collect)
    hook = PredictionsHook(str(tmp_path / 'predictions.npz'))
    hook._logits = [logits[[0, 2, 4]]]
    hook._labels = [labels[i] for i in (0, 2, 4)]
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=range(5)))
    hook.after_test_epoch(runner)
    found, told = predictions.read_predictions(tmp_path / 'predictions.npz')
    assert found.tolist() == logits.tolist()
    assert told.tolist() == labels
