"""Corruptions, and trained runs on shifted sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_up_runs import check_picture, refused, run_tool

from mmpetl.analysis import further_runs, robustness
from mmpetl.core import PETLError
from mmpetl.datasets.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt


def _picture(side=32, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 200, (8, 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((side // 8, side // 8, 1), np.uint8))


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_a_corruption_grows_with_severity(kind):
    pictures = [_picture(seed=s) for s in range(8)]
    size = [
        np.mean(
            [np.abs(corrupt(p, kind, s) - p.astype(float)).mean() for p in pictures]
        )
        for s in SEVERITIES
    ]
    assert size[0] > 1
    assert all(b > a for a, b in zip(size, size[1:], strict=False))
    out = corrupt(pictures[0], kind, 3)
    assert out.shape == (32, 32, 3)
    assert out.dtype == np.uint8


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_the_same_picture_is_corrupted_alike_anywhere(kind):
    picture = _picture()
    once = corrupt(picture, kind, 4, seed=1)
    corrupt(_picture(seed=5), kind, 4, seed=1)
    assert (corrupt(picture, kind, 4, seed=1) == once).all()
    if kind in ('gaussian_noise', 'occlusion'):
        assert (corrupt(picture, kind, 4, seed=2) != once).any()


def test_brightness_and_contrast_by_hand():
    flat = np.full((4, 4, 3), 100, np.uint8)
    step = CORRUPTIONS['brightness'][1][0]
    assert (corrupt(flat, 'brightness', 1) == round(100 + 255 * step)).all()
    assert (corrupt(flat, 'contrast', 5) == flat).all()
    assert corrupt(np.full((4, 4, 3), 250, np.uint8), 'brightness', 5).max() == 255


def test_the_transform_acts_on_the_picture_only():
    picture = _picture()
    found = Corruption('blur', 2)({'img': picture, 'gt_label': 3})
    assert (found['img'] == corrupt(picture, 'blur', 2)).all()
    assert found['gt_label'] == 3


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: Corruption('blurr', 1), "Did you mean 'blur'?"),
        (lambda: Corruption('blur', 6), 'severity 1 to 5, got 6'),
        (lambda: corrupt(_picture().astype(float), 'blur', 1), 'uint8'),
    ],
)
def test_unknown_corruptions_are_refused(call, words):
    with pytest.raises(PETLError) as info:
        call()
    assert words in str(info.value)


def test_masked_accuracy_counts_within_the_subset():
    logits = np.array([[5.0, 1, 2], [5, 3, 2], [0, 1, 9]], np.float32)
    labels = np.array([2, 1, 1])
    assert robustness.accuracy_of(logits, labels) == 0
    # Without class 0 the first two are right.
    found = robustness.accuracy_of(logits, labels, (1, 2))
    assert found == pytest.approx(200 / 3)


def test_means_leave_the_clean_set_out():
    scores = {'clean': 90.0, 'blur-1': 80.0, 'blur-2': 60.0, 'rotation-1': 40.0}
    assert robustness.shifted_mean(scores) == 60
    assert robustness.by_kind(scores) == {'blur': 70, 'rotation': 40}
    assert robustness.by_severity(scores) == {0: 90, 1: 60, 2: 60}
    assert robustness.by_kind({'clean': 1.0, 'imagenet_r': 5.0}) == {'imagenet_r': 5}
    # A number at the end of a set's own name is no severity.
    own = {'clean': 9.0, 'cifar-10': 5.0, 'cifar-100': 3.0}
    assert robustness.by_kind(own) == {'cifar-10': 5, 'cifar-100': 3}
    assert robustness.by_severity(own) == {0: 9}
    with pytest.raises(PETLError, match='no shifted set'):
        robustness.shifted_mean({'clean': 1.0})


def test_above_the_line_is_what_least_squares_leaves():
    x, y = [1.0, 2, 3, 4], [2.0, 4.5, 5.5, 8]
    found = robustness.above_line(x, y)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    assert np.dot(found, x) == pytest.approx(0, abs=1e-9)
    assert np.isnan(robustness.above_line([1.0, 2], [1.0, 2])).all()


def test_captions_say_what_is_there(tmp_path):
    """No line through two points, and as many seeds as each method has."""
    from mmpetl.analysis.selection import seeds_said
    from mmpetl.cli.commands.analyse.robustness import draw_scatter

    assert seeds_said([1]) == '1 seed'
    assert seeds_said([2, 2]) == '2 seeds'
    assert seeds_said(n for n in (3, 1)) == '1 to 3 seeds'
    rows = {}
    for name, seeds, clean in (('LoRA', 2, 80.0), ('SSF', 1, 70.0), ('Full', 2, 75.0)):
        spread = 1.0 if seeds > 1 else None
        rows[name] = {
            'family': 'adapter',
            'seeds': [{}] * seeds,
            'clean': clean,
            'shifted': clean - 20,
            'clean_spread': spread,
            'shifted_spread': spread,
            'above_line': 0.0,
        }
        if len(rows) > 1:
            draw_scatter('t', rows, 'Words.', tmp_path)
            told = json.loads((tmp_path / 't-scatter.json').read_text())
            line = len(rows) > 2
            assert ('dashed line' in told['caption']) == line
            assert ('farthest above the line' in told['alt']) == line
            assert 'deviation over 1 to 2 seeds.' in told['caption']


def test_a_step_goes_behind_the_reading_wherever_it_is():
    step = {'type': 'mmpetl.Corruption'}
    load = {'type': 'LoadImageFromFile'}
    node = {'dataset': {'pipeline': [load, {'type': 'PackInputs'}]}}
    assert robustness._insert(node, step)
    assert node['dataset']['pipeline'][1] == step
    once = {'pipeline': [{'type': 'mmpetl.LoadOnce', 'transforms': [load]}]}
    assert robustness._insert(once, step)
    assert once['pipeline'][0]['transforms'] == [load, step]
    assert not robustness._insert({'pipeline': [{'type': 'PackInputs'}]}, step)


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    """A benchmark of untrained runs on a handful of digits."""
    from made_up_runs import make_runs

    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp('data')
        patch.setenv('MMPETL_DATA', str(root))
        return make_runs(tmp_path_factory.mktemp('bench'), root)


def test_the_fast_reading_equals_the_runner(bench):
    """Against MMEngine's own test loop and metric."""
    from mmengine.config import Config

    from mmpetl.apis.run import test

    folder = next(f for f in sorted((bench / 'runs').iterdir()) if 'lora' in f.name)
    config = Config.fromfile(folder / 'config.py')
    config.work_dir = str(folder / 'again')
    config.log_level = 'ERROR'
    want = test(config, folder / 'delta.safetensors')['accuracy/top1']
    model = robustness.load_classifier(folder, 'cpu')
    found = robustness.score(model, robustness.samples_of(config))
    assert found == pytest.approx(want)


