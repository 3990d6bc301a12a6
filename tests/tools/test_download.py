"""Fetching weights: from a server that breaks off, lies or is gone; whole or not."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import http.server
import importlib.util
import io
import json
import re
import socket
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import mmpetl.models.weights.download as download
from mmpetl.core import injection_of
from mmpetl.models.weights import (
    KnownFile,
    WeightsError,
    WeightsNotFoundError,
    fetch,
    find_known,
    resolve,
)
from mmpetl.models.weights.containers import read_tensors

ROOT = Path(__file__).parents[2]


class Server:
    """A file server whose next answers a test decides.

    Attributes:
        files: Path to content.
        break_after: For each coming answer, how many bytes of the body to send before
            the connection is cut; None sends all.
        status: Answer everything with this status.
        ranges: Whether ranges are honoured.
        seen: (status, Range header) of each answer.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: list[int | None] = []
        self.status: int | None = None
        self.ranges = True
        self.seen: list[tuple[int, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.http.server_port}'

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = self.files.get(request.path.partition('?')[0])
        wanted = request.headers.get('Range')
        status = self.status or (404 if body is None else 200)
        if status != 200:
            self.seen.append((status, wanted))
            request.send_error(status)
            return
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        fresh = request.headers.get('If-Range') in (None, tag)
        if wanted and self.ranges and fresh:
            start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
            status = 206 if start < len(body) else 416
        self.seen.append((status, wanted))
        request.send_response(status)
        rest = body[start:] if status != 416 else b''
        if status == 206:
            span = f'bytes {start}-{len(body) - 1}/{len(body)}'
            request.send_header('Content-Range', span)
        if status == 416:
            request.send_header('Content-Range', f'bytes */{len(body)}')
        request.send_header('Content-Length', str(len(rest)))
        request.send_header('ETag', tag)
        request.end_headers()
        limit = self.break_after.pop(0) if self.break_after else None
        request.wfile.write(rest if limit is None else rest[:limit])
        if limit is not None:
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, 'sleep', lambda _: None)
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope='module')
def content(tmp_path_factory) -> bytes:
    """A torch file of ViT-B's width and depth, some 600 kB."""
    state = {'patch_embed.proj.weight': torch.zeros(768, 1, 1, 1)}
    for i in range(12):
        state[f'blocks.{i}.attn.qkv.weight'] = torch.randn(12_000)
    path = tmp_path_factory.mktemp('server') / 'vit.pth'
    torch.save(state, path)
    return path.read_bytes()


