"""The zoo: what is shipped is right, a name means one thing, files come whole."""

from __future__ import annotations

import fcntl
import functools
import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mmpetl.apis import (
    fold_checkpoint,
    from_pretrained,
    inferencer,
    init_model,
    load_delta,
    open_model,
    open_run,
    read_delta,
    read_zoo,
)
from mmpetl.apis.names import locate
from mmpetl.apis.zoo import bring_base, bring_delta, faults, files_here
from mmpetl.cli.main import mmpetl as command
from mmpetl.core import PETLError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / 'demo' / 'zoo'
LIMIT = 1_500_000
"""Bytes of shipped deltas: the wheel stays small."""


def call(*argv: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, argv, prog_name='mmpetl')
    return done.exit_code, done.output


def index_of(folder: Path = SHIPPED) -> dict[str, Any]:
    return json.loads((folder / 'index.json').read_text())


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder with the shipped index and examples, and none of the deltas."""
    folder = tmp_path / 'own'
    folder.mkdir()
    for name in ('index.json', 'digit.png', 'clip.mp4'):
        shutil.copy(SHIPPED / name, folder)
    monkeypatch.setenv('MMPETL_ZOO', str(folder))
    monkeypatch.setenv('MMPETL_WEIGHTS', str(tmp_path / 'weights'))
    return folder


@pytest.fixture
def server(own, monkeypatch):
    """A server of ``own / 'served'``, which the index says to have all deltas."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    served = own / 'served'
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(served))
    web = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,))
    thread.start()
    index = index_of(own)
    for entry in index['entries']:
        for part in ('delta', 'facts'):
            file = entry[part]['file']
            entry[part]['url'] = f'http://127.0.0.1:{web.server_port}/{file}'
            shutil.copy(SHIPPED / file, served)
    (own / 'index.json').write_text(json.dumps(index))
    yield web
    web.shutdown()
    thread.join()
    web.server_close()


# ------------------------------------------------------------------- what is shipped


def test_what_is_shipped_is_what_the_index_says():
    zoo = read_zoo(SHIPPED)
    assert 'digits_lora' in zoo.entries
    for entry in zoo.entries.values():
        for artifact, place in files_here(zoo, entry):
            assert faults(place, artifact) == [], artifact.file
        delta = read_delta(SHIPPED / entry.delta.file)
        assert delta.meta['fingerprint'] == entry.base.fingerprint
        assert delta.meta['base'] == entry.base.weights.file
        assert delta.meta['method']['type'] == entry.methods
        held = sum(v.numel() for k, v in delta.state.items() if 'head' not in k)
        assert held == entry.trainable.delta + entry.trainable.selected
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < LIMIT


def test_the_page_has_the_table_of_the_index():
    from mmpetl.benchmark.zoo_entries import markdown

    text = (ROOT / 'docs' / 'zoo.md').read_text()
    entries = [entry for _, entry in sorted(read_zoo(SHIPPED).entries.items())]
    assert f'<!-- begin zoo -->\n{markdown(entries)}\n<!-- end zoo -->' in text


def test_a_fresh_installation_predicts_its_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = call('predict', 'zoo/digits_lora')
    assert code == 0, text
    said, reads, example, *ranking, written = text.splitlines()[-9:]
    assert said.startswith('zoo/digits_lora: LoRA on mini ViT for digits, ')
    assert 'light on dark' in reads
    assert example.endswith('digit.png')
    shares = {line.split()[1]: float(line.split()[0][:-1]) for line in ranking}
    assert next(iter(shares)) == '5'
    assert 90 < sum(shares.values()) <= 100.2
    assert (tmp_path / written.removeprefix('written to ')).is_file()


# ---------------------------------------------------------------------------- names


