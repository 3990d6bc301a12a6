"""The loops that docs/loops.md shows run as they stand, and train the delta alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mmpetl

PAGE = Path(mmpetl.__file__).parents[1] / 'docs' / 'loops.md'


def code(heading: str) -> tuple[str, str]:
    """The code below a heading: up to where it trains, and the line that does."""
    text = PAGE.read_text(encoding='utf-8').split(f'## {heading}\n')[1]
    block = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    *before, last = block.rstrip().splitlines()
    return '\n'.join(before), last


def run(heading: str, folder: Path, monkeypatch: Any) -> tuple[dict, nn.Module]:
    """Names of the page behind its training, and the model as it was in front."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    before, last = code(heading)
    names: dict[str, Any] = {}
    exec(before, names)
    start = copy.deepcopy(names['model'])
    exec(last, names)
    return names, start


def check_moved(model: nn.Module, start: nn.Module) -> None:
    """What trains has moved, every tensor of it, and nothing else."""
    old = dict(start.named_parameters())
    trains = {n for n, p in old.items() if p.requires_grad}
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.cpu(), old[n])}
    assert moved == trains
    assert any('.petl.' in name for name in moved)


@pytest.mark.filterwarnings('ignore')
def test_the_trainer_of_transformers(tmp_path, monkeypatch) -> None:
    pytest.importorskip('transformers')
    pytest.importorskip('accelerate')
    # `tests/datasets` looks like the package of that name from here.
    monkeypatch.setattr('transformers.trainer.is_datasets_available', lambda: False)
    names, start = run('The Trainer of transformers', tmp_path, monkeypatch)
    check_moved(names['model'], start)
    folder = Path(names['args'].output_dir)
    assert {p.stem for p in folder.glob('*.safetensors')} == {'epoch_1', 'epoch_2'}
    mmpetl.load_delta(start, folder / 'epoch_2')
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = start.eval()(x).logits
        assert torch.allclose(found, names['model'].eval()(x).logits, atol=1e-6)


@pytest.mark.filterwarnings('ignore')
def test_lightning(tmp_path, monkeypatch) -> None:
    pytest.importorskip('lightning')
    names, start = run('Lightning', tmp_path, monkeypatch)
    check_moved(names['model'], start)
    (file,) = tmp_path.rglob('*.ckpt')
    state = torch.load(file, weights_only=True)['state_dict']
    assert set(state) == {f'model.{k}' for k in mmpetl.delta_state(start)}
    again = names['Tuned'](start)
    again.load_state_dict(state, strict=False)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = again.model.eval()(x)
        assert torch.allclose(found, names['model'].eval()(x), atol=1e-6)


def test_a_scaler_steps_float32_deltas_over_a_half_base() -> None:
    import timm

    def step(**given: Any) -> bool:
        model = timm.create_model('test_vit', num_classes=0, img_size=32).half()
        mmpetl.inject(model, {'type': 'LoRA', 'rank': 2}, **given)
        params = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in params]
        optimizer = torch.optim.SGD(params, lr=0.1)
        scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
        loss = model(torch.randn(2, 3, 32, 32).half()).float().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        return any(not torch.equal(a, b) for a, b in zip(params, before, strict=True))

    assert step()
    with pytest.raises(ValueError, match='unscale FP16 gradients'):
        step(delta_dtype=torch.float16)