@pytest.fixture
def known(server, content) -> KnownFile:
    server.files['/weights/vit.pth'] = content
    return KnownFile(
        'vit.pth',
        'a small ViT',
        f'{server.url}/weights/vit.pth',
        'timm ViT',
        'vit',
        768,
        12,
        head_classes=0,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(known: KnownFile, folder: Path, **kwargs) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(known, folder, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    assert not (folder / known.name).exists()
    return message


def test_a_file_is_fetched_checked_and_then_named(tmp_path, server, known, content):
    steps = []
    path, fetched = fetch(
        known, tmp_path / 'w', progress=lambda done, total: steps.append((done, total))
    )
    assert fetched
    assert path.read_bytes() == content
    assert only(tmp_path / 'w') == ['vit.pth']
    assert steps[-1] == (len(content), len(content))
    assert fetch(known, tmp_path / 'w') == (path, False)
    assert server.seen == [(200, None)]


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, server, known, content):
    server.break_after = [100_000, 200_000]
    path, _ = fetch(known, tmp_path)
    assert path.read_bytes() == content
    assert server.seen == [
        (200, None),
        (206, 'bytes=100000-'),
        (206, 'bytes=300000-'),
    ]


def test_what_has_arrived_outlives_the_process(tmp_path, server, known, content):
    server.break_after = [50_000, 0, 0]
    message = refused(known, tmp_path)
    assert 'broke off 3 times' in message
    assert '50,000 bytes are kept, run the command again to go on' in message
    assert only(tmp_path) == ['vit.pth.part', 'vit.pth.part.json']
    server.seen.clear()
    path, _ = fetch(known, tmp_path)
    assert path.read_bytes() == content
    assert server.seen == [(206, 'bytes=50000-')]
    assert only(tmp_path) == ['vit.pth']


def test_a_part_that_is_whole_already_only_needs_its_name(
    tmp_path, server, known, content
):
    server.break_after = [50_000, 0, 0]
    refused(known, tmp_path)
    (tmp_path / 'vit.pth.part').write_bytes(content)
    path, _ = fetch(known, tmp_path)
    assert path.read_bytes() == content
    assert server.seen[-1][0] == 416


@pytest.mark.parametrize('cause', ['another file', 'no ranges', 'no note'])
def test_a_part_that_cannot_be_continued_is_begun_anew(
    tmp_path, server, known, content, cause
):
    server.break_after = [50_000, 0, 0]
    refused(known, tmp_path)
    server.seen.clear()
    if cause == 'another file':
        # The server's file has changed: its old beginning must not be kept.
        name = '/weights/vit.pth'
        swapped = bytes(50_000) + content[50_000:]
        (tmp_path / 'vit.pth.part.json').write_text(
            json.dumps({'url': known.url, 'validator': '"old"'})
        )
        (tmp_path / 'vit.pth.part').write_bytes(swapped[:50_000])
        assert server.files[name] == content
    elif cause == 'no ranges':
        server.ranges = False
    else:
        (tmp_path / 'vit.pth.part.json').unlink()
    path, _ = fetch(known, tmp_path)
    assert path.read_bytes() == content
    assert [status for status, _ in server.seen] == [200]


def test_a_corrupted_body_is_refused_and_not_kept(tmp_path, server, known, content):
    spoiled = bytearray(content)
    spoiled[300_000] ^= 1
    server.files['/weights/vit.pth'] = bytes(spoiled)
    message = refused(known, tmp_path)
    assert 'is truncated or damaged' in message  # by the sums inside of it
    assert 'nothing was kept' in message
    assert only(tmp_path) == []


@pytest.mark.parametrize('field', ['md5_start', 'sha256_start'])
def test_the_known_beginning_of_a_checksum_is_enough(tmp_path, known, content, field):
    digest = hashlib.new(field.partition('_')[0], content).hexdigest()
    right = dataclasses.replace(known, sha256=None, **{field: digest[:6]})
    wrong = dataclasses.replace(right, **{field: '0a0b0c'})
    message = refused(wrong, tmp_path)
    assert f'{field.partition("_")[0]} begins {digest[:8]}, not 0a0b0c' in message
    assert fetch(right, tmp_path)[1]


def test_another_size_is_refused_before_the_transfer(tmp_path, known):
    other = dataclasses.replace(known, size_bytes=known.size_bytes + 1)
    assert 'it is another file' in refused(other, tmp_path)
    assert only(tmp_path) == []


def test_without_a_checksum_the_content_tells(tmp_path, server, known):
    plain = dataclasses.replace(known, sha256=None, size_bytes=None)
    server.files['/weights/vit.pth'] = b'<!DOCTYPE html><html>Sign in</html>'
    assert 'is a web page' in refused(plain, tmp_path)
    server.files['/weights/vit.pth'] = b''
    assert 'is empty (0 bytes)' in refused(plain, tmp_path)
    larger = dataclasses.replace(plain, width=1024, depth=24)
    server.files['/weights/vit.pth'] = None
    with pytest.raises(WeightsNotFoundError):
        fetch(larger, tmp_path)
    assert only(tmp_path) == []


def test_another_model_is_refused(tmp_path, known):
    larger = dataclasses.replace(known, width=1024, depth=24, sha256=None)
    message = refused(larger, tmp_path)
    assert 'width 768 and depth 12, not 1024 and 24: a ViT-B' in message


def test_404_and_server_errors_are_one_line(tmp_path, server, known):
    gone = dataclasses.replace(known, url=f'{server.url}/nowhere/vit.pth')
    with pytest.raises(WeightsNotFoundError, match=r'answers 404 .*--mirror'):
        fetch(gone, tmp_path)
    server.status = 403
    assert 'answers 403' in refused(known, tmp_path)
    server.status = 503
    assert 'broke off 3 times (127.0.0.1' in refused(known, tmp_path)


def test_no_network_is_one_line(tmp_path, server, known, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    unreachable = dataclasses.replace(known, url=f'http://127.0.0.1:{port}/vit.pth')
    message = refused(unreachable, tmp_path)
    assert 'no network, or 127.0.0.1' in message
    assert 'Connection refused' in message
    assert '--mirror' in message

    def no_name(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', no_name)
    nameless = dataclasses.replace(known, url='http://nowhere.invalid/vit.pth')
    message = refused(nameless, tmp_path)
    assert 'no network, or nowhere.invalid cannot be reached (Temporary' in message


def test_a_file_without_an_address_says_how_to_get_it(tmp_path):
    known = find_known('videomae_vit_b_k400_1600e_checkpoint.pth')
    assert 'Google Drive' in refused(known, tmp_path)


@pytest.mark.parametrize('kind', ['folder', 'file', 'address'])
def test_a_mirror_serves_as_well(tmp_path, server, known, content, kind):
    mirror = tmp_path / 'mirror'
    mirror.mkdir()
    (mirror / 'vit.pth').write_bytes(content)
    known = dataclasses.replace(known, url='http://nowhere.invalid/vit.pth')
    given = {'folder': mirror, 'file': mirror / 'vit.pth', 'address': None}[kind]
    path, fetched = fetch(known, tmp_path / 'w', given or f'{server.url}/weights/')
    assert fetched
    assert path.read_bytes() == content


def test_a_bad_mirror_is_refused(tmp_path, known, content):
    mirror = tmp_path / 'mirror'
    mirror.mkdir()
    assert 'has no vit.pth' in refused(known, tmp_path, mirror=mirror)
    (mirror / 'vit.pth').write_bytes(content[:1000])
    assert '1,000 bytes, not' in refused(known, tmp_path, mirror=mirror)
    assert only(tmp_path) == ['mirror']


def test_a_wrong_file_in_the_way_is_named_and_left_alone(tmp_path, known):
    (tmp_path / 'vit.pth').write_bytes(b'mine')
    with pytest.raises(WeightsError, match=r'4 bytes, not .*move it away'):
        fetch(known, tmp_path)
    assert (tmp_path / 'vit.pth').read_bytes() == b'mine'


def test_two_processes_do_not_write_into_one_part(tmp_path, known):
    with (tmp_path / 'vit.pth.part.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert 'another process is fetching vit.pth' in refused(known, tmp_path)


# --- addresses as OpenMMLab users write them ---------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of weights."""
    monkeypatch.setenv('MMPETL_WEIGHTS', str(tmp_path / 'w'))
    return tmp_path / 'w'


def test_an_address_is_fetched_once_and_kept_apart(server, folder, content):
    for place in ('one', 'two'):
        server.files[f'/{place}/checkpoint.pth'] = content + bytes(place == 'two')
    paths = [resolve(f'{server.url}/{p}/checkpoint.pth') for p in ('one', 'two')]
    assert paths[0] != paths[1]
    host = server.url.removeprefix('http://').replace(':', '_')
    assert paths[0] == folder / host / 'one' / 'checkpoint.pth'
    assert paths[0].read_bytes() == content
    assert len(server.seen) == 2
    assert resolve(f'{server.url}/one/checkpoint.pth') == paths[0]
    assert len(server.seen) == 2


def test_the_digest_in_a_name_is_held_against_the_file(server, folder, content):
    start = hashlib.sha256(content).hexdigest()[:8]
    good, bad = (f'/mm/vit-base_{n}-{d}.pth' for n, d in (('a', start), ('b', '0' * 8)))
    server.files |= {good: content, bad: content}
    assert resolve(server.url + good) == folder / good.rpartition('/')[2]
    with pytest.raises(WeightsError, match=r'sha256 begins .*not 00000000') as stop:
        resolve(server.url + bad)
    assert 'its place is' in str(stop.value)
    assert not list(folder.glob('*_b-*'))


def test_the_first_of_each_node_fetches_and_the_others_wait(monkeypatch):
    """Two nodes of two processes, whose disks are their own."""
    turns: dict[tuple[int, int], int] = {}
    for rank in range(4):
        node, place = divmod(rank, 2)
        met: list[None] = []

        def fetched(url, node=node, place=place, met=met):
            turns[node, place] = len(met)
            return Path(f'{node}')

        monkeypatch.setenv('LOCAL_RANK', str(place))
        for name, value in (
            ('is_main_process', lambda rank=rank: rank == 0),
            ('get_rank', lambda rank=rank: rank),
            ('barrier', lambda met=met: met.append(None)),
            ('_fetched', fetched),
        ):
            monkeypatch.setattr(f'mmpetl.models.weights.address.{name}', value)
        assert resolve('https://host/vit.pth') == Path(f'{node}')
        assert len(met) == 3, 'all meet as often'
    # Nodes that share a disk take turns too.
    assert turns[0, 0] < turns[1, 0] < min(turns[0, 1], turns[1, 1])


def test_an_address_that_answers_with_a_page_is_not_kept(server, folder):
    server.files['/vit.pth'] = b'<!DOCTYPE html><html>Sign in</html>'
    with pytest.raises(WeightsError, match='is a web page'):
        resolve(f'{server.url}/vit.pth')
    with pytest.raises(WeightsNotFoundError, match='answers 404'):
        resolve(f'{server.url}/gone.pth')
    assert not [p for p in folder.rglob('*') if p.is_file()]


def test_the_address_of_a_known_file_is_that_file(server, folder, known, monkeypatch):
    monkeypatch.setattr('mmpetl.models.weights.address.KNOWN_FILES', (known,))
    assert resolve(known.url) == folder / 'vit.pth'


def test_the_address_of_an_index_brings_its_shards(server, folder):
    names = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
    for i, name in enumerate(names):
        server.files[f'/a/{name}'] = save({f'x{i}': torch.ones(2)})
    index = {'weight_map': {'x0': names[0], 'x1': names[1]}}
    server.files['/a/model.safetensors.index.json'] = json.dumps(index).encode()
    for _ in range(2):
        path = resolve(f'{server.url}/a/model.safetensors.index.json')
        assert set(read_tensors(path).tensors) == {'x0', 'x1'}
    assert len(server.seen) == 3
    server.files['/b/model.safetensors.index.json'] = json.dumps(index).encode()
    with pytest.raises(WeightsNotFoundError, match=r'404 \(Not Found\)'):
        resolve(f'{server.url}/b/model.safetensors.index.json')


def test_the_short_names_of_the_zoo_stand_for_addresses(server, folder, monkeypatch):
    from mmengine.runner import checkpoint as zoo

    server.files['/zoo/vit.pth'] = b''
    table = {'vit': f'{server.url}/zoo/vit.pth'}
    for name in ('get_mmcls_models', 'get_external_models', 'get_torchvision_models'):
        monkeypatch.setattr(zoo, name, lambda: table)
    for scheme in ('mmcls', 'open-mmlab', 'torchvision'):
        with pytest.raises(WeightsError, match=r'is empty \(0 bytes\)'):
            resolve(f'{scheme}://vit')
        with pytest.raises(WeightsNotFoundError, match="has no 'vti'. Did you mean"):
            resolve(f'{scheme}://vti')


def test_local_names_are_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert resolve('~/a b.pth') == tmp_path / 'a b.pth'
    assert resolve(f'file://{tmp_path}/a%20b.pth') == tmp_path / 'a b.pth'
    assert resolve('a/b.pth') == Path('a/b.pth')
    for name in ('s3://bucket/x.pth', 'petrel://x.pth', 'ftp://host/x.pth'):
        with pytest.raises(WeightsError, match='is not read here') as stop:
            resolve(name)
        assert name in str(stop.value)


def test_the_builder_takes_an_address(server, folder):
    from mmpetl.models import petl_backbone

    arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
    vit = dict(
        type='mmpretrain.VisionTransformer', arch=arch, img_size=32, patch_size=8
    )
    source = petl_backbone(vit)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    server.files['/vit.pth'] = buffer.getvalue()
    ours = petl_backbone(vit, 'LoRA', checkpoint=f'{server.url}/vit.pth?download=1')
    assert torch.equal(ours.pos_embed, source.pos_embed)
    assert injection_of(ours)[1].source['checkpoint'] == 'vit.pth'


# --- the tool ----------------------------------------------------------------------


@pytest.fixture
def tool(monkeypatch, capsys):
    """The tool's main, called with a command line; exit code, stdout and stderr."""
    path = ROOT / 'tools' / 'misc' / 'download_weights.py'
    spec = importlib.util.spec_from_file_location('download_weights', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['download_weights.py', *map(str, args)])
        try:
            code = module.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_the_tool_fetches_and_checks(tmp_path, server, known, tool, monkeypatch):
    monkeypatch.setattr('mmpetl.models.weights.registry.KNOWN_FILES', (known,))
    monkeypatch.setattr('mmpetl.models.weights.KNOWN_FILES', (known,))
    code, out, _ = tool('vit.pth', '--folder', tmp_path)
    assert code == 0
    assert 'fetched and checked' in out
    (tmp_path / 'own.safetensors').write_bytes(b'<html>')
    code, out, _ = tool('--check', '--folder', tmp_path)
    assert code == 1
    assert re.search(r'right +\S+vit\.pth \(a small ViT\)', out)
    assert re.search(r'WRONG +\S+own\.safetensors is a web page', out)
    code, out, _ = tool('vit.pth', '--check', '--folder', tmp_path)
    assert code == 0
    (tmp_path / 'vit.pth').write_bytes(b'cut')
    code, out, _ = tool('--check', '--folder', tmp_path)
    assert (code, 'WRONG' in out) == (1, True)
    code, out, _ = tool('vit.pth', '--check', '--folder', tmp_path / 'none')
    assert (code, 'MISSING' in out) == (1, True)


def test_the_tool_lists_and_refuses(tmp_path, tool):
    nothing = tmp_path / 'nothing.py'
    nothing.write_text("model = dict(type='A', backbone=dict(type='B'))")
    code, out, _ = tool('--list', '--folder', tmp_path)
    assert code == 0
    assert 'ViT-B_16.npz (not there)' in out
    assert 'md5 begins d9715d' in out
    for args, part in (
        (('ViT-B_17.npz',), 'ViT-B_16.npz'),
        (('--recipe', 'nothing'), "there is no recipe 'nothing'"),
        (('--recipe', 'vtab/nonsense'), "there is no recipe 'vtab/nonsense'"),
        (('--recipe', 'fgvc/nabird'), "Did you mean 'fgvc/nabirds'"),
        (('--recipe', 'many_shot/x'), "there is no recipe 'many_shot/x'"),
        (('--recipe', 'ssf/vtab/svnh'), "no row 'svnh'"),
        (('--recipe', 'mini/digits'), "no known file serves the recipe 'mini/digits'"),
        (('--recipe', 'ssf/vtab/svhn', '--mirror', tmp_path), 'has no B_16-i21k-300ep'),
        ((), '--list shows what there is'),
        (('ViT-B_16.npz', '--mirror', tmp_path), 'has no ViT-B_16.npz'),
        (('--recipe', 'vtab/svhn', '--mirror', tmp_path), 'has no ViT-B_16.npz'),
        (
            ('--recipe', 'configs/ssf/vtab/svhn.py', '--mirror', tmp_path),
            'has no B_16-i21k-300ep',
        ),
        (
            ('--recipe', 'configs/mona/ade20k.py', '--mirror', tmp_path),
            'has no swin_large_patch4_window7_224_22k.pth',
        ),
        # A row of a table, as train.py takes it; by any path.
        (
            ('--recipe', ROOT / 'configs/lora/vtab/svhn.py', '--mirror', tmp_path),
            'has no ViT-B_16.npz',
        ),
        (
            ('--recipe', 'configs/../configs/recipes/nyud_mt.py', '--mirror', tmp_path),
            'has no swin_tiny_patch4_window7_224.pth',
        ),
        (('--recipe', 'configs/lora/vtab/svnh.py'), 'svhn'),
        (('--recipe', nothing), 'starts from no weight file'),
    ):
        code, _, err = tool(*args, '--folder', tmp_path / 'w')
        assert code == 1
        assert err.count('\n') == 1
        assert err.startswith('error: ')
        assert part in err
