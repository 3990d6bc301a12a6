from __future__ import annotations

import copy

import plain_vit
import pytest
import tiny
import tiny_builds
import torch
import torch.nn.functional as F
from full_size import counts
from torch import nn
from torch.utils.data import DataLoader, Dataset

import mmpetl
from mmpetl.core import (
    Calibrated,
    Context,
    Owner,
    PETLError,
    Site,
    delta_state,
    load_delta_state,
    owners,
)
from mmpetl.core.sitemap import is_norm
from mmpetl.methods.gps import (
    GPS,
    Columns,
    SparseRows,
    _to_inputs,
    _to_values,
    add_rows,
    dense_rows,
    supervised_contrast,
)


@pytest.mark.parametrize(
    ('size', 'k', 'number'),
    [
        ('vit_b', 1, 167_424),
        ('vit_b', 2, 251_136),
        ('timm_vit_b', 1, 167_424),
        ('swin_b', 1, 218_624),
        ('swin_b', 2, 328_832),
        ('swin_l', 1, 327_936),
        ('swin_l', 2, 493_248),
    ],
)
def test_count(size: str, k: int, number: int) -> None:
    got = counts(size, GPS(num_weights=k))
    assert got.delta + got.selected == number


def test_formula_on_vit() -> None:
    rows = 12 * (2304 + 768 + 3072 + 768) + 768
    got = counts('vit_b', GPS(num_weights=3))
    assert (got.delta, got.selected) == (3 * rows, rows)
    assert counts('vit_b', GPS(train_bias=False)).selected == 0
    # No key bias in VideoMAE.
    assert counts('videomae_b', GPS()).selected == rows - 12 * 768


def between_places(name: str, weight: torch.Tensor) -> bool:
    """Whether a weight is no map of what enters a site: heads, mixers, reductions."""
    depthwise = weight.ndim > 2 and weight.shape[1] == 1
    mixers = '.sr.', 'patch_embed1.', '.proj_1.', '.conv3.', 'petl'
    return depthwise or name.startswith('head') or any(m in name for m in mixers)


def test_every_linear_map_takes_part(stem: str) -> None:
    model = mmpetl.inject(tiny.base(stem), GPS(2))
    rows = sum(
        len(p)
        for n, p in tiny.core(model).named_parameters()
        if n.endswith('weight') and p.ndim > 1 and not between_places(n, p)
    )
    own = owners(model)
    values = [p for n, p in model.named_parameters() if own[n] is Owner.DELTA]
    assert sum(p.numel() for p in values) == 2 * rows
    trains = [n for n, o in own.items() if o is Owner.SELECTED]
    norms = [n for n, m in model.named_modules() if is_norm(m)]
    assert not [n for n in trains if n.rpartition('.')[0] in norms]
    scales = 'gamma', 'layer_scale_1', 'layer_scale_2'
    assert all(n.endswith(('bias', *scales)) for n in trains)


@pytest.mark.parametrize('name', ['timm', 'mmpretrain'])
def test_layer_scales_train(name: str) -> None:
    if name == 'timm':
        model = tiny.timm_vit(init_values=0.1)
    else:
        model = tiny.mmpretrain_vit(layer_scale_init_value=0.1)
    mmpetl.inject(model, GPS())
    own = owners(model)
    scales = [n for n in own if 'gamma' in n]
    assert len(scales) == 4
    assert all(own[n] is Owner.SELECTED for n in scales)


@torch.no_grad()
def pick_(model: nn.Module, seed: int = 0) -> None:
    """Random places in every row."""
    g = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if type(module).__name__ in ('GPSDelta', 'GPSMask'):
            rows, k = module.index.shape
            for r in range(rows):
                place = torch.randperm(module.in_dims, generator=g)[:k]
                module.index[r] = place.int()
            assert 'petl' in name


@pytest.mark.parametrize('k', [1, 3, 9])  # a few, and more than a few
def test_sparse_product_and_its_gradients(k: int) -> None:
    x = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    values = torch.randn(5, k, dtype=torch.float64, requires_grad=True)
    index = torch.stack([torch.randperm(9)[:k] for _ in range(5)]).int()
    y = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        SparseRows.apply(y, x, values, index), y + x @ dense_rows(values, index, 9).T
    )
    for run in (
        lambda *args: SparseRows.apply(*args, index),
        lambda *args: add_rows(*args, index, Columns.apply),
    ):
        assert torch.autograd.gradcheck(run, (y, x, values))
        assert torch.autograd.gradgradcheck(run, (y, x, values))