def test_files_the_zoo_and_the_hub_are_one_delta(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_HUB', str(tmp_path))
    repo = tmp_path / 'me' / 'digits'
    repo.mkdir(parents=True)
    for suffix in ('safetensors', 'json'):
        shutil.copy(SHIPPED / f'digits_lora.{suffix}', repo / f'delta.{suffix}')
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = ('zoo/digits_lora', 'zoo://digits_lora', 'hub://me/digits')
    models = [init_model(name, device='cpu') for name in names]
    run = open_run('zoo/digits_lora', options={'test_dataloader.batch_size': 3})
    assert run.config.test_dataloader.batch_size == 3
    assert run.config.test_dataloader.dataset.task == 'digits'
    models.append(load_delta(run.config, SHIPPED / 'digits_lora.safetensors'))
    models.append(open_model('zoo/digits_lora', device='cpu'))
    models.append(from_pretrained('zoo/digits_lora', run.config))
    models.append(inferencer('zoo/digits_lora', device='cpu').model)
    with torch.no_grad():
        found = [model(x) for model in models]
    assert all(torch.equal(found[0], other) for other in found[1:])
    plain, config = fold_checkpoint(None, 'hub://me/digits', tmp_path / 'plain.pth')
    with torch.no_grad():
        folded = init_model(config, plain, 'cpu')(x)
    torch.testing.assert_close(folded, found[0])


def test_a_name_that_is_not_there_is_told_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PETLError, match="Did you mean 'digits_lora'"):
        open_run('zoo/digits_lorra')
    with pytest.raises(PETLError, match=r'read by a path, file://, zoo:// and hub://'):
        locate('s3://bucket/delta.safetensors')
    (tmp_path / 'zoo' / 'mine').mkdir(parents=True)
    assert locate('zoo/mine') == Path('zoo/mine')
    (tmp_path / 'zoo' / 'digits_lora').mkdir()
    with pytest.raises(PETLError, match=r'write \./zoo/digits_lora or zoo://digits_lo'):
        locate('zoo/digits_lora')
    assert locate('./zoo/digits_lora') == Path('zoo/digits_lora')
    assert locate('zoo://digits_lora') == SHIPPED / 'digits_lora.safetensors'


# ---------------------------------------------------------------------------- files


def test_what_is_not_here_is_fetched_once(server, own, tmp_path):
    zoo = read_zoo()
    entry = zoo.find('digits_lora')
    path = bring_delta(zoo, entry)
    assert path == tmp_path / 'weights' / 'zoo' / 'digits_lora.safetensors'
    assert path.read_bytes() == (SHIPPED / path.name).read_bytes()
    shutil.rmtree(own / 'served')
    assert bring_delta(zoo, entry) == path
    assert read_delta('zoo/digits_lora').path == path
    code, text = call('zoo', 'check', 'digits_lora')
    assert code == 0, text
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    assert call('zoo', 'check', 'digits_lora')[0] == 1
    with pytest.raises(PETLError, match='sha256 begins'):
        bring_delta(zoo, entry)


def test_of_several_processes_one_fetches(server, tmp_path, monkeypatch):
    zoo = read_zoo()
    entry = zoo.find('digits_lora')
    folder = tmp_path / 'weights' / 'zoo'
    folder.mkdir(parents=True)
    lock = (folder / 'digits_lora.json.part.lock').open('w')
    fcntl.flock(lock, fcntl.LOCK_EX)
    waits = []

    def done_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        lock.close()

    monkeypatch.setattr('mmpetl.apis.zoo.time.sleep', done_meanwhile)
    assert bring_delta(zoo, entry).is_file()
    assert len(waits) == 1


def test_another_file_than_the_index_says_is_not_kept(server, own, tmp_path):
    file = own / 'served' / 'digits_lora.safetensors'
    file.write_bytes(b'x' * file.stat().st_size)
    code, text = call('zoo', 'fetch', 'digits_lora')
    assert code == 1
    assert 'nothing was kept' in text
    assert not (tmp_path / 'weights/zoo/digits_lora.safetensors').exists()


