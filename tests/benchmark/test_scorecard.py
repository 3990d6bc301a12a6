"""The scorecard of two tiny tasks: every value is measured, or says why it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpetl.analysis import selection
from mmpetl.analysis.forgetting import base_head, forgetting
from mmpetl.benchmark import scorecard
from mmpetl.benchmark.job import run_job
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.scorecard import Line, Settings, lines_of, measure
from mmpetl.benchmark.scorecard_files import draw, markdown, write_files

OPTIONS = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 10,
    'param_scheduler': None,
}
RANK = {'model.backbone.method.rank': 2}
JOBS = [
    Job('mini/digits', 'LoRA', seed=1, options={**OPTIONS, **RANK}),
    Job('mini/digits', 'LoRA', seed=2, options={**OPTIONS, **RANK}),
    Job('mini/textures', 'LoRA', seed=1, options={**OPTIONS, **RANK}),
    Job('mini/digits', 'Full', seed=1, options=OPTIONS),
]
SETTINGS = Settings(
    kinds=('blur',), severities=(3,), limit=5, batches=(1,), rounds=1, device='cpu'
)


@pytest.fixture(scope='module')
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from mmpetl.datasets.mini import make

    root = tmp_path_factory.mktemp('data')
    make(root, names=['vtab-1k/digits', 'vtab-1k/textures'], size='tiny')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(root))
        patch.setattr('mmpetl.analysis.costs.RAPL', str(root / 'none'))
        store = RecordStore(tmp_path_factory.mktemp('bench'))
        for job in JOBS:
            store.write(run_job(job, store.folder(job)))
        yield store.out


@pytest.mark.slow
def test_a_card_has_every_value_or_says_why(out: Path) -> None:
    records = selection.finished(out)
    cards = measure(out, records, SETTINGS)
    lora, full = (cards[JOBS[i].id].values for i in (0, 3))
    record = RecordStore(out).read(JOBS[0])
    assert lora['accuracy'] == pytest.approx(record.score, abs=1e-4)
    assert 0 <= lora['ece'] <= 100
    assert 'no validation data' in lora['temperature']
    for name in ('auroc_softmax', 'fpr95_softmax', 'auroc_energy', 'fpr95_energy'):
        assert 0 <= lora[name] <= 100
    assert 0 <= lora['shifted'] <= 100
    assert lora['base_back'] == 'bit-equal'
    assert 'keeps no copy' in full['base_back']
    assert 'not asked for' in lora['upstream']
    assert lora['folds'] == 'yes'
    assert full['folds'] == 'yes' or full['folds'].startswith('no: ')
    # Two products of rank 2 in q and v of six blocks, beside 65 tokens of the trunk.
    more = 6 * 2 * 2 * 2 * 65 * 96 * 2
    assert round((lora['gflops'] - lora['gflops_base']) * 1e9) == more
    assert lora['latency_ms_1'] > 0
    assert 'latency_folded_of_base_1' in lora
    if not torch.cuda.is_available():
        assert lora['joules'] == 'no meter'
    weights = RecordStore(out).folder(JOBS[0]) / 'delta.safetensors'
    assert lora['delta_kb'] == weights.stat().st_size / 1024
    assert lora['trainable'] == record.trainable
    assert sum(cards[JOBS[0].id].bins['count']) == 10

    def refuse(*args: object) -> None:
        raise AssertionError('a card was measured twice')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorecard, '_measure', refuse)
        assert measure(out, records, SETTINGS) == cards

    lines = lines_of(out, records, cards)
    found = {(line.task, line.method): line for line in lines}
    line = found['digits', 'LoRA']
    assert line.seeds == 2
    assert line.values['accuracy'] == pytest.approx(
        np.mean([cards[j.id].values['accuracy'] for j in JOBS[:2]])
    )
    assert -1 <= line.values['kappa_seeds'] <= 1
    assert -1 <= line.values['kappa_methods'] <= 1
    assert found['digits', 'Full'].values['kappa_seeds'] == 'one seed'
    assert found['textures', 'LoRA'].values['kappa_methods'] == 'one method'
    assert sum(line.bins['count']) == 20

    files = write_files(out, lines, SETTINGS)
    text = files[0].read_text()
    assert text.startswith('# digits\n')
    assert '| LoRA |' in text
    assert 'latency, ms, batch 1' in text
    pictures = draw(out, lines)
    words = json.loads(pictures[0].with_suffix('.json').read_text())
    assert 'Least calibration error' in words['alt']


def test_the_scaled_error_has_the_bins_of_the_plain_one(monkeypatch) -> None:
    """With two bins, by hand: temperature 2 makes 4 nats 2, a confidence of 0.881."""
    logits = np.array([[4.0, 0], [4, 0], [0, 0.2]], np.float32)
    labels = np.array([0, 1, 1])
    monkeypatch.setattr(scorecard, '_no_validation', lambda config: None)
    monkeypatch.setattr(scorecard.robustness, 'samples_of', lambda *args: None)
    monkeypatch.setattr(
        scorecard.robustness, 'logits_of', lambda *args: (logits, labels)
    )
    monkeypatch.setattr(scorecard.measures, 'fit_temperature', lambda *args: 2.0)
    run = selection.Run(None, Path(), logits, labels)
    found = scorecard._temperature(None, None, run, 2)['ece_scaled']
    sure, unsure = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-0.1))
    # All three are above one half; two are right.
    mean = (2 * sure + unsure) / 3
    assert found == pytest.approx(100 * abs(2 / 3 - mean), abs=1e-4)


def test_strange_pictures_are_those_of_the_backbone(monkeypatch, tmp_path) -> None:
    """Two backbones see a task's pictures at sizes of their own."""
    from mmengine.config import Config

    store = RecordStore(tmp_path)
    records = []
    for backbone, size in (('small', 32), ('large', 64)):
        for task in ('digits', 'textures'):
            job = Job(f'mini/{task}', 'LoRA', options={'size': size})
            record = Record(job, 'done', task=task, backbone=backbone)
            folder = store.folder(job)
            folder.mkdir(parents=True)
            dataset = {'type': task, 'size': size}
            Config({'test_dataloader': {'dataset': dataset}}).dump(folder / 'config.py')
            records.append(record)
    seen = []

    def logits_of(model, samples):
        seen.append(samples)
        return np.zeros((2, 2), np.float32), np.zeros(2, np.int64)

    monkeypatch.setattr(scorecard.robustness, 'logits_of', logits_of)
    monkeypatch.setattr(
        scorecard.robustness,
        'samples_of',
        lambda config, limit: config.test_dataloader.dataset.size,
    )
    shared = scorecard._Shared(tmp_path, SETTINGS)
    for record in records:
        scorecard._strange(shared, None, record, records, np.zeros((2, 2), np.float32))
    assert seen == [32, 32, 64, 64]