@torch.no_grad()
def test_corrupted_samples_are_other_pixels_of_the_same_order(bench):
    from mmengine.config import Config

    folder = next((bench / 'runs').iterdir())
    config = Config.fromfile(folder / 'config.py')
    clean = robustness.samples_of(config)
    noisy = robustness.samples_of(config, corruption=('gaussian_noise', 5))
    a, b = next(iter(clean)), next(iter(noisy))
    assert [int(s.gt_label) for s in a['data_samples']] == [
        int(s.gt_label) for s in b['data_samples']
    ]
    assert not torch.equal(a['inputs'][0], b['inputs'][0])
    again = next(iter(noisy))
    assert all(
        torch.equal(x, y) for x, y in zip(b['inputs'], again['inputs'], strict=True)
    )
    few = robustness.samples_of(config, limit=4)
    other = robustness.samples_of(config, corruption=('blur', 1), limit=4)
    assert len(few) == 4
    assert few.indices == other.indices


def test_the_tool_scores_once(bench, monkeypatch, capsys):
    argv = ['--kinds', 'blur', 'rotation', '--severities', 5, '--device', 'cpu']
    run_tool(monkeypatch, 'robustness', bench, *argv)
    to = bench / 'analysis' / 'robustness'
    for name in ('digits-scatter', 'digits-kinds'):
        check_picture(to / f'{name}.png')
    found = json.loads((to / 'digits.numbers.json').read_text())
    assert set(found['methods']['LoRA']['scores']) == {'clean', 'blur-5', 'rotation-5'}
    first = capsys.readouterr().out

    def never(*args):
        raise AssertionError('scored twice')

    monkeypatch.setattr(robustness, 'score', never)
    run_tool(monkeypatch, 'robustness', bench, *argv)
    assert capsys.readouterr().out == first


def test_scores_of_another_set_under_a_name_are_not_taken(
    bench, tmp_path, monkeypatch, capsys
):
    """The config of a set is edited, or another file of its name is given."""
    monkeypatch.setenv('MMPETL_DATA', str(bench / 'data'))
    lora = next(f for f in sorted((bench / 'runs').iterdir()) if 'lora' in f.name)
    scored = []

    def score(model, samples):
        scored.append(samples.name)
        return 10.0 * len(samples.dataset)

    monkeypatch.setattr(robustness, 'score', score)
    where = tmp_path / 'shifted.py'
    text = f"_base_ = '{lora / 'config.py'}'\n"

    def values() -> set[float]:
        argv = ('--sets', where, '--device', 'cpu', '--methods', 'LoRA', 'VPTDeep')
        run_tool(monkeypatch, 'robustness', bench, *argv)
        path = bench / 'analysis' / 'robustness' / 'digits.numbers.json'
        methods = json.loads(path.read_text())['methods']
        return {row['scores']['shifted'] for row in methods.values()}

    where.write_text(text)
    first = values()
    assert scored.count('shifted') == 2
    assert values() == first
    assert scored.count('shifted') == 2  # kept
    where.write_text(f'{text}test_dataloader = dict(dataset=dict(indices=3))\n')
    assert values() == {30.0} != first
    assert scored.count('shifted') == 4
    where.write_text(text)
    assert values() == first
    assert scored.count('shifted') == 4


