"""Keys, files and copies, held on every pair of method and backbone."""

from __future__ import annotations

import copy
import json

import torch
from mmengine.model import BaseModule
from promises import is_delta, of_method, same, trainable
from tiny import Pair, Tuned, bare, base, images, record, shake_

from mmpetl.core import (
    count_trainable,
    delta_state,
    inject,
    load_delta_state,
)


def test_base_keys_stay_and_the_object_is_of_its_class(brief_pair: Pair) -> None:
    plain, model = bare(brief_pair.stem), brief_pair.injected()
    keys = [k for k in model.state_dict() if not is_delta(k)]
    assert keys == list(plain.state_dict())
    assert isinstance(model, type(plain))
    for (name, a), (_, b) in zip(
        plain.named_modules(),
        [(n, m) for n, m in model.named_modules() if not is_delta(n)],
        strict=True,
    ):
        assert isinstance(b, type(a)), name


@torch.no_grad()
def test_save_rebuild_load_gives_identical_outputs(brief_pair: Pair, tmp_path) -> None:
    x = images(brief_pair.stem)
    model = Tuned(brief_pair.inject(), x)
    shake_(model)
    torch.save(delta_state(model), tmp_path / 'delta.pth')
    method = record(model).slots['0'].method
    config = json.loads(json.dumps(method.config()))
    torch.manual_seed(99)  # other start values than the first time
    fresh = Tuned(inject(base(brief_pair.stem), config), x)
    fresh.eval()
    load_delta_state(fresh, torch.load(tmp_path / 'delta.pth', weights_only=True))
    assert same(fresh(x), model(x)), (
        'it computes with something that is not saved: let it be a parameter or a '
        'persistent buffer, or the same whatever the seed'
    )
    sizes = {n: p.numel() for n, p in trainable(model).items()}
    buffers = {n for n, _ in model.named_buffers()}
    saved = {k: v.numel() for k, v in delta_state(model).items() if k not in buffers}
    assert saved == sizes


def test_start_values_follow_the_seed_of_torch(brief_pair: Pair) -> None:
    first = brief_pair.injected()
    torch.manual_seed(4)  # as `injected` has it
    again = inject(base(brief_pair.stem), brief_pair.method.build()).state_dict()
    moved = [k for k, v in first.state_dict().items() if not torch.equal(v, again[k])]
    assert moved == [], 'two runs of one seed would differ'


@torch.no_grad()
def test_deep_copy_is_independent(brief_pair: Pair) -> None:
    x = images(brief_pair.stem)
    model = Tuned(brief_pair.inject(), x)
    shake_(model)
    before = model(x)
    twin = copy.deepcopy(model)
    assert same(twin(x), before)
    shake_(twin, seed=7)
    assert same(model(x), before)
    if of_method(model):
        assert not same(twin(x), before)
    load_delta_state(model, delta_state(twin))
    assert same(model(x), twin(x))


def test_the_hosts_initialiser_changes_nothing(brief_pair: Pair) -> None:
    model = brief_pair.inject()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parent = BaseModule()
    parent.backbone = model
    parent.init_weights()
    if hasattr(model, 'init_weights'):
        model.init_weights()
    after = model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def test_counts_are_the_trainable_numbers(brief_pair: Pair) -> None:
    model, plain = brief_pair.injected(), bare(brief_pair.stem)
    counts = count_trainable(model)
    assert counts.trainable == sum(p.numel() for p in trainable(model).values())
    added = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert counts.delta == added
    total = sum(p.numel() for p in plain.parameters())
    assert counts.selected + counts.head + counts.base == total