@pytest.mark.parametrize(('value', 'folds'), [(1.0, True), (float('nan'), False)])
def test_a_fold_that_computes_no_number_is_none(monkeypatch, value, folds) -> None:
    class Model(torch.nn.Module):
        value = 1.0

        def forward(self, x, mode):
            return self.value * x

    def fold(module):
        module.value = value

    model = Model()
    monkeypatch.setattr('mmpetl.core.find_injected', lambda model: [('', model)])
    monkeypatch.setattr('mmpetl.core.fold', fold)
    plain, why = scorecard._folded(model, torch.arange(4.0).reshape(2, 2))
    assert (plain is not None) == folds
    assert (why == 'yes') == folds


def test_long_reasons_stand_below_their_table() -> None:
    why = 'no validation data: all of them trained the run'
    line = Line('LoRA', 'side', 'digits', 1, {'ece': 3.21, 'temperature': why}, {})
    text = markdown([line], ['ece', 'temperature'])
    assert '| LoRA | 3.2 | [1] |' in text
    assert f'[1] {why}.' in text


def test_forgetting_is_what_the_head_of_the_base_loses(tmp_path: Path) -> None:
    """A base whose own head calls all pictures right, and a model that moved away."""
    from PIL import Image
    from workbench import Workbench

    from mmpetl.analysis.sources import bare_copy
    from mmpetl.config.load import as_config

    bench = Workbench(tmp_path)
    draw_ = np.random.default_rng(0)
    names = ('ant', 'bee', 'cat', 'dog')
    for name in names:
        (tmp_path / 'up' / name).mkdir(parents=True)
        pixels = draw_.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'up' / name / '0.png')
    path = bench.config({'type': 'LoRA', 'rank': 2})
    text = path.read_text().replace("'absent'", repr(str(tmp_path / 'up')))
    path.write_text(text)
    config = as_config(str(path))
    model = bench.tuned(path)
    model.cfg = config
    assert 'has no head' in forgetting(model, config, device='cpu')

    # Nearest features of the base: its head is right on each of the four pictures.
    from mmpetl.analysis import robustness

    samples = robustness.samples_of(config)
    bare = bare_copy(model)
    with torch.no_grad():
        rows = []
        for batch in samples:
            x = bare.data_preprocessor(robustness.copied(batch), False)['inputs']
            rows.append(bare.extract_feat(x)[-1])
        features = torch.cat(rows)
    weight, bias = 2 * features, -(features**2).sum(1)
    file = Path(config.model.backbone.checkpoint)
    state = torch.load(file, weights_only=True)
    torch.save({**state, 'head.weight': weight, 'head.bias': bias}, file)
    assert base_head(file)[0].shape == (4, 32)
    lost = forgetting(model, config, device='cpu')
    assert lost in (0.0, 25.0, 50.0, 75.0, 100.0)
    with torch.no_grad():
        right = 0
        for batch in samples:
            x = model.data_preprocessor(robustness.copied(batch), False)['inputs']
            guess = (model.extract_feat(x)[-1] @ weight.T + bias).argmax(1)
            labels = [int(s.gt_label) for s in batch['data_samples']]
            right += int((guess == torch.tensor(labels)).sum())
    assert lost == 100 - 25 * right
    assert forgetting(bare, config, device='cpu') == 0


def test_seeds_that_differ_are_all_told() -> None:
    """No seed speaks for another, and no mean is over fewer than the line says."""
    one = {'folds': 'yes', 'base_back': 'bit-equal', 'gflops': 1.0, 'folded': 2.0}
    other = {'folds': 'no: x', 'base_back': 'bit-equal', 'gflops': 4.0, 'folded': None}
    found = scorecard._means([one, other, one])
    assert found == {
        'folds': 'yes (2 of 3 seeds); no: x (1 of 3 seeds)',
        'base_back': 'bit-equal',
        'gflops': 2.0,
        'folded': 'known of 2 of 3 seeds',
    }
    assert scorecard._means([{'joules': None}]) == {'joules': None}
