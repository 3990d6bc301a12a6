"""ONNX files of tuned and of folded models run with a batch of any size."""

from __future__ import annotations

import io

import pytest
import torch
from tiny import images, method_cases, outputs, pairs, shake_
from torch import Tensor, nn

from mmpetl.core import fold

runtime = pytest.importorskip('onnxruntime')

TIMM, SWIN = 'timm_vit', 'mmpretrain_swin'
PAIRS = {pair.id: pair for pair in pairs()}
REST = sorted({f'{case.id}-{TIMM}' for case in method_cases()} & set(PAIRS))
REST += [f'lora-{SWIN}', f'bitfit-{SWIN}', f'mona-{SWIN}']

pytestmark = [
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]


def check(model: nn.Module, stem: str) -> None:
    shapes, file = ({0: torch.export.Dim('batch')},), io.BytesIO()
    x = images(stem, 2)
    torch.onnx.export(
        model, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False
    ).save(file)
    session = runtime.InferenceSession(file.getvalue())
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {name: x.numpy()})))

    for batch in (2, 5):
        x = images(stem, batch)
        with torch.no_grad():
            for ours, theirs in zip(outputs(model, x), outputs(run, x), strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), batch


def tuned(id: str) -> nn.Module:
    model = PAIRS[id].inject()
    shake_(model)
    return model.eval()


def test_a_tuned_model() -> None:
    check(tuned(f'mona-{TIMM}'), TIMM)  # a kernel of its own


def test_a_folded_model() -> None:
    check(fold(tuned(f'lora-{TIMM}')), TIMM)


@pytest.mark.slow
@pytest.mark.parametrize('id', REST)
def test_every_tuned_model(id: str) -> None:
    check(tuned(id), PAIRS[id].stem)
