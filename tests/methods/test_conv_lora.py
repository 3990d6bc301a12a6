from __future__ import annotations

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts

import mmpetl
from mmpetl.core import Context, PETLError, Site, collect_losses
from mmpetl.methods.conv_lora import ConvLoRA, ConvLoRADelta, Gate, unevenness

F64 = torch.float64


def test_counts() -> None:
    got = counts('vit_b', ConvLoRA()).delta
    assert got == 119_232 == 12 * (3 * 4 * 768 + 8 * (9 * 9 + 3) + 16 * 3)


def delta(**site) -> ConvLoRADelta:
    torch.manual_seed(0)
    made = ConvLoRADelta(Site('attn.qkv', '', 6, 18, **site), 2, 3, 0.5).double()
    for param in made.parameters():
        torch.nn.init.normal_(param, std=0.5)
    return made


def test_each_map_takes_one_expert() -> None:
    """Written out map by map, with a token in front of the grid."""
    made = delta().eval()
    x, y = torch.randn(5, 1 + 12, 6, dtype=F64), torch.randn(5, 13, 18, dtype=F64)
    got = made.after(x, y, Context((4, 3), 1))
    chosen = set()
    for i in range(5):
        z = x[i] @ made.A.T
        maps = z[1:].T.reshape(1, 2, 4, 3)
        e = int((z[1:].mean(0) @ made.gate.clean).argmax())
        chosen.add(e)
        conv, size = made.experts[e], (4 * (e + 1), 3 * (e + 1))
        large = F.interpolate(maps, size, mode='bicubic') if e else maps
        large = F.gelu(F.conv2d(large, conv.weight, conv.bias, padding=1))
        small = F.interpolate(large, (4, 3), mode='bicubic') if e else large
        z = z + torch.cat((torch.zeros(1, 2), small.reshape(2, 12).T))
        torch.testing.assert_close(got[i], y[i] + 0.5 * z @ made.B.T)
    assert len(chosen) > 1


def test_biases_of_experts_start_at_zero() -> None:
    made = ConvLoRADelta(Site('attn.qkv', '', 6, 18), 2, 3, 0.5)
    assert all(not e.bias.any() and e.weight.any() for e in made.experts)


def test_windows_and_frames_are_maps_of_their_own() -> None:
    made = delta(window=(2, 2)).eval()
    x, y = torch.randn(6, 4, 6, dtype=F64), torch.zeros(6, 4, 18, dtype=F64)
    inside = made.after(x, y, Context((4, 6)))
    torch.testing.assert_close(inside[2:3], made.after(x[2:3], y[2:3], Context((4, 6))))
    frames = delta().eval()
    x = torch.randn(2, 8, 6, dtype=F64)
    both = frames.after(x, y[:2].repeat(1, 2, 1), Context((2, 2, 2)))
    alone = frames.after(x[:, 4:], y[:2], Context((2, 2)))
    torch.testing.assert_close(both[:, 4:], alone)
    with pytest.raises(PETLError, match='5 tokens make none of'):
        frames.after(x[:, :5], y[:2, :1], Context((2, 2)))


def test_the_balance_of_noisy_gates() -> None:
    gate = Gate(2, 3).double()
    torch.nn.init.normal_(gate.clean)
    torch.nn.init.normal_(gate.noise)
    mean = torch.randn(4, 2, dtype=F64)
    torch.manual_seed(1)
    chosen, loss = gate(mean)
    torch.manual_seed(1)
    draws = torch.randn(4, 3, dtype=F64)
    importance, load = [0.0] * 3, [0.0] * 3
    for i in range(4):
        clean = (mean[i] @ gate.clean).tolist()
        width = [
            math.log1p(math.exp(w)) + 0.01 for w in (mean[i] @ gate.noise).tolist()
        ]
        noisy = [clean[e] + draws[i, e].item() * width[e] for e in range(3)]
        assert noisy[chosen[i]] == max(noisy)
        importance[chosen[i]] += 1
        for e in range(3):
            rival = max(n for j, n in enumerate(noisy) if j != e)
            far = (clean[e] - rival) / width[e]
            load[e] += 0.5 * (1 + math.erf(far / 2**0.5))
    want = sum(unevenness(torch.tensor(v, dtype=F64)) for v in (importance, load))
    torch.testing.assert_close(loss, want)
    spread = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    torch.testing.assert_close(unevenness(spread).item(), 1 / 4)


def test_gates_learn_by_the_balance_alone() -> None:
    model = mmpetl.inject(tiny.base('timm_vit', F64), ConvLoRA(rank=2, num_experts=3))
    tiny.shake_(model)
    model.train()
    found = (model(torch.randn(3, 3, 32, 32, dtype=F64)) ** 2).sum()
    gates = [p for n, p in model.named_parameters() if '.gate.' in n]
    found.backward()
    assert all(p.grad is None for p in gates)
    # Each expert has a gradient, of zero where no image takes it.
    assert all(p.grad is not None for n, p in model.named_parameters() if 'exp' in n)
    model(torch.randn(3, 3, 32, 32, dtype=F64))
    (loss,) = collect_losses(model).values()
    loss.backward()
    assert all(p.grad.any() for p in gates)


def test_one_expert_alone_is_refused() -> None:
    with pytest.raises(PETLError, match='num_experts of at least 2, got 1'):
        ConvLoRA(num_experts=1)
