"""Files of peft, by formulas from its documentation: peft itself is not needed."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mmpetl
from mmpetl.apis import load_peft, save_peft
from mmpetl.core import PETLError

QKV, FC2 = 'blocks.1.attn.qkv', 'blocks.0.mlp.fc2'
WIDTHS = {QKV: (64, 192), FC2: (192, 64)}
HEAD = {'head.weight': (3, 64), 'head.bias': (3,)}


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=3, img_size=32).eval()


def skew(rows: Tensor, size: int) -> Tensor:
    """Row by row above the diagonal, by plain loops."""
    Q = torch.zeros(len(rows), size, size, dtype=rows.dtype)
    for k, row in enumerate(rows):
        numbers = iter(row)
        for i in range(size):
            for j in range(i + 1, size):
                Q[k, i, j] = next(numbers)
                Q[k, j, i] = -Q[k, i, j]
    return Q


def turned(W: Tensor, Q: Tensor) -> Tensor:
    """``W R^T`` of the exact Cayley transform ``R = (I - Q)(I + Q)^-1``."""
    one = torch.eye(Q.shape[-1], dtype=Q.dtype)
    blocks = [(one - q) @ torch.linalg.inv(one + q) for q in Q]
    return W @ torch.block_diag(*blocks).T


def butterfly(size: int, width: int, factor: int) -> Tensor:
    """P of the factor: halves of blocks of a group, even ones first."""
    half, group = size // 2, size * 2**factor
    order = []
    for start in range(0, width, group):
        halves = [
            list(range(start + k * half, start + (k + 1) * half))
            for k in range(group // half)
        ]
        order += sum(halves[::2] + halves[1::2], [])
    P = torch.zeros(width, width, dtype=torch.float64)
    for row, column in enumerate(order):
        P[row, column] = 1
    return P


def boft(W: Tensor, t: dict[str, Tensor], config: dict) -> Tensor:
    R = torch.eye(W.shape[1], dtype=W.dtype)
    for i, D in enumerate(t['boft_R']):
        Q, one = (D - D.mT) / 2, torch.eye(D.shape[-1], dtype=W.dtype)
        blocks = [(one - q) @ torch.linalg.inv(one + q) for q in Q]
        P = butterfly(D.shape[-1], W.shape[1], i)
        R = P @ torch.block_diag(*blocks) @ P.T @ R
    return t['boft_s'] * (W @ R.T)


def lora(W: Tensor, t: dict[str, Tensor], config: dict) -> Tensor:
    rank = len(t['lora_A.weight'])
    alpha = config['alpha_pattern'].get(QKV) if len(W) == 192 else None
    root = math.sqrt(rank) if config.get('use_rslora') else rank
    scale = (alpha or config['lora_alpha']) / root
    W = W + scale * t['lora_B.weight'] @ t['lora_A.weight']
    if 'lora_magnitude_vector' in t:
        W = t['lora_magnitude_vector'][:, None] * W / W.norm(dim=1, keepdim=True)
    return W


def hra(W: Tensor, t: dict[str, Tensor], config: dict) -> Tensor:
    for u in t['hra_u'].T:
        W = W - 2 * (W @ u)[:, None] * u / (u @ u)
    return W


def fourier(W: Tensor, t: dict[str, Tensor], config: dict) -> Tensor:
    c = t['fourierft_spectrum']
    generator = torch.Generator().manual_seed(config['random_loc_seed'])
    places = torch.randperm(W.numel(), generator=generator)[: len(c)]
    C = torch.zeros(W.numel(), dtype=W.dtype)
    C[places] = c
    return W + config['scaling'] * torch.fft.ifft2(C.view_as(W)).real


def lokr(W: Tensor, t: dict[str, Tensor], config: dict) -> Tensor:
    sides = [
        t[s] if s in t else t[f'{s}_a'] @ t[f'{s}_b'] for s in ('lokr_w1', 'lokr_w2')
    ]
    return W + config['alpha'] / config['r'] * torch.kron(*sides)


LORA = {
    'r': 4,
    'lora_alpha': 6,
    'rank_pattern': {FC2: 2},
    'alpha_pattern': {QKV: 3},
    'lora_dropout': 0.0,
}
RANKS = {QKV: 4, FC2: 2}
PAIR = {
    path: {'lora_A.weight': (RANKS[path], i), 'lora_B.weight': (o, RANKS[path])}
    for path, (i, o) in WIDTHS.items()
}
WITH_LENGTH = {
    path: {**shapes, 'lora_magnitude_vector': (WIDTHS[path][1],)}
    for path, shapes in PAIR.items()
}


def each(make) -> dict[str, dict[str, tuple[int, ...]]]:
    return {path: make(*WIDTHS[path]) for path in WIDTHS}


CASES = {
    'LoRA': ({'peft_type': 'LORA', **LORA}, PAIR, lora),
    'rsLoRA': ({'peft_type': 'LORA', **LORA, 'use_rslora': True}, PAIR, lora),
    'DoRA': ({'peft_type': 'LORA', **LORA, 'use_dora': True}, WITH_LENGTH, lora),
    'IA3': (
        {'peft_type': 'IA3', 'feedforward_modules': [FC2]},
        {QKV: {'ia3_l': (192, 1)}, FC2: {'ia3_l': (1, 192)}},
        lambda W, t, config: W * t['ia3_l'],
    ),
    'OFT': (
        {
            'peft_type': 'OFT',
            'r': 0,
            'oft_block_size': 4,
            'use_cayley_neumann': False,
            'num_cayley_neumann_terms': 5,
        },
        each(lambda i, o: {'oft_R.weight': (i // 4, 6)}),
        lambda W, t, config: turned(W, skew(t['oft_R.weight'], 4)),
    ),
    'BOFT': (
        {
            'peft_type': 'BOFT',
            'boft_block_size': 4,
            'boft_block_num': 0,
            'boft_n_butterfly_factor': 3,
        },
        each(lambda i, o: {'boft_R': (3, i // 4, 4, 4), 'boft_s': (o, 1)}),
        boft,
    ),
    'HRA': (
        {'peft_type': 'HRA', 'r': 4, 'apply_GS': False},
        each(lambda i, o: {'hra_u': (i, 4)}),
        hra,
    ),
    'LoHa': (
        {'peft_type': 'LOHA', 'r': 3, 'alpha': 5},
        each(
            lambda i, o: {
                f'hada_w{k}_{s}': (o, 3) if s == 'a' else (3, i)
                for k in (1, 2)
                for s in 'ab'
            }
        ),
        lambda W, t, config: (
            W
            + 5
            / 3
            * (t['hada_w1_a'] @ t['hada_w1_b'])
            * (t['hada_w2_a'] @ t['hada_w2_b'])
        ),
    ),
    'LoKr': (
        {'peft_type': 'LOKR', 'r': 3, 'alpha': 5, 'decompose_both': False},
        {  # 64 = 8 * 8, 192 = 12 * 16
            QKV: {'lokr_w1': (12, 8), 'lokr_w2_a': (16, 3), 'lokr_w2_b': (3, 8)},
            FC2: {'lokr_w1': (8, 12), 'lokr_w2_a': (8, 3), 'lokr_w2_b': (3, 16)},
        },
        lokr,
    ),
    'FourierFT': (
        {
            'peft_type': 'FOURIERFT',
            'n_frequency': 40,
            'n_frequency_pattern': {FC2: 30},
            'scaling': 100.0,
            'random_loc_seed': 5,
        },
        {QKV: {'fourierft_spectrum': (40,)}, FC2: {'fourierft_spectrum': (30,)}},
        fourier,
    ),
    'AdaLoRA': (
        {
            'peft_type': 'ADALORA',
            'init_r': 4,
            'target_r': 2,
            'lora_alpha': 6,
            'total_step': 1,
        },
        each(lambda i, o: {'lora_A': (4, i), 'lora_B': (o, 4), 'lora_E': (4, 1)}),
        lambda W, t, config: (
            W + 6 / (4 + 1e-5) * t['lora_B'] @ (t['lora_A'] * t['lora_E'])
        ),
    ),
    'VeRA': (
        {'peft_type': 'VERA', 'r': 5, 'save_projection': True},
        each(lambda i, o: {'vera_lambda_b': (o,), 'vera_lambda_d': (5,)}),
        lambda W, t, config: (
            W
            + t['vera_lambda_b'][:, None]
            * t['B'][: len(W)]
            @ (t['vera_lambda_d'][:, None] * t['A'][:, : W.shape[1]])
        ),
    ),
}

PATTERNS = {
    'r': 'rank_pattern',
    'lora_alpha': 'alpha_pattern',
    'alpha': 'alpha_pattern',
    'n_frequency': 'n_frequency_pattern',
}
"""Entries that a pattern of layers overrides, where a type has one."""


def written(folder: Path, config: dict, shapes: dict, head: bool = True) -> dict:
    """An adapter of drawn values; returns its tensors."""
    torch.manual_seed(3)
    tensors = {
        f'base_model.model.{path}.{name}': 0.3 * torch.randn(shape)
        for path, names in shapes.items()
        for name, shape in names.items()
    }
    if config['peft_type'] == 'VERA':
        tensors['base_model.vera_A'] = 0.3 * torch.randn(5, 192)
        tensors['base_model.vera_B'] = 0.3 * torch.randn(192, 5)
    if head:
        for name, shape in HEAD.items():
            tensors[f'base_model.model.{name}'] = torch.randn(shape)
    folder.mkdir(exist_ok=True)
    saved = {'modules_to_save': ['head']} if head else {}
    text = json.dumps({**config, **saved, 'target_modules': list(shapes)})
    (folder / 'adapter_config.json').write_text(text)
    save_file(tensors, folder / 'adapter_model.safetensors')
    return tensors


def out(model: nn.Module) -> Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        return model(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize('case', CASES)
def test_a_file_means_what_its_formula_says(case: str, tmp_path: Path) -> None:
    config, shapes, formula = CASES[case]
    tensors = written(tmp_path / 'a', config, shapes)
    plain = vit()
    with torch.no_grad():
        for path in shapes:
            mine = {
                key.removeprefix(f'base_model.model.{path}.'): value.double()
                for key, value in tensors.items()
                if path in key
            }
            for side in 'AB':
                if f'base_model.vera_{side}' in tensors:
                    mine[side] = tensors[f'base_model.vera_{side}'].double()
            linear = plain.get_submodule(path)
            linear.weight.copy_(formula(linear.weight.double(), mine, config))
            if case == 'IA3' and path == QKV:
                linear.bias.mul_(tensors[f'base_model.model.{path}.ia3_l'][:, 0])
        for name in HEAD:
            plain.get_parameter(name).copy_(tensors[f'base_model.model.{name}'])
    expected = out(plain)

    tuned = load_peft(vit(), tmp_path / 'a', slot='theirs')
    assert [slot.name for slot in mmpetl.slots(tuned)] == ['theirs']
    assert (out(tuned) - expected).abs().max() < 2e-6 * max(1, expected.abs().max())

    # What is written is what was read, tensor by tensor, and says the same.
    save_peft(tuned, tmp_path / 'b')
    again = load_file(tmp_path / 'b' / 'adapter_model.safetensors')
    assert set(again) == set(tensors)
    for key, value in tensors.items():
        if key.endswith('boft_R'):  # any D with the same (D - D^T) / 2
            value = (value - value.mT) / 2
        assert again[key].shape == value.shape
        assert torch.equal(again[key], value), key
    said = json.loads((tmp_path / 'b' / 'adapter_config.json').read_text())
    assert set(said['target_modules']) == set(shapes)
    assert said['modules_to_save'] == ['head']
    for entry, value in config.items():
        if pattern := PATTERNS.get(entry):
            for path in shapes:
                own = said.get(pattern, {}).get(path, said[entry])
                assert own == config.get(pattern, {}).get(path, value), (entry, path)
        elif entry not in PATTERNS.values():
            assert said[entry] == value, entry


def test_factors_of_rows_and_of_a_start_are_one_sum(tmp_path: Path) -> None:
    """Queries and values are rows of one Linear; PiSSA subtracts where it began."""
    model = mmpetl.inject(vit(), {'type': 'LoRA', 'rank': 2, 'start': 'pissa'})
    torch.manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if '.petl.' in name:
                param.add_(0.1 * torch.randn_like(param))
    expected = out(model)
    save_peft(model, tmp_path)
    tensors = load_file(tmp_path / 'adapter_model.safetensors')
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert (config['r'], config['lora_alpha']) == (8, 8)  # 2 * 2 of q, 2 * 2 of v
    B = tensors[f'base_model.model.{QKV}.lora_B.weight']
    assert not B[64:128].any()  # keys
    assert (out(load_peft(vit(), tmp_path)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize('bias', ['all', 'lora_only'])
def test_biases_beside_it_train_in_a_slot_of_their_own(bias, tmp_path: Path) -> None:
    written(tmp_path, {'peft_type': 'LORA', 'r': 4, 'bias': bias}, {QKV: PAIR[QKV]})
    file = tmp_path / 'adapter_model.safetensors'
    tensors = load_file(file)
    tensors[f'base_model.model.{QKV}.base_layer.bias'] = torch.full((192,), 2.0)
    if bias == 'all':
        tensors['base_model.model.norm.bias'] = torch.full((64,), 3.0)
    save_file(tensors, file)
    model = load_peft(vit(), tmp_path)
    assert (model.get_parameter(f'{QKV}.bias') == 2).all()
    assert (model.norm.bias == 3).all().item() == (bias == 'all')
    assert model.norm.bias.requires_grad == (bias == 'all')
    save_peft(model, tmp_path / 'b')
    again = load_file(tmp_path / 'b' / 'adapter_model.safetensors')
    assert (again[f'base_model.model.{QKV}.base_layer.bias'] == 2).all()


REFUSED = {
    'pissa': ({'init_lora_weights': 'pissa'}, "'pissa' changes the base weights"),
    'bias of B': ({'lora_bias': True}, 'lora_bias=True of LORA has no equal here'),
    'prompts': ({'peft_type': 'PROMPT_TUNING'}, 'it can be ADALORA, BOFT'),
    'regex': ({'alpha_pattern': {'.*(qkv)+': 2}}, 'a regular expression'),
    'no table': ({'alpha_pattern': 'x'}, 'alpha_pattern: expected object'),
    'no text': ({'bias': 5}, 'bias: expected str'),
    'no number': ({'lora_alpha': 'eight'}, "needs alpha of at least 0, got 'eight'"),
    'no rate': ({'lora_dropout': 'much'}, 'needs drop_rate of at least 0'),
    'no magnitude': ({'use_dora': True}, f'lacks {QKV}.lora_magnitude_vector'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_has_no_equal_is_refused_and_changes_nothing(case, tmp_path) -> None:
    changed, message = REFUSED[case]
    written(tmp_path, {'peft_type': 'LORA', 'r': 4, **changed}, {QKV: PAIR[QKV]})
    model = vit()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PETLError) as error:
        load_peft(model, tmp_path)
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert type(model) is type(vit())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ('kind', 'changed', 'message'),
    [
        ('OFT', {'coft': True}, 'coft=True writes its bound'),
        ('OFT', {'use_cayley_neumann': True, 'num_cayley_neumann_terms': 3}, '5 terms'),
        ('VeRA', {'save_projection': False}, 'leaves its matrices out'),
        ('AdaLoRA', {'rank_pattern': {QKV: [True]}}, 'what was pruned'),
    ],
)
def test_another_algebra_says_which(kind, changed, message, tmp_path) -> None:
    config, shapes, _ = CASES[kind]
    written(tmp_path, {**config, **changed}, shapes)
    with pytest.raises(PETLError, match=message):
        load_peft(vit(), tmp_path)


def test_wrong_layers_shapes_and_pickles_are_refused(tmp_path: Path) -> None:
    lora = {'peft_type': 'LORA', 'r': 4}
    for path, shapes, message in (
        ('blocks.9.attn.qkv', PAIR[QKV], 'there is no blocks.9.attn.qkv'),
        ('patch_embed.proj', PAIR[QKV], r'no place at patch_embed.proj \(Conv2d\)'),
        (QKV, {'lora_A.weight': (), 'lora_B.weight': ()}, 'cannot be read'),
        (QKV, PAIR[FC2], r'shape \(2, 192\) in the adapter and needs \(2, 64\)'),
    ):
        written(tmp_path, lora, {path: shapes})
        with pytest.raises(PETLError, match=message):
            load_peft(vit(), tmp_path)
    written(tmp_path, {'peft_type': 'IA3'}, {QKV: {'ia3_l': (1, 64)}})
    with pytest.raises(PETLError, match='scales in front of'):
        load_peft(vit(), tmp_path)
    file = tmp_path / 'adapter_model.safetensors'
    file.rename(file.with_suffix('.bin'))
    with pytest.raises(PETLError, match='is a pickle'):
        load_peft(vit(), tmp_path)


def test_an_adapter_is_its_folder_and_goes_into_a_bare_model(tmp_path: Path) -> None:
    written(tmp_path, {'peft_type': 'LORA', 'r': 2}, {QKV: PAIR[QKV]})
    one, other = (load_peft(vit(), tmp_path / n) for n in ('', 'adapter_config.json'))
    assert torch.equal(out(one), out(other))
    with pytest.raises(PETLError, match=r'load_peft\(model, folder\)'):
        mmpetl.load_delta(mmpetl.inject(vit(), 'LoRA'), tmp_path)
    wrapped = vit()
    wrapped.peft_config = {'default': object()}
    with pytest.raises(PETLError, match=r'built anew or by model\.unload\(\)'):
        load_peft(wrapped, tmp_path)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    # Or the branches of its blocks begin at zero, and what is in them does nothing.
    return timm.create_model('test_resnet', num_classes=3, zero_init_last=False).eval()


CONVOLVED = 'layer3.0.conv1', 'layer3.0.conv2'
"""One of a place, and one of nine that steps by two."""


@pytest.mark.parametrize('dora', [False, True])
def test_two_convolutions_are_one_update_of_a_convolution(dora, tmp_path) -> None:
    """peft: A is a convolution of the kernel, step and zeros of W, B sees one place."""
    plain = resnet()
    shapes = {}
    for path in CONVOLVED:
        conv = plain.get_submodule(path)
        rank = 4 if conv.kernel_size == (1, 1) else 2
        A = (rank, conv.in_channels, *conv.kernel_size)
        shapes[path] = {
            'lora_A.weight': A,
            'lora_B.weight': (conv.out_channels, rank, 1, 1),
        }
        if dora:
            m = (1, conv.out_channels, 1, 1)
            shapes[path]['lora_magnitude_vector'] = m
    assert max(plain.get_submodule('layer3.0.conv2').stride) == 2
    config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 6, 'use_dora': dora}
    tensors = written(tmp_path / 'a', config, shapes, head=False)
    for path in CONVOLVED:
        conv = plain.get_submodule(path)
        A, B, m = (
            tensors.get(f'base_model.model.{path}.{name}')
            for name in ('lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector')
        )
        with torch.no_grad():
            W = conv.weight.double()
            W = W + 6 / len(A) * torch.einsum('or,rchw->ochw', B[..., 0, 0], A).double()
            if dora:
                W = (
                    m.double().transpose(0, 1)
                    * W
                    / W.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                )
            conv.weight.copy_(W)
    tuned = load_peft(resnet(), tmp_path / 'a')
    expected = out(plain)
    assert (expected - out(resnet())).abs().max() > 1e-2
    assert (out(tuned) - expected).abs().max() < 2e-6 * max(1, expected.abs().max())
    save_peft(tuned, tmp_path / 'b')
    again = load_file(tmp_path / 'b' / 'adapter_model.safetensors')
    heads = {f'base_model.model.fc.{last}' for last in ('weight', 'bias')}
    assert again.keys() - tensors.keys() == heads
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


class Convolutions(nn.Sequential):
    """What two convolutions in a row are no change of, and one that they are."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=2, dilation=2),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Conv2d(4, 4, 3, padding='same'),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
            nn.Conv2d(4, 4, 3, padding=1),
        )


