"""Deltas on a hub: what is uploaded, what comes back, and what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import mmpetl
from mmpetl.apis import from_pretrained, push_to_hub
from mmpetl.benchmark.records import DataRead, Job, Record
from mmpetl.core import PETLError


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model('test_vit', num_classes=3, img_size=32).eval()


@pytest.fixture
def tuned() -> nn.Module:
    model = mmpetl.inject(
        vit(), [{'type': 'LoRA', 'rank': 2, 'blocks': '3:'}, 'BitFit']
    )
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn_like(param))
    return model


def record(folder: Path) -> Path:
    run = Record(
        Job('mini/digits', 'LoRA', seed=7),
        'done',
        task='digits|<b>',
        metrics={'accuracy/top1': 91.25},
        primary='accuracy/top1',
        test_reads=1,
        seconds=12.3,
        steps=40,
        peak_memory_bytes=3 * 2**20,
        device='a CPU',
        data={'train': DataRead('ab' * 32, 800, 'Digits', 'content')},
    )
    path = folder / 'record.json'
    path.write_text(json.dumps(run.to_json()))
    return path


def test_a_folder_serves_as_the_hub(tuned, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('MMPETL_HUB', str(tmp_path))
    picture = tmp_path / 'p.png'
    picture.write_bytes(b'png')
    made = push_to_hub(
        tuned, 'me/birds', record=record(tmp_path), picture=picture, licence='mit'
    )
    assert sorted(p.name for p in Path(made).iterdir()) == [
        'README.md',
        'delta.json',
        'delta.safetensors',
        'picture.png',
        'record.json',
    ]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(from_pretrained('me/birds', vit())(x), tuned(x))
    other = vit(1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(PETLError, match='load the base that the delta was made on'):
        from_pretrained('me/birds', other)
    assert type(other) is type(vit())
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_folder_is_filled_as_a_whole_or_not_at_all(tmp_path) -> None:
    from mmpetl.apis.hub import _copy

    made, target = tmp_path / 'made', tmp_path / 'target'
    for folder, text in ((made, 'new'), (target, 'old')):
        folder.mkdir()
        (folder / 'a').write_text(text)
    (made / 'b').mkdir()  # which cannot be read as a file
    with pytest.raises(IsADirectoryError):
        _copy(made, target)
    assert [(p.name, p.read_text()) for p in target.iterdir()] == [('a', 'old')]
    (made / 'b').rmdir()
    _copy(made, target)
    assert [(p.name, p.read_text()) for p in target.iterdir()] == [('a', 'new')]


def test_the_card_says_what_is_on_record(tuned, tmp_path) -> None:
    folder = push_to_hub(
        tuned, 'me/birds', record=record(tmp_path), licence='mit', hub=tmp_path
    )
    card = (Path(folder) / 'README.md').read_text()
    facts = json.loads((Path(folder) / 'delta.json').read_text())
    for text in (
        'license: "mit"',
        'tags: ["mmpetl", "parameter-efficient", "LoRA", "BitFit"]',
        f'| fingerprint | {facts["fingerprint"]} |',
        '| 0: LoRA | rank=2,',
        'blocks=\\[3, 4, 5\\]',
        '| data | digits\\|\\<b\\> |',  # a name ends no cell, and is no HTML
        f'| train | 800 samples, SHA-256 {"ab" * 8} |',
        '| accuracy/top1 | 91.25 |',
        'Protocol: honest, seed 7, test set read 1 times.',
        '| trained in heads | 195 |',  # 64 * 3 + 3
        '| time | 12 s |',
        '| peak memory | 3 MiB |',
        "from_pretrained('me/birds', model)",
    ):
        assert text in card, text


def test_what_nobody_has_said_is_called_so(tuned, tmp_path) -> None:
    folder = push_to_hub(tuned, 'me/birds', hub=tmp_path)
    card = (Path(folder) / 'README.md').read_text()
    assert '| data | not stated |' in card
    assert '| licence | not stated |' in card
    assert '| weights | not stated |' in card
    push_to_hub(tuned, 'me/birds', hub=tmp_path, base='timm/test_vit.r160_in1k')
    card = (Path(folder) / 'README.md').read_text()
    assert '| licence | apache-2.0 |' in card
    assert 'base_model: "timm/test_vit.r160_in1k"' in card
    assert 'No figures are on record.' in card


def test_the_hub_itself_gets_the_same_files(tuned, tmp_path, monkeypatch) -> None:
    import huggingface_hub

    stored = tmp_path / 'stored'

    class Api:
        def __init__(self, token=None):
            assert token == 'secret'

        def create_repo(self, repo_id, private, exist_ok):
            assert (repo_id, private, exist_ok) == ('me/birds', True, True)
            return 'https://hub/me/birds'

        def upload_folder(self, repo_id, folder_path, commit_message):
            stored.mkdir()
            for file in folder_path.iterdir():
                (stored / file.name).write_bytes(file.read_bytes())

    def snapshot(repo_id, revision, token, allow_patterns):
        assert allow_patterns == ['delta.json', 'delta.safetensors']
        if revision is not None:
            raise OSError('no such\nrevision')
        return str(stored)

    monkeypatch.delenv('MMPETL_HUB', raising=False)
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    url = push_to_hub(tuned, 'me/birds', token='secret', private=True)
    assert url == 'https://hub/me/birds'
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(from_pretrained('me/birds', vit())(x), tuned(x))
    with pytest.raises(PETLError, match='does not give me/birds: no such revision'):
        from_pretrained('me/birds', vit(), revision='v9')


@pytest.mark.parametrize('name', ['birds', '../x', 'a/b/c', 'me/../x', '/etc', 'a/.b'])
def test_names_that_are_none_are_refused(name, tuned, tmp_path) -> None:
    with pytest.raises(PETLError, match='a repository is called user/name'):
        push_to_hub(tuned, name, hub=tmp_path)
    with pytest.raises(PETLError, match='a repository is called user/name'):
        from_pretrained(name, vit(), hub=tmp_path)


def test_what_trained_like_a_head_is_injected_as_such(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('MMPETL_HUB', str(tmp_path))
    model = mmpetl.inject(vit(), 'LoRA', head=('norm',))
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn_like(param))
    made = push_to_hub(model, 'me/birds')
    assert '| trains like a head | norm |' in (Path(made) / 'README.md').read_text()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(from_pretrained('me/birds', vit())(x), model(x))


def test_a_delta_of_two_trunks_is_injected_by_hand(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('MMPETL_HUB', str(tmp_path))

    def towers(method: str | None) -> nn.Module:
        trunks = nn.ModuleDict({'one': vit(), 'two': vit()})
        for trunk in trunks.values() if method else ():
            mmpetl.inject(trunk, method)
        return trunks

    push_to_hub(towers('LoRA'), 'me/birds')
    from_pretrained('me/birds', towers('LoRA'))
    with pytest.raises(PETLError, match=r'several backbones \(one, two\); inject each'):
        from_pretrained('me/birds', towers(None))
