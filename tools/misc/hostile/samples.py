"""Healthy files for the fuzzers, as bytes."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any


def state() -> dict[str, Any]:
    """Tensors by name."""
    import torch

    return {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2)}


def torch_file(value: Any = None, new: bool = True) -> bytes:
    """A file of ``torch.save``."""
    import torch

    buffer = io.BytesIO()
    value = state() if value is None else value
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def checkpoint() -> bytes:
    """A checkpoint as runs write it, with what MMEngine puts beside the weights."""
    from mmengine.logging import MessageHub

    hub = MessageHub('fuzz')
    hub.update_scalar('train/loss', 1.5)
    whole = {
        'meta': {'epoch': 1, 'iter': 2, 'cfg': 'a = 1'},
        'state_dict': state(),
        'message_hub': hub.state_dict(),
    }
    return torch_file(whole)


def safetensors() -> bytes:
    """A file of safetensors."""
    from safetensors.torch import save

    return save(state(), {'format': 'pt'})


def npz(**arrays: Any) -> bytes:
    """A file of ``numpy.savez``."""
    import numpy as np

    buffer = io.BytesIO()
    arrays = arrays or {k: v.numpy() for k, v in state().items()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def torchscript() -> bytes:
    """An archive of ``torch.jit.save``."""
    import torch

    buffer = io.BytesIO()
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.jit.save(torch.jit.script(inner), buffer)
    return buffer.getvalue()


@functools.cache
def picture(kind: str = 'JPEG', mode: str = 'RGB') -> bytes:
    """A small picture."""
    import numpy as np
    from PIL import Image

    shape = (8, 8, 3) if mode == 'RGB' else (8, 8)
    kept = np.uint16 if mode == 'I;16' else np.uint8
    pixels = np.arange(64 * (3 if mode == 'RGB' else 1)).reshape(shape) % 20
    shown = Image.fromarray(pixels.astype(kept))
    buffer = io.BytesIO()
    (shown if mode in ('RGB', 'I;16') else shown.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


MEMBERS = {
    'a/train.json': b'{"a": 1}',
    'a/list.txt': b'a/1.jpg 1\n',
    'a/1.xml': b'<annotation><name>dog</name></annotation>',
}


def archive() -> bytes:
    """A zip of pictures, lists and annotations."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as packed:
        packed.writestr('a/1.jpg', picture())
        packed.writestr('a/2.png', picture('PNG'))
        for name, data in MEMBERS.items():
            packed.writestr(name, data)
    return buffer.getvalue()


def tar(form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of pictures, lists and annotations, one of them with a long name."""
    buffer = io.BytesIO()
    members = {'a/1.jpg': picture(), **MEMBERS, f'a/{"x" * 150}.txt': b'1'}
    with tarfile.open(fileobj=buffer, mode='w', format=form) as packed:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def delta() -> tuple[dict, bytes]:
    """The record and the tensors of a small delta."""
    import torch

    from mmpetl.core.delta_file import write_delta_file

    with tempfile.TemporaryDirectory() as folder:
        path = write_delta_file(
            Path(folder) / 'delta',
            {'layers.0.petl.attn_q.0.down.weight': torch.ones(2, 3)},
            {
                'method': {'type': 'LoRA', 'rank': 2},
                'backbone': None,
                'num_blocks': 1,
                'base': 'base.pth',
                'fingerprint': '0123456789abcdef',
                'scope': 'mmpretrain',
                'classes': ['a', 'b'],
                'palette': [[0, 0, 0], [1, 2, 3]],
                'metrics': {'accuracy/top1': 10.0},
            },
        )
        facts = json.loads(path.with_suffix('.json').read_text())
        return facts, path.read_bytes()


def journal() -> bytes:
    """The journal of a search with a trial."""
    from mmpetl.benchmark.optuna_study import load_study

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'journal.log'
        study = load_study(path, 4, 0, 1)
        trial = study.ask()
        trial.suggest_int('rank', 1, 8)
        trial.suggest_categorical('b', ['x', 'y'])
        trial.report(1.0, 1)
        study.tell(trial, 0.5)
        return path.read_bytes()


def matlab() -> bytes:
    """A file of MATLAB with annotations as Stanford Cars has them."""
    import numpy as np
    from scipy.io import savemat

    kinds = [(k, object) for k in ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class')]
    entries = np.zeros((1, 2), [*kinds, ('fname', object)])
    for place in range(2):
        for number, (name, _) in enumerate(kinds):
            entries[name][0, place] = number + 1
        entries['fname'][0, place] = f'{place}.jpg'
    buffer = io.BytesIO()
    savemat(buffer, {'annotations': entries})
    return buffer.getvalue()