@pytest.mark.parametrize('dims', [4, 64])
def test_autograd_keeps_the_narrower_of_features_and_their_columns(dims: int) -> None:
    delta = GPS(2).build(Site('ffn.fc2', 'b', dims, 8))
    delta.attach('0', Calibrated())
    x, kept = torch.randn(3, dims, requires_grad=True), []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        delta.after(x, torch.randn(3, 8), Context((1, 3)))
    assert any(t is x for t in kept) == (dims == 4)


@pytest.mark.parametrize('k', [1, 3])
def test_many_tokens_are_summed_in_parts(k: int) -> None:
    x, grad = torch.randn(300, 9).double(), torch.randn(300, 5).double()
    values = torch.randn(5, k).double()
    index = torch.stack([torch.randperm(9)[:k] for _ in range(5)])
    dense = dense_rows(values, index, 9)
    torch.testing.assert_close(_to_inputs(grad, values, index, 9), grad @ dense)
    want = (grad.T @ x).gather(1, index)
    torch.testing.assert_close(_to_values(grad, x, index), want)


@pytest.mark.parametrize('k', [1, 2])
def test_equals_the_plain_model_with_edited_weights(stem: str, k: int) -> None:
    model = mmpetl.inject(tiny.base(stem, torch.float64), GPS(k, train_bias=False))
    model.eval()
    pick_(model)
    tiny.shake_(model)
    x = tiny.images(stem, odd=True, dtype=torch.float64)
    with torch.no_grad():
        want = tiny.outputs(model, x)
        untouched = tiny.outputs(tiny.base(stem, torch.float64), x)
        folded = mmpetl.core.fold(model)
        edited = dict(folded.named_parameters())
        for name, p in tiny.base(stem, torch.float64).named_parameters():
            moved = (p != edited[name]).sum().item()
            rows = len(p)
            is_weight = p.ndim >= 2 and not name.endswith(('token', 'embed', 'table'))
            is_weight = is_weight and not between_places(name, p)
            assert moved == (k * rows if is_weight else 0), name
        for a, b, c in zip(want, tiny.outputs(folded, x), untouched, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            assert (a - c).abs().max() > 1e-3


# -------------------------------------------------------------------- the training


def masked_twin(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The dense form: a plain model and a mask for each weight; biases train."""
    twin = tiny.base('timm_vit', torch.float64)
    masks = {}
    names = {
        'attn_qkv': 'attn.qkv',
        'attn_proj': 'attn.proj',
        'ffn_fc1': 'mlp.fc1',
        'ffn_fc2': 'mlp.fc2',
    }
    places = {
        f'blocks.{i}.petl.{k}': f'blocks.{i}.{v}'
        for i in (0, 1)
        for k, v in names.items()
    }
    places['petl.embed_proj'] = 'patch_embed.proj'
    for theirs, ours in places.items():
        delta = model.get_submodule(f'{theirs}.0')
        weight = twin.get_submodule(ours).weight
        mask = dense_rows(torch.ones_like(delta.values), delta.index, delta.in_dims)
        masks[f'{ours}.weight'] = mask.view(weight.shape)
        masks[f'{ours}.bias'] = torch.ones_like(twin.get_submodule(ours).bias)
    for name in ('head.weight', 'head.bias'):
        masks[name] = torch.ones_like(twin.get_parameter(name))
    return twin, masks


def test_twenty_steps_equal_those_with_masked_gradients() -> None:
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), GPS(2))
    pick_(model)
    twin, masks = masked_twin(model)
    start = copy.deepcopy(twin.state_dict())
    x = tiny.images('timm_vit', batch=6, dtype=torch.float64)
    labels = torch.arange(6) % 5
    mine = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    theirs = torch.optim.Adam(twin.parameters(), 1e-2)
    for _ in range(20):
        for net, optimizer in ((model, mine), (twin, theirs)):
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            if net is twin:
                for name, p in twin.named_parameters():
                    p.grad *= masks.get(name, 0)
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), rtol=1e-6, atol=1e-6)
        assert (model(x) - tiny.base('timm_vit', torch.float64)(x)).abs().max() > 0.1
        folded = mmpetl.core.fold(model).state_dict()
    for name, value in folded.items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-6, atol=1e-6)
        outside = masks.get(name, torch.zeros_like(value)) == 0
        assert torch.equal(value[outside], start[name][outside]), name


def test_state_and_optimizer_are_as_small_as_the_count() -> None:
    model = mmpetl.inject(tiny.base('mmpretrain_vit'), GPS())
    tiny.train(
        tiny.Tuned(model, tiny.images('mmpretrain_vit')), tiny.images('mmpretrain_vit')
    )
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params)
    sum(p.sum() for p in params).backward()
    optimizer.step()
    count = sum(p.numel() for p in params)
    kept = sum(v['exp_avg'].numel() for v in optimizer.state.values())
    assert kept == count
    state = delta_state(model)
    rows = sum(v.numel() for k, v in state.items() if k.endswith('values'))
    index = sum(v.numel() for k, v in state.items() if k.endswith('index'))
    assert rows == index
    assert sum(v.numel() for v in state.values()) == count + index + 1
    assert {v.dtype for k, v in state.items() if k.endswith('index')} == {torch.int32}


def test_neither_decay_nor_momentum_moves_the_rest() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), GPS())
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.5)
    x = tiny.images('timm_vit')
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert before
    assert all(torch.equal(p, after[n]) for n, p in before.items())


# ------------------------------------------------------------------- the data pass


def by_hand(f: torch.Tensor, labels: torch.Tensor) -> float:
    """The loss pair by pair."""
    f = f / f.norm(dim=1, keepdim=True)
    per_anchor = []
    for a in range(len(f)):
        others = [j for j in range(len(f)) if j != a]
        below = sum(torch.exp(f[a] @ f[j] / 0.07) for j in others)
        same = [p for p in others if labels[p] == labels[a]]
        if same:
            logs = [torch.log(torch.exp(f[a] @ f[p] / 0.07) / below) for p in same]
            per_anchor.append(-sum(logs) / len(logs))
    return sum(per_anchor) / len(per_anchor)


def test_contrast_equals_the_formula() -> None:
    f = torch.randn(9, 6, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 3])  # the last has no positive
    torch.testing.assert_close(supervised_contrast(f, labels), by_hand(f, labels))
    assert supervised_contrast(f, torch.arange(9)) is None


def data(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = tiny.images('timm_vit', batch=count, dtype=torch.float64)
    return x, torch.arange(count) % 3


def plain_gradients(batches: list) -> dict[str, torch.Tensor]:
    """Gradients of the contrast on a plain model, two equal views of every image."""
    plain = tiny.base('timm_vit', torch.float64)
    for x, labels in batches:
        f = plain.forward_features(torch.cat((x, x)))[:, 0]
        by_hand(f, torch.cat((labels, labels))).backward()
    return {n: p.grad for n, p in plain.named_parameters()}


def test_gradients_are_those_of_the_plain_model() -> None:
    x, labels = data(4)
    method = GPS()
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    grads = method.gradients(model, [(x, labels)])
    want = plain_gradients([(x, labels)])
    found = {str(site): g for site, g in grads.items()}
    assert len(found) == 9
    for name, key in (
        ('embed.proj', 'patch_embed.proj'),
        ('blocks.0:attn.qkv', 'blocks.0.attn.qkv'),
        ('blocks.1:ffn.fc2', 'blocks.1.mlp.fc2'),
    ):
        expected = want[f'{key}.weight'].flatten(1).float()
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('k', [1, 3])
def test_exactly_the_largest_of_every_row_are_chosen(k: int, monkeypatch) -> None:
    method = GPS(k)
    model = mmpetl.inject(tiny.base('timm_vit'), method)

    def made_up(self, backbone, batches):
        g = torch.Generator().manual_seed(3)
        sites = tiny.record(model).slots['0'].sites
        return {
            s: torch.randn(s.out_dims, s.in_dims, generator=g)
            for s in sorted(sites, key=str)
        }

    monkeypatch.setattr(GPS, 'gradients', made_up)
    method.calibrate(model, [])
    for site, grad in made_up(None, None, None).items():
        index = model.get_submodule(f'{site.path}.0').index
        for row, picked in zip(grad.abs(), index.tolist(), strict=True):
            assert len(set(picked)) == k
            assert picked == sorted(row.argsort()[-k:].tolist())
    assert model.petl.shared['0'].done


def test_two_half_epochs_sum_to_one() -> None:
    x, labels = data(8)
    halves = [(x[:4], labels[:4]), (x[4:], labels[4:])]
    method = GPS()
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    whole = method.gradients(model, halves)
    one, two = (method.gradients(model, [half]) for half in halves)
    for site, grad in whole.items():
        torch.testing.assert_close(grad, one[site] + two[site], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('criterion', ['supcon', 'task'])
def test_the_pass_leaves_no_trace(criterion: str) -> None:
    x, labels = data()
    method = GPS(criterion=criterion)
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    head = []
    model.head.weight.register_hook(head.append)
    method.calibrate(model, [(x, labels)])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert head == []
    own = [k for k in state if not torch.equal(state[k], model.state_dict()[k])]
    assert own
    assert all(k.endswith(('.index', '.done')) for k in own)


def test_supcon_does_not_know_the_head_and_the_task_does() -> None:
    x, labels = data()
    found = {}
    for criterion in ('supcon', 'task'):
        for factor in (1.0, 3.0):
            method = GPS(criterion=criterion)
            model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
            with torch.no_grad():
                model.head.weight.mul_(factor)
            grads = method.gradients(model, [(x, labels)])
            found[criterion, factor] = torch.cat([g.flatten() for g in grads.values()])
    assert torch.equal(found['supcon', 1.0], found['supcon', 3.0])
    assert not torch.allclose(found['task', 1.0], found['task', 3.0], 1e-2)


def test_task_gradients_are_those_of_cross_entropy() -> None:
    x, labels = data()
    method = GPS(criterion='task')
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    grads = {str(s): g for s, g in method.gradients(model, [(x, labels)]).items()}
    plain = tiny.base('timm_vit', torch.float64)
    F.cross_entropy(plain(x), labels).backward()
    want = plain.blocks[0].mlp.fc1.weight.grad.float()
    torch.testing.assert_close(grads['blocks.0:ffn.fc1'], want, rtol=1e-4, atol=1e-7)


class Noisy(Dataset):
    """Another view at every reading."""

    def __init__(self) -> None:
        self.x, self.labels = data(8)
        self.read = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int):
        self.read.append(i)
        return self.x[i] + 0.1 * torch.randn(3, 32, 32), self.labels[i]


def test_every_image_of_a_loader_is_read_twice() -> None:
    dataset = Noisy()
    sampler = torch.utils.data.SubsetRandomSampler([0, 1])  # as one process of four
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    method = GPS()
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    seen = []
    projection = model.patch_embed.proj
    projection.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    method.calibrate(model, loader)
    assert sorted(dataset.read) == sorted(2 * list(range(8)))
    assert [len(x) for x in seen] == [8, 8]
    assert not torch.equal(seen[0][:4], seen[0][4:])
    assert (seen[0][:4] - seen[0][4:]).abs().max() < 1.5


def test_at_most_so_many_images() -> None:
    x, labels = data(8)
    method = GPS(max_images=3)
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    batches = list(zip(x.split(2), labels.split(2), strict=True))
    few = method.gradients(model, batches)
    first = method.gradients(model, batches[:2])
    assert all(torch.equal(few[s], first[s]) for s in few)


@pytest.mark.parametrize('name', list(tiny_builds.TINY))
def test_chooses_on_every_backbone(name: str) -> None:
    method = GPS(2)
    model = mmpetl.inject(tiny.base(name), method)
    x, labels = tiny.images(name, batch=4), torch.tensor([0, 1, 0, 1])
    method.calibrate(model, [(x, labels)])
    chosen = [
        b for n, b in model.named_buffers() if n.endswith('.index') and 'petl' in n
    ]
    default = torch.arange(2, dtype=torch.int32)
    assert all((b.diff(dim=-1) > 0).all() for b in chosen)
    assert sum((b != default).any().item() for b in chosen) > len(chosen) // 2


def test_the_choice_survives_saving_and_loading() -> None:
    x, labels = data()
    method = GPS(2)
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    method.calibrate(model, [(x, labels)])
    tiny.shake_(model)
    other = mmpetl.inject(tiny.base('timm_vit', torch.float64), GPS(2))
    load_delta_state(other, delta_state(model))
    model.eval()
    other.eval()
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    own = plain_vit.delta(model, 0, 'attn_qkv').index
    assert torch.equal(plain_vit.delta(other, 0, 'attn_qkv').index, own)


@pytest.mark.parametrize(
    ('batches', 'message'),
    [
        ([], 'there are none'),
        ([(data()[0], torch.full((8,), 4))], r'the data hold one only \(4\)'),
        ([(data()[0], None)], "one label per image.*choose criterion='task'"),
    ],
)
def test_data_that_cannot_choose(batches: list, message: str) -> None:
    method = GPS()
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError, match=message):
        method.calibrate(model, batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'num_weights': 0}, 'num_weights of at least 1, got 0'),
        ({'criterion': 'ce'}, "criterion supcon or task, got 'ce'"),
        ({'max_images': 0}, 'max_images of at least 1, got 0'),
        ({'mode': 'dense'}, "mode values or mask, got 'dense'"),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        GPS(**args)


def test_more_weights_than_a_row_has() -> None:
    with pytest.raises(PETLError, match='num_weights of at most 32, .*got 33'):
        mmpetl.inject(tiny.base('timm_vit'), GPS(33))


def test_after_some_steps_only_the_selected_entries_differ() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), GPS(2, train_bias=False))
    pick_(model)
    places = {
        'blocks.0.attn.qkv.weight': plain_vit.delta(model, 0, 'attn_qkv').index,
        'blocks.1.mlp.fc2.weight': plain_vit.delta(model, 1, 'ffn_fc2').index,
        'patch_embed.proj.weight': model.petl.get_submodule('embed_proj.0').index,
    }
    tiny.train(
        tiny.Tuned(model, tiny.images('timm_vit')), tiny.images('timm_vit'), steps=5
    )
    after = dict(mmpetl.core.fold(model).named_parameters())
    for name, index in places.items():
        old = tiny.base('timm_vit').get_parameter(name).flatten(1)
        chosen = torch.zeros_like(old, dtype=torch.bool)
        chosen = chosen.scatter(1, index.long(), torch.ones_like(index).bool())
        new = after[name].flatten(1)
        assert torch.equal(old[~chosen], new[~chosen]), name
        assert (old[chosen] != new[chosen]).all(), name


@torch.no_grad()
def test_a_merged_checkpoint_loads_in_the_plain_backbone(stem: str) -> None:
    model = mmpetl.inject(tiny.base(stem), GPS(2))
    pick_(model)
    tiny.shake_(model)
    model.eval()
    merged = mmpetl.core.fold(model)
    plain = tiny.TINY[stem].build()
    plain.load_state_dict(merged.state_dict(), strict=True)
    plain.eval()
    x = tiny.images(stem, odd=True)
    for a, b in zip(tiny.outputs(plain, x), tiny.outputs(merged, x), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(a, tiny.outputs(tiny.base(stem), x)[-1])


# ------------------------------------------------------------------------ mode='mask'


def adam_steps(model: nn.Module, steps: int = 20) -> None:
    x = tiny.images('timm_vit', batch=6, dtype=torch.float64)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(6) % 5).backward()
        optimizer.step()


def masked(k: int = 2) -> nn.Module:
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), GPS(k, mode='mask'))
    pick_(model)
    return model


def test_mask_mode_takes_the_steps_of_the_values() -> None:
    dense = masked()
    sparse = mmpetl.inject(tiny.base('timm_vit', torch.float64), GPS(2))
    pick_(sparse)
    start = {k: v.clone() for k, v in dense.state_dict().items()}
    for model in (dense, sparse):
        adam_steps(model)
    folded = mmpetl.core.fold(sparse).state_dict()
    for name, value in mmpetl.core.fold(dense).state_dict().items():
        torch.testing.assert_close(value, folded[name], rtol=1e-6, atol=1e-6)
        if name.endswith('weight') and value.ndim > 1 and not name.startswith('head'):
            moved = (value != start[name]).sum().item()
            assert moved == 2 * len(value), name


def test_mask_mode_trains_the_weights_behind_the_sites_alone(any_stem: str) -> None:
    model = mmpetl.inject(tiny.base(any_stem), GPS(mode='mask'))
    core = tiny.core(model)
    own = owners(core)
    masks = [m for m in core.modules() if type(m).__name__ == 'GPSMask']
    watched = {id(weight) for m in masks for weight, _, _ in m._parts}
    # Sites that share a parameter mask rows of their own, and together all of them.
    rows = [
        (id(weight), row)
        for m in masks
        for weight, first, count in m._parts
        for row in range(first, first + count)
    ]
    assert len(set(rows)) == len(rows)
    assert len(rows) == sum(len(p) for p in core.parameters() if id(p) in watched)
    wide = {
        id(p)
        for n, p in core.named_parameters()
        if own[n] is Owner.SELECTED and p.ndim >= 2
    }
    assert watched == wide
    values = tiny.core(mmpetl.inject(tiny.base(any_stem), GPS()))
    both = (owners(core), owners(values))
    chosen = [{n for n in o if o[n] is Owner.SELECTED} for o in both]
    names = {n for n, p in core.named_parameters() if id(p) in watched}
    assert chosen[0] == chosen[1] | names


@pytest.mark.parametrize(
    ('name', 'weight'),
    [
        ('timm_swin_v2', 'layers.0.blocks.0.attn.cpb_mlp.2'),
        ('mmpretrain_swin_v2', 'stages.1.blocks.1.attn.w_msa.cpb_mlp.0'),
        ('timm_hiera', 'blocks.1.proj'),
        ('timm_hieradet', 'blocks.1.proj'),
        ('mmpretrain_mvit', 'blocks.1.proj'),
        ('mmaction_mvit', 'blocks.1.proj'),
        ('mmaction_uniformerv2', 'transformer.dec.1.attn.out_proj'),
        ('timm_sam', 'neck.0'),
        ('mmpretrain_sam', 'channel_reduction.0'),
    ],
)
def test_mask_mode_leaves_a_weight_behind_no_site(name: str, weight: str) -> None:
    core = tiny.core(mmpetl.inject(tiny.base(name), GPS(mode='mask')))
    assert owners(core)[f'{weight}.weight'] is Owner.BASE
    assert not core.get_parameter(f'{weight}.weight').requires_grad


@pytest.mark.parametrize('kind', ['q', 'v'])
def test_mask_mode_leaves_rows_at_no_named_site(kind: str) -> None:
    method = GPS(3, mode='mask', train_bias=False)
    model = mmpetl.inject(tiny.base('mmdet_pvt'), method, layers=f'*attn.{kind}')
    pick_(model)
    sum(
        o.square().sum() for o in tiny.outputs(model, tiny.images('mmdet_pvt'))
    ).backward()
    weight = model.get_parameter('layers.0.1.1.attn.attn.in_proj_weight')
    width = weight.shape[1]
    first = {'q': 0, 'v': 2 * width}[kind]
    want = torch.zeros(3 * width, dtype=torch.int64)
    want[first : first + width] = 3
    assert torch.equal((weight.grad != 0).sum(1), want)
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(n.endswith('in_proj_weight') for n in trains)


def test_a_copy_of_a_masked_model_is_masked_itself() -> None:
    model = masked()
    adam_steps(model, 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    twin = copy.deepcopy(model)
    adam_steps(twin, 2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    start = tiny.base('timm_vit', torch.float64)
    for name in ('blocks.0.attn.qkv.weight', 'blocks.1.mlp.fc1.weight'):
        now, then = twin.get_parameter(name), start.get_parameter(name)
        assert (now != then).sum() == 2 * len(now)


def test_a_second_choice_sees_whole_gradients() -> None:
    x, labels = data(4)
    fresh = mmpetl.inject(
        tiny.base('timm_vit', torch.float64), method := GPS(mode='mask')
    )
    want = {str(s): g for s, g in method.gradients(fresh, [(x, labels)]).items()}
    fresh(x).sum().backward()  # masks hang on the weights now
    fresh.zero_grad()
    for site, grad in method.gradients(fresh, [(x, labels)]).items():
        torch.testing.assert_close(grad, want[str(site)])
        assert (grad != 0).sum() > 2 * len(grad)


def test_masks_end_with_folding() -> None:
    model = masked()
    adam_steps(model, 1)
    plain = mmpetl.core.fold(model).requires_grad_()
    plain(tiny.images('timm_vit', dtype=torch.float64)).square().sum().backward()
    grad = plain.blocks[0].mlp.fc1.weight.grad
    assert (grad != 0).all()
