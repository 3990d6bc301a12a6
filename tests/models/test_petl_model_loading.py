"""What is loaded into a ``mmpetl.PETLModel``: deltas, whole models, runs that go on.

Upstream's own readers know nothing of deltas; the model itself compares the base.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import upstream
from mmengine.runner import load_checkpoint
from torch import nn
from upstream import assert_same, starting_from, tensors, whole_file

from mmpetl import apis
from mmpetl.core import PETLError, base_changes, delta_state, fingerprint, frozen_keys
from mmpetl.engine.hooks.common import plain_model

NAMES = ('mmpretrain', 'mmseg', 'mmdet', 'mmaction')
KEY = 'petl.base'


@pytest.fixture(autouse=True)
def _quick():
    with upstream.quick():
        yield


def tuned(config) -> nn.Module:
    """The model of a config, as if it had been trained."""
    model = upstream.build(config)
    torch.manual_seed(5)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn_like(param))
    return model


def save(model: nn.Module, path: Path, whole: bool) -> Path:
    """A checkpoint as MMEngine's hook writes it, or ours."""
    state = model.state_dict()
    if not whole:
        state = {k: v for k, v in state.items() if k not in frozen_keys(model)}
    meta = {'dataset_meta': {'classes': ('ant', 'bee', 'cat', 'dog'), 'palette': None}}
    torch.save({'state_dict': state, 'meta': meta}, path)
    return path


def init(name: str, config, checkpoint: Path) -> nn.Module:
    """The package's own function from a config and a checkpoint to a model."""
    config = copy.deepcopy(config)
    if name == 'mmdet':
        from mmdet.apis import init_detector

        dataset = {'type': 'mmengine.DrawnData', 'kind': 'boxes'}
        config.test_dataloader = {'dataset': dataset}
        return init_detector(config, str(checkpoint), device='cpu')
    if name == 'mmseg':
        from mmseg.apis import init_model

        return init_model(config, str(checkpoint), device='cpu')
    if name == 'mmaction':
        from mmaction.apis import init_recognizer

        return init_recognizer(config, str(checkpoint), device='cpu')
    from mmpretrain import get_model

    return get_model(config, pretrained=str(checkpoint), device='cpu')


@pytest.mark.parametrize('name', NAMES)
def test_each_packages_own_function_takes_a_delta_on_its_base_only(name, tmp_path):
    file = whole_file(name, tmp_path)
    config = upstream.config_of(name, tmp_path, base=str(file))
    model = tuned(config)
    want = tensors(model, name)
    delta = save(model, tmp_path / 'delta.pth', whole=False)
    assert not any(key in torch.load(delta)['state_dict'] for key in frozen_keys(model))
    assert_same(tensors(init(name, config, delta), name), want)

    published = apis.export_delta(model, config, tmp_path / 'published')
    assert_same(tensors(init(name, config, published), name), want)

    other = whole_file(name, tmp_path, seed=8)
    config.model.base = str(other)
    for path in (delta, published):
        with pytest.raises(PETLError) as caught:
            init(name, config, path)
        assert 'made on the base' in str(caught.value)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', NAMES)
def test_a_base_that_upstream_drops_is_no_random_base(name, tmp_path):
    """``init_detector`` sets ``backbone.init_cfg`` to None."""
    file = whole_file(name, tmp_path)
    config = starting_from(upstream.config_of(name, tmp_path), file)
    model = tuned(config)
    want = tensors(model, name)
    delta = save(model, tmp_path / 'delta.pth', whole=False)
    whole = save(model, tmp_path / 'whole.pth', whole=True)
    if name == 'mmdet':  # mmseg does so only where it knows the type of the model
        with pytest.raises(PETLError, match='holds a random one .*its base as base'):
            init(name, config, delta)
    else:
        assert_same(tensors(init(name, config, delta), name), want)
    # A whole checkpoint brings its base along.
    again = init(name, config, whole)
    assert_same(tensors(again, name), want)
    assert not base_changes(again)
    assert fingerprint(again) == fingerprint(model)
    again.train()