@pytest.mark.parametrize(
    ('path', 'words'),
    [('0', 'is dilated by 2'), ('1', 'has 2 groups'), ('2', 'pads'), ('3', 'pads')],
)
def test_a_convolution_that_two_do_not_make_is_refused(path, words, tmp_path) -> None:
    model = Convolutions()
    conv = model.get_submodule(path)
    shapes = {
        'lora_A.weight': (2, conv.in_channels, 3, 3),
        'lora_B.weight': (4, 2, 1, 1),
    }
    written(tmp_path, {'peft_type': 'LORA', 'r': 2}, {path: shapes}, head=False)
    with pytest.raises(PETLError, match=f'no place at {path} .*{words}') as error:
        load_peft(model, tmp_path)
    assert '\n' not in str(error.value)
    if path != '1':  # where LoRA has no site
        mmpetl.inject(model, {'type': 'LoRA', 'rank': 2}, layers=[path])
        with pytest.raises(PETLError, match=f'LoRA acts at .*{words}'):
            save_peft(model, tmp_path / 'b')


def test_types_of_linears_alone_and_described_trunks_say_so(tmp_path) -> None:
    path = 'layer3.0.conv1'
    written(tmp_path, {'peft_type': 'HRA', 'r': 2}, {path: {'hra_u': (32, 2)}}, False)
    with pytest.raises(PETLError, match='HRA is read at Linears, not at conv.*none'):
        load_peft(resnet(), tmp_path)
    model = mmpetl.inject(resnet(), {'type': 'SSF'})
    with pytest.raises(PETLError, match='no equal among the adapters of peft'):
        save_peft(model, tmp_path / 'b')
    convnext = timm.create_model('test_convnext', num_classes=3)
    shapes = {'lora_A.weight': (2, 24, 2, 2), 'lora_B.weight': (32, 2, 1, 1)}
    at = 'stages.1.downsample.1'
    written(tmp_path, {'peft_type': 'LORA', 'r': 2}, {at: shapes}, head=False)
    with pytest.raises(PETLError, match='no site of the trunk is all of this conv'):
        load_peft(convnext, tmp_path)


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        ('VPTDeep', 'no equal among the adapters of peft'),
        ('DoRA', "acts at rows of blocks.0.attn.qkv.*targets=\\('attn.qkv',\\)"),
        (
            {'type': 'OFT', 'max_norm': 1.0, 'block_size': 4},
            'bounds the rotation by max_norm',
        ),
        (
            {'type': 'VeRA', 'rank': 4, 'targets': ('attn.qkv', 'ffn.fc2')},
            'peft one for all',
        ),
        (
            {'type': 'FourierFT', 'transform': 'none', 'num_coefficients': 9},
            "transform='none' has no equal",
        ),
    ],
)
def test_a_method_that_peft_does_not_have_is_not_written(
    method, message, tmp_path
) -> None:
    model = mmpetl.inject(vit(), method)
    with pytest.raises(PETLError, match=message):
        save_peft(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_layers_of_a_model_that_no_file_describes(tmp_path: Path) -> None:
    config, shapes, _ = CASES['LoRA']
    path = 'stages.1.blocks.0.fc1'

    def build() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model('test_mambaout', num_classes=3).eval()

    width = build().get_submodule(path)
    o, i = width.weight.shape
    shapes = {path: {'lora_A.weight': (4, i), 'lora_B.weight': (o, 4)}}
    tensors = written(tmp_path, {**config, 'alpha_pattern': {}}, shapes, head=False)
    model, plain = load_peft(build(), tmp_path), build()
    A, B = (tensors[f'base_model.model.{path}.lora_{s}.weight'] for s in 'AB')
    with torch.no_grad():
        plain.get_submodule(path).weight.add_(6 / 4 * B @ A)
        x = torch.randn(1, 3, 64, 64)
        assert torch.allclose(model(x), plain(x), atol=1e-5)


def test_several_adapters_take_a_slot_each_and_mix(tmp_path: Path) -> None:
    lora = {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 4}
    weights = {'a': 2.0, 'b': -0.5}
    model, plain = vit(), vit()
    for number, (slot, weight) in enumerate(weights.items()):
        tensors = written(tmp_path / slot, lora, {QKV: PAIR[QKV]}, head=False)
        A, B = (f'base_model.model.{QKV}.lora_{s}.weight' for s in 'AB')
        tensors[A] = tensors[A] * (1 + number)
        save_file(tensors, tmp_path / slot / 'adapter_model.safetensors')
        load_peft(model, tmp_path / slot, slot=slot)
        with torch.no_grad():
            plain.get_submodule(QKV).weight.add_(weight * tensors[B] @ tensors[A])
    mmpetl.mix(model, weights, slot='c')
    assert (out(plain) - out(vit())).abs().max() > 1e-2
    assert (out(model) - out(plain)).abs().max() < 1e-5


@pytest.mark.parametrize('trunk', ['timm_beit', 'mmseg_vit'])
def test_a_linear_that_nobody_calls_has_no_adapter(trunk: str, tmp_path: Path) -> None:
    """Its module reads the weight, so that peft's wrapper would never run."""
    from tiny import TINY

    kind = 'attn.qkv' if trunk == 'timm_beit' else 'attn.proj'
    method = {'type': 'LoRA', 'rank': 2, 'targets': (kind,)}
    model = mmpetl.inject(TINY[trunk].build(), method)
    with pytest.raises(PETLError, match='no single Linear that the model calls'):
        save_peft(model, tmp_path)


def test_scales_at_the_same_rows_are_multiplied(tmp_path: Path) -> None:
    targets = ('attn.qkv', 'attn.k')
    model = mmpetl.inject(vit(), {'type': 'IA3', 'targets': targets})
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith('.scale'):
                param.uniform_(0.5, 1.5)
    save_peft(model, tmp_path)
    again = load_peft(vit(), tmp_path)
    assert torch.allclose(out(again), out(model), atol=1e-5)