def test_two_sets_are_not_called_alike(bench, tmp_path, monkeypatch, capsys):
    paths = [tmp_path / n for n in ('a/x.py', 'b/x.py', 'clean.py', 'blur-3.py')]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for sets, words in (
        (paths[:2], f"would be called 'x', which is that of {paths[0]}"),
        (paths[2:3], "would be called 'clean', which is the name of another set"),
        (paths[3:], "would be called 'blur-3', which is the name of another set"),
    ):
        for tool in ('robustness', 'wise'):
            line = refused(monkeypatch, capsys, tool, bench, '--sets', *sets)
            assert words in line
    (tmp_path / 'validation.py').touch()
    sets = ('--sets', tmp_path / 'validation.py')
    assert 'another set' in refused(monkeypatch, capsys, 'wise', bench, *sets)


def test_bad_input_is_one_line(bench, tmp_path, monkeypatch, capsys):
    def line(*argv):
        return refused(monkeypatch, capsys, 'robustness', bench, *argv)

    assert "Did you mean 'blur'?" in line('--kinds', 'blr')
    assert 'severity 1 to 5, got 9' in line('--severities', 9)
    assert '--limit of at least 1' in line('--limit', 0)
    assert 'there is no config' in line('--sets', tmp_path / 'none.py')
    assert "has task 'digit'" in line('--tasks', 'digit')
    assert "device 'cuda:7' is not there" in line('--device', 'cuda:7', '--limit', 3)


# --- WiSE on the same runs --------------------------------------------------------


def test_the_wise_tool_traces_every_alpha(bench, monkeypatch, capsys):
    from made_up_runs import fake_runs

    monkeypatch.setenv('MMPETL_DATA', str(bench / 'data'))
    monkeypatch.setattr(further_runs, 'run_jobs', fake_runs)
    run_tool(
        monkeypatch,
        'wise',
        bench,
        *('--methods', 'LoRA', 'VPTDeep', '--alphas', 0.5, '--kinds', 'blur'),
        *('--device', 'cpu'),
    )
    to = bench / 'analysis' / 'wise'
    check_picture(to / 'digits.png')
    out = capsys.readouterr().out
    assert 'VPTDeep is left out: VPTDeep adds tokens' in out
    found = json.loads((to / 'digits.numbers.json').read_text())
    assert found['alphas'] == [0, 0.5, 1]
    assert set(found['methods']) == {'LoRA', 'LoRA (head only)'}
    row = found['methods']['LoRA']
    assert set(row['scores']) == {'validation', 'clean', 'blur-3'}
    # Both ends are those of the runs themselves.
    folders = {f.name: f for f in (to / 'bench' / 'runs').iterdir()}
    for method, at in (('linearprobe', 0), ('lora', -1)):
        folder = next(f for name, f in folders.items() if f'-{method}-' in name)
        model = robustness.load_classifier(folder, 'cpu')
        samples = robustness.samples_of(folder / 'config.py')
        assert robustness.score(model, samples) == pytest.approx(row['clean'][at])
    # What is chosen on was not trained on.
    assert all('train800' in name for name in folders)
    assert "split='train800'" in (folder / 'config.py').read_text()


@pytest.mark.slow
@torch.no_grad()
def test_the_base_may_be_what_the_config_builds(bench, tmp_path, monkeypatch):
    """As for a zero-shot head: at alpha 0 the model is the untouched one."""
    from made_up_runs import fake_runs

    from mmpetl.apis.model import init_model

    monkeypatch.setenv('MMPETL_DATA', str(bench / 'data'))
    monkeypatch.setattr(further_runs, 'run_jobs', fake_runs)
    # Heads of this model are drawn; a config with a zero-shot head has none to draw.
    monkeypatch.setattr(
        'mmpetl.apis.model.init_model',
        lambda *args, **kwargs: (torch.manual_seed(7), init_model(*args, **kwargs))[1],
    )
    argv = ['--methods', 'LoRA', '--base', 'config', '--alphas', 1, '--kinds', 'blur']
    argv += ['--no-control', '--device', 'cpu', '--to', tmp_path]
    run_tool(monkeypatch, 'wise', bench, *argv)
    row = json.loads((tmp_path / 'digits.numbers.json').read_text())['methods']['LoRA']
    folder = next(f for f in (bench / 'runs').iterdir() if 'linearprobe' in f.name)
    torch.manual_seed(7)
    model = init_model(folder / 'config.py', device='cpu')
    model.eval()
    samples = robustness.samples_of(folder / 'config.py')
    assert robustness.score(model, samples) == pytest.approx(row['clean'][0])
    assert not any(tmp_path.rglob('*.safetensors'))


def test_the_wise_tool_refuses_in_one_line(bench, monkeypatch, capsys):
    def line(*argv):
        return refused(monkeypatch, capsys, 'wise', bench, *argv)

    assert '--alphas of at least 0 and at most 1' in line('--alphas', 1.5)
    assert 'is the base itself' in line('--methods', 'LinearProbe')
    assert "unknown method 'LoRAX'. Did you mean 'LoRA'?" in line('--methods', 'LoRAX')
    assert "has task 'letters'" in line('--task', 'letters')