def pair(tmp_path, petl='LoRA'):
    """A tuned model, and one on another base."""
    file, other = (whole_file('mmpretrain', tmp_path, seed) for seed in (7, 8))
    config = upstream.config_of('mmpretrain', tmp_path, petl, base=str(file))
    model = tuned(config)
    config.model.pop('base')
    return model, upstream.build(starting_from(config, other))


def test_a_whole_checkpoint_of_a_plain_model_becomes_the_base(tmp_path):
    """What ``load_from`` of a config does after the injection."""
    model, other = pair(tmp_path)
    file = tmp_path / 'mmpretrain-7.pth'
    load_checkpoint(other, str(file), map_location='cpu')
    assert fingerprint(other) == fingerprint(model)
    assert not base_changes(other)
    other.train()
    reference = upstream.build(upstream.plain('mmpretrain', tmp_path))
    reference.load_state_dict(torch.load(file)['state_dict'])
    assert_same(tensors(other, 'mmpretrain'), tensors(reference, 'mmpretrain'))


def test_starts_that_are_read_off_the_base_follow_it(tmp_path):
    """A rebased model is what one that was built on that base is."""
    petl = {'type': 'RepAdapter'}
    model, other = pair(tmp_path, petl)
    fresh = upstream.build(
        upstream.config_of(
            'mmpretrain', tmp_path, petl, base=str(tmp_path / 'mmpretrain-7.pth')
        )
    )
    load_checkpoint(other, str(tmp_path / 'mmpretrain-7.pth'), map_location='cpu')
    assert fingerprint(other) == fingerprint(fresh)
    assert_same(tensors(other, 'mmpretrain'), tensors(fresh, 'mmpretrain'))


def test_what_does_not_fit_stops_with_one_line(tmp_path):
    model, other = pair(tmp_path)
    state = model.state_dict()
    plain = {k: v for k, v in state.items() if 'petl' not in k.split('.')}
    part = {k: v for k, v in plain.items() if 'layers.1.ln1' not in k}
    wrong = plain | {'backbone.pos_embed': torch.zeros(1, 5, 32)}
    silent = {k: v for k, v in delta_state(model).items() if k != KEY}
    foreign = {'conv1.weight': torch.zeros(3)}
    for content, words in (
        (part, r'holds a part of the base: backbone\.layers\.1\.ln1'),
        (wrong, r'backbone\.pos_embed has shape \(1, 5, 32\)'),
        (silent, 'does not say which base'),
        (delta_state(model), 'was made on the base .* holds mmpretrain-8.pth'),
        (foreign, 'fits nothing in ImageClassifier .it begins with conv1.weight'),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(PETLError, match=words) as caught:
            other.load_state_dict(content, strict=False)
        assert '\n' not in str(caught.value)
        for key, value in other.state_dict().items():
            assert torch.equal(value, before[key]), key
    model.load_state_dict(delta_state(model))  # strictly: the base is there
    model.load_state_dict(state)
    model.load_state_dict({k: v for k, v in plain.items() if 'head' in k}, strict=False)


def test_selected_base_parameters_need_the_base_itself(tmp_path):
    """A checkpoint of BitFit has no biases of the base to go back to."""
    model, other = pair(tmp_path, 'BitFit')
    with pytest.raises(PETLError, match='name that base as base=FILE'):
        other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())


def run(config):
    runner = upstream.runner_of(config)
    runner.train()
    return runner


def test_a_run_of_mmengines_own_hooks_resumes(tmp_path):
    file = whole_file('mmpretrain', tmp_path)
    base = {'base': str(file)}
    config = upstream.config_of('mmpretrain', tmp_path, iters=1, **base)
    run(config)
    again = upstream.config_of('mmpretrain', tmp_path, iters=2, **base)
    again.resume, again.load_from = True, str(tmp_path / 'iter_1.pth')
    runner = run(again)
    assert runner.iter == 2
    assert not base_changes(plain_model(runner))


