"""Agreement of predictions, against counts by hand and scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_up_runs import check_picture, make_bench, refused, run_tool

from mmpetl.analysis import agreement, selection
from mmpetl.core import PETLError


def _predicted(models=5, n=200, classes=4):
    rng = np.random.default_rng(3)
    return rng.integers(classes, size=(models, n)), rng.integers(classes, size=n)


def test_similarity_counts_equal_classes():
    found = agreement.similarity(np.array([[0, 1, 2, 3], [0, 1, 0, 0]]))
    assert found.tolist() == [[1, 0.5], [0.5, 1]]


def test_kappa_equals_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    predicted, _ = _predicted()
    found = agreement.kappa(predicted, 4)
    for i in range(5):
        for j in range(5):
            want = cohen_kappa_score(predicted[i], predicted[j])
            assert found[i, j] == pytest.approx(want, abs=1e-12)


def test_kappa_is_undefined_where_chance_explains_all():
    found = agreement.kappa(np.zeros((2, 5), int), 3)
    assert np.isnan(found).all()


def test_agreement_on_errors_by_hand():
    labels = np.array([0, 0, 0, 0, 0])
    predicted = np.array([[1, 1, 2, 0, 1], [1, 2, 2, 1, 0]])
    # Both are wrong at 0, 1, 2 and name the same class at 0 and 2.
    found = agreement.agreement_on_errors(predicted, labels)
    assert found[0, 1] == pytest.approx(2 / 3)
    # Wrong for both at three, for either at five.
    assert agreement.error_overlap(predicted, labels)[0, 1] == pytest.approx(3 / 5)
    right = agreement.agreement_on_errors(np.array([labels, labels]), labels)
    assert np.isnan(right).all()


def test_the_regions_are_those_of_sets():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 50)) < 0.5
    a, b, c = ({i for i in range(50) if m[i]} for m in masks)
    found = agreement.regions(masks)
    assert found['111'] == len(a & b & c)
    assert found['110'] == len((a & b) - c)
    assert found['001'] == len(c - a - b)
    assert sum(found.values()) == len(a | b | c)


def test_confidence_overlap_looks_at_k_samples_only():
    # Sure and right at 0, sure and wrong at 1, unsure and right at 2, wrong at 3.
    z = np.array([[9.0, 0], [0, 9], [0.2, 0], [0, 0.1]])
    labels = np.zeros(4, int)
    found = agreement.confidence_overlap([z, z, z], labels, 2)
    assert found['right']['111'] == 1
    assert found['wrong']['111'] == 1
    # The surest sample of the third model is wrong.
    found = agreement.confidence_overlap([z, z, z[[1, 0, 2, 3]]], labels, 1)
    assert found['right'] == {**dict.fromkeys(agreement.REGIONS, 0), '110': 1}
    with pytest.raises(PETLError, match='k of at least 1 and at most 4'):
        agreement.confidence_overlap([z, z, z], labels, 5)


def test_softmax_stands_large_logits():
    found = agreement.softmax(np.array([[1e4, 0.0, -1e4]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0]])


def test_means_of_families_leave_the_diagonal_out():
    matrix = np.array([[1.0, 0.2, 0.4], [0.2, 1, 0.6], [0.4, 0.6, 1]])
    found = agreement.block_means(matrix, ['a', 'a', 'b'])
    assert found == pytest.approx({'a | a': 0.2, 'a | b': 0.5})


def test_the_tool_writes_pictures_and_numbers(tmp_path, monkeypatch, capsys):
    make_bench(tmp_path)
    run_tool(monkeypatch, 'agreement', tmp_path, '--tasks', 'digits', '--k', 20)
    to = tmp_path / 'analysis' / 'agreement'
    for name in ('digits', 'digits-errors', 'digits-confidence'):
        check_picture(to / f'{name}.png')
    found = json.loads((to / 'digits.numbers.json').read_text())
    # By family, references in front.
    assert found['methods'] == [
        'Full', 'LinearProbe', 'Adapter', 'VPTDeep', 'LoRA', 'SSF',
    ]  # fmt: skip
    assert found['seed'] == 42
    assert found['confidence']['k'] == 20
    assert set(found['between_seeds']) == set(found['methods'])
    assert len((to / 'digits.csv').read_text().splitlines()) == 1 + 15
    assert 'digits: 6 methods' in capsys.readouterr().out


def test_a_seed_that_is_named_leaves_the_others_to_compare_with(tmp_path, monkeypatch):
    make_bench(tmp_path, tasks=['digits'], seeds=[1, 2])
    run_tool(monkeypatch, 'agreement', tmp_path, '--seed', 2)
    to = tmp_path / 'analysis' / 'agreement'
    found = json.loads((to / 'digits.numbers.json').read_text())
    assert found['seed'] == 2
    assert set(found['between_seeds']) == set(found['methods'])


def test_seeds_of_methods_that_saw_other_pictures_are_refused(tmp_path):
    store = make_bench(tmp_path, tasks=['digits'], methods=['LoRA'], seeds=[1, 2])
    make_bench(tmp_path, tasks=['digits'], methods=['SSF'], seeds=[3, 4], samples=50)
    with pytest.raises(PETLError, match='60 and 50 samples|50 and 60 samples'):
        selection.load_seeds(tmp_path, store.all())


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    def line(*argv):
        return refused(monkeypatch, capsys, 'agreement', *argv)

    assert 'is no benchmark folder' in line(tmp_path / 'none')
    store = make_bench(tmp_path, tasks=['digits'], seeds=[42])
    assert "no finished run has method 'LoRa'. Did you mean 'LoRA'?" in line(
        tmp_path, '--methods', 'LoRa'
    )
    assert 'k of at least 1 and at most 60' in line(tmp_path, '--k', 61)
    assert 'comparing needs two' in line(
        tmp_path, '--tasks', 'digits', '--methods', 'LoRA'
    )
    record = store.all()[0]
    path = store.folder(record.job) / 'predictions.npz'
    with np.load(path) as data:
        logits, labels = data['logits'], data['labels']
    np.savez(path, logits=logits, labels=labels[::-1])
    assert 'hold different labels' in line(tmp_path)
    np.savez(path, logits=logits * np.nan, labels=labels)
    assert 'are not finite' in line(tmp_path)
    path.write_bytes(b'no zip')
    assert 'cannot read the predictions' in line(tmp_path)
    path.unlink()
    assert 'has no predictions.npz' in line(tmp_path)