def test_without_a_network_it_says_what_goes_where(server, own, tmp_path):
    port = server.server_port
    server.shutdown()
    server.server_close()
    code, text = call('predict', 'zoo/digits_ssf', 'picture.png')
    assert code == 1
    line = text.splitlines()[-1]
    assert line.startswith('error: zoo/digits_ssf: no network, or ')
    place = tmp_path / 'weights' / 'zoo' / 'digits_ssf.json'
    assert f'(from http://127.0.0.1:{port}/digits_ssf.json to {place}, or ' in line
    code, text = call('zoo', 'fetch', 'digits_ssf', '--mirror', str(own / 'served'))
    assert code == 0, text
    assert place.is_file()


def test_a_base_is_fetched_into_the_folder_of_weights(server, own, tmp_path):
    base = ROOT / 'demo' / 'weights' / 'mini_vit.safetensors'
    shutil.copy(base, own / 'served' / 'elsewhere.safetensors')
    index = index_of(own)
    entry = next(e for e in index['entries'] if e['name'] == 'digits_lora')
    url = entry['delta']['url'].replace('digits_lora', 'elsewhere')
    entry['base']['weights'] |= {'file': 'elsewhere.safetensors', 'url': url}
    (own / 'index.json').write_text(json.dumps(index))
    entry = read_zoo().find('digits_lora')
    path = bring_base(entry)
    assert path == tmp_path / 'weights' / 'elsewhere.safetensors'
    assert path.read_bytes() == base.read_bytes()


def test_a_damaged_installation_is_told(own):
    for suffix in ('safetensors', 'json'):
        shutil.copy(SHIPPED / f'digits_lora.{suffix}', own)
    facts = own / 'digits_lora.json'
    facts.write_text(facts.read_text() + ' ')
    with pytest.raises(PETLError, match=r'digits_lora\.json is not the file of zoo/'):
        open_run('zoo/digits_lora')


# ---------------------------------------------------------------- a hostile index


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'recipe': '../../evil'}, 'recipe: '),
        ({'name': '../digits'}, 'name: '),
        ({'licence': 'red \x1b[31m'}, 'licence: '),
        ({'more': 1}, 'unknown field'),
        ({'name': 'digits_ssf'}, 'twice'),
        ({'name': 'other'}, 'are not called after it'),
        ({'options': {'custom_imports': {'imports': ['os']}}}, 'can import code'),
        ({'method': {'type': 'os.system'}}, 'would be imported'),
        ({'options': {'model.backbone.backbone.arch.embed_dims': 9_600_000}}, 'MiB'),
        ({'config_hash': 5}, 'config_hash: '),
    ],
)
def test_a_hostile_index_is_refused(own, change, words):
    index = index_of()
    entry = next(e for e in index['entries'] if e['name'] == 'digits_lora')
    entry.update(change)
    (own / 'index.json').write_text(json.dumps(index))
    for file in SHIPPED.glob('digits_lora.*'):
        shutil.copy(file, own)
    with pytest.raises(PETLError, match=words):
        open_run('zoo/digits_lora')


def test_files_of_an_index_have_no_folder(own):
    index = index_of()
    index['entries'][0]['base']['weights']['file'] = '../mini_vit.safetensors'
    (own / 'index.json').write_text(json.dumps(index))
    with pytest.raises(PETLError, match=r'base\.weights\.file'):
        read_zoo()
    (own / 'index.json').write_text('{"format": 2, "entries": []}')
    with pytest.raises(PETLError, match='has format 2; this mmpetl reads format 1'):
        read_zoo()


# --------------------------------------------------------------------- the command


def test_the_command_lists_and_shows():
    code, text = call('zoo', '--task', 'digits', '--method', 'lora')
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == [
        'name',
        'zoo/digits_lora',
    ]
    assert 'zoo/digits_ssf' in call('zoo', '--base', 'mini_vit')[1]
    code, text = call('zoo', '--method', 'LoRAA')
    assert code == 1
    assert "has the method 'LoRAA'. Did you mean 'LoRA'?" in text
    code, text = call('zoo', 'show', 'digits_lora')
    assert code == 0
    entry = read_zoo().find('digits_lora')
    for words in (entry.delta.sha256, entry.base.fingerprint, entry.run, entry.licence):
        assert words in text
    code, text = call('zoo', 'show')
    assert code == 2
    assert 'name what to show' in text