@pytest.mark.parametrize('ours', [False, True], ids=['stock', 'TuningRunner'])
def test_load_from_and_base_are_one_too_many(ours, tmp_path):
    files = [str(whole_file('mmpretrain', tmp_path, seed)) for seed in (7, 8)]
    config = upstream.config_of('mmpretrain', tmp_path, base=files[0])
    config.load_from = files[1]
    if ours:
        from mmpetl.engine.runner import safe_config

        config, _ = safe_config(config)
    runner = upstream.runner_of(config)
    with pytest.raises(PETLError, match='keep one of the two') as caught:
        runner.train()
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('ours', [False, True], ids=['stock', 'TuningRunner'])
def test_load_from_is_the_base_of_the_run(ours, tmp_path):
    file, other = (whole_file('mmpretrain', tmp_path, seed) for seed in (7, 8))
    config = starting_from(upstream.config_of('mmpretrain', tmp_path), other)
    config.load_from = str(file)
    if ours:
        from mmpetl.engine.runner import safe_config

        config, _ = safe_config(config)
    model = plain_model(run(config))
    assert not base_changes(model)
    reference = upstream.config_of('mmpretrain', tmp_path, base=str(file))
    assert fingerprint(model) == fingerprint(upstream.build(reference))
    state = torch.load(file)['state_dict']
    for key in frozen_keys(model):
        assert torch.equal(model.state_dict()[key], state[key]), key


@pytest.mark.parametrize('ours', [False, True], ids=['stock', 'TuningRunner'])
def test_a_run_starts_from_a_delta_on_its_base_only(ours, tmp_path):
    file, other = (whole_file('mmpretrain', tmp_path, seed) for seed in (7, 8))
    config = upstream.config_of('mmpretrain', tmp_path, base=str(file))
    model = tuned(config)
    published = apis.export_delta(model, config, tmp_path / 'published')
    bare = save(model, tmp_path / 'delta.pth', whole=False)
    facts = apis.read_delta(published).meta
    content = torch.load(bare) | {'meta': {'mmpetl': facts}}
    torch.save(content, bare)
    for delta, base, fits in (
        (published, file, True),
        (published, other, False),
        (bare, file, True),
        (bare, other, False),
    ):
        config = upstream.config_of('mmpretrain', tmp_path, base=str(base))
        config.load_from = str(delta)
        if ours:
            from mmpetl.engine.runner import safe_config

            config, _ = safe_config(config)
        runner = upstream.runner_of(config)
        if fits:
            runner.train()
            assert not base_changes(plain_model(runner))
        else:
            with pytest.raises(PETLError, match='made on the base'):
                runner.train()


@pytest.mark.parametrize('ours', [False, True], ids=['stock', 'TuningRunner'])
def test_an_average_of_weights_leaves_the_base_alone(ours, tmp_path):
    file = whole_file('mmpretrain', tmp_path)
    config = upstream.config_of('mmpretrain', tmp_path, iters=2, base=str(file))
    config.custom_hooks = [{'type': 'EMAHook', 'momentum': 0.5, 'priority': 49}]
    if ours:
        from mmpetl.engine.runner import safe_config

        config, _ = safe_config(config)
    runner = run(config)
    model = plain_model(runner)
    assert not base_changes(model)
    hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    average = dict(hook.ema_model.module.named_parameters())
    frozen = frozen_keys(model)
    own = dict(model.named_parameters())
    for name in frozen & set(own):
        assert torch.equal(average[name], own[name]), name
        # With ours no second copy of the frozen base is held.
        assert (average[name].data_ptr() == own[name].data_ptr()) is ours
    # The average is that of MMEngine: the first step's values, then half of each.
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    deltas = [name for name in own if '.petl.' in name]
    assert deltas
    for name in deltas:
        assert torch.equal(saved['state_dict'][name], average[name]), name
        assert torch.equal(saved['ema_state_dict'][f'module.{name}'], own[name]), name
