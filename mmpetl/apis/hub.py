"""Deltas on the hub of Hugging Face, or in a folder that stands for it.

A repository holds a published delta (``delta.safetensors`` and ``delta.json``), a model
card that is made of its record (``README.md``), and what belongs to these: the record
of the run, and a picture. Only the two files of the delta are read back, and neither
can run code; the model that they belong to is the reader's own.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmpetl.apis.building import build_model
from mmpetl.apis.delta import export_delta, fill_from
from mmpetl.apis.names import find_in_zoo
from mmpetl.apis.repositories import (
    REPO,
    STEM,
    check_repo,
    hub_folder,
    one_line,
    published_file,
)
from mmpetl.apis.zoo import bring_delta
from mmpetl.benchmark.records import Record
from mmpetl.core import (
    PETLError,
    count_trainable,
    eject,
    find_injected,
    inject,
    injections,
)
from mmpetl.core.boundary import read_json, regular_file
from mmpetl.core.delta_file import (
    head_of,
    method_name,
    methods_of,
    read_delta_file,
    write_all,
)
from mmpetl.models.weights import KNOWN_FILES

CARD = 'README.md'
PICTURES = ('.png', '.jpg', '.jpeg')
UNSTATED = 'not stated'


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    config: Any = None,
    record: str | os.PathLike | None = None,
    metrics: Mapping[str, float] | None = None,
    data: str | None = None,
    protocol: str | None = None,
    base: str | None = None,
    licence: str | None = None,
    picture: str | os.PathLike | None = None,
    hub: str | os.PathLike | None = None,
    token: str | None = None,
    private: bool | None = None,
) -> str:
    """Publish the delta of a model with a card.

    What the card says is taken from the record of the run where there is one; the other
    arguments say what no record does.

    Args:
        model: A model with a method in it.
        repo_id: ``user/name``.
        config: The config of the run: path or ``Config``; see
            :func:`mmpetl.apis.export_delta`.
        record: ``record.json`` of a run of the benchmark; it is published too.
        metrics: Figures by name, where there is no record.
        data: What it was trained on, likewise.
        protocol: How the figures were measured, likewise.
        base: Name of the base model on the hub, ``timm/NAME``.
        licence: Of the base. By default what its known file says, or timm of ``base``.
        picture: A PNG or JPEG for the card.
        hub: A folder that stands for the hub; by default that of the environment
            variable ``MMPETL_HUB``, else the hub itself.
        token: Of the hub; by default the one that is logged in.
        private: Whether a new repository is private.

    Returns:
        Where it is: a URL, or a folder.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: There is no method, the name is none of a repository, a file is
            damaged, or the hub refuses.
    """
    check_repo(repo_id)
    run = None
    if record is not None:
        content = read_json(record, dict[str, Any], 'record')
        run = Record.from_json(content, str(record))
        metrics = run.metrics if metrics is None else metrics
    if picture is not None:
        picture = regular_file(picture, 'picture')
        if picture.suffix.lower() not in PICTURES:
            raise PETLError(f'{picture} is none of {", ".join(PICTURES)}')
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        export_delta(model, config, folder / STEM, metrics or {})
        _, facts = read_delta_file(folder / STEM)
        files = {}
        if run is not None:
            files['record.json'] = json.dumps(run.to_json(), indent=2).encode()
        if picture is not None:
            files[f'picture{picture.suffix.lower()}'] = picture.read_bytes()
        said = {
            'data': data,
            'protocol': protocol,
            **_base_of(model, facts, base, licence),
            'counts': count_trainable(model).as_dict(),
            'picture': next((n for n in files if n.startswith('picture')), None),
        }
        files[CARD] = model_card(repo_id, facts, run, said).encode()
        write_all({folder / name: content for name, content in files.items()})
        place = hub_folder(hub)
        if place is None:
            return _upload(repo_id, folder, token, private)
        return _copy(folder, place / repo_id)


def from_pretrained(
    repo_id: str,
    model: nn.Module | Any,
    *,
    hub: str | os.PathLike | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """Load a published delta into a model on its base.

    Args:
        repo_id: ``user/name``, or an entry of the zoo, ``zoo/NAME``.
        model: A model with the base weights, with or without the method, or the config
            of one. It is yours to build: a file of somebody else names no classes.
        hub: As in :func:`push_to_hub`.
        revision: Branch, tag or commit; of the hub itself only.
        token: Likewise.

    Returns:
        The model; nothing in it has changed where an error is raised.

    Raises:
        FileNotFoundError: There is no such repository in the folder.
        PETLError: The hub has no such repository, the files are damaged, or the delta
            is of another base.
    """
    in_zoo = find_in_zoo(repo_id) if isinstance(repo_id, str) else None
    if in_zoo is not None:
        file = bring_delta(*in_zoo)
    else:
        file = published_file(repo_id, hub, revision, token)
    _, facts = read_delta_file(file)
    model = model if isinstance(model, nn.Module) else build_model(model)
    new = not find_injected(model)
    if new:
        _inject(model, facts, repo_id)
    try:
        fill_from(model, file)
    except BaseException:
        for _, module, record in injections(model) if new else ():
            for name in reversed(list(record.slots)):
                eject(module, name)
        raise
    return model


def _inject(model: nn.Module, facts: Mapping[str, Any], repo_id: str) -> None:
    methods, head = methods_of(facts), head_of(facts)
    if facts.get('trunks'):
        paths = ', '.join(trunk['path'] for trunk in facts['trunks'])
        raise PETLError(
            f'{repo_id} is of methods in several backbones ({paths}); inject each of '
            'them first'
        )
    for _, part in methods:
        if 'places' in part:
            raise PETLError(
                f'{repo_id} is at places by name; inject '
                f'{method_name(facts)} with an example first'
            )
    if len(methods) == 1:
        (method, part), *_ = methods
        inject(model, method, head=head, **part)
    else:
        inject(model, [{**method, **part} for method, part in methods], head=head)


# ------------------------------------------------------------------------ places


def _copy(folder: Path, target: Path) -> str:
    write_all({target / file.name: file.read_bytes() for file in folder.iterdir()})
    return str(target)


def _upload(repo_id: str, folder: Path, token: str | None, private: bool | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message='Upload a delta'
        )
    except Exception as error:  # of several libraries, by what went wrong
        raise PETLError(f'the hub does not take {repo_id}: {one_line(error)}') from None
    return str(url)


# -------------------------------------------------------------------------- card


def _base_of(
    model: nn.Module, facts: Mapping[str, Any], base: str | None, licence: str | None
) -> dict[str, str | None]:
    """Name and licence of the base, as told, or as its known file or timm says.

    timm records a licence with every model, with or without its weights; it counts
    where the base was said to be that very one.
    """
    known = next((k for k in KNOWN_FILES if k.name == facts.get('base')), None)
    licence = licence or (known.licence if known else None)
    for part in model.modules() if base and not licence else ():
        config = getattr(part, 'pretrained_cfg', None)
        if isinstance(config, Mapping) and base == (
            f'timm/{config.get("architecture")}.{config.get("tag")}'
        ):
            licence = config.get('license')
    return {'base': base or facts.get('base'), 'licence': licence}


def model_card(
    repo_id: str,
    facts: Mapping[str, Any],
    record: Record | None = None,
    said: Mapping[str, Any] | None = None,
) -> str:
    """A model card in Markdown, of what is on record.

    Args:
        repo_id: ``user/name``.
        facts: The record of the delta.
        record: That of the run, or None.
        said: What neither says: ``data``, ``protocol``, ``base``, ``licence``,
            ``counts``, ``picture``.

    Returns:
        The text. What nobody has said is called so.
    """
    said = said or {}
    licence = said.get('licence') or UNSTATED
    who = method_name(facts)
    backbone = (facts.get('backbone') or {}).get('type') or UNSTATED
    head = {
        'library_name': 'mmpetl',
        'license': 'unknown' if licence == UNSTATED else licence,
        'tags': ['mmpetl', 'parameter-efficient', *_tags(facts)],
    }
    name = said.get('base') or ''
    if REPO.fullmatch(name):
        head['base_model'] = name
    lines = [
        '---',
        *_yaml(head),
        '---',
        '',
        f'# {_text(repo_id.partition("/")[2])}',
        '',
    ]
    lines += [f'A delta of {_text(who)} on {_text(str(backbone))}, by mmpetl.', '']
    if said.get('picture'):
        lines += [f'![What it does]({said["picture"]})', '']
    lines += ['## Use', '', '```python', 'from mmpetl.apis import from_pretrained', '']
    lines += ['# model: the base below, with its weights and a head of the same size']
    lines += [f"model = from_pretrained('{repo_id}', model)", '```', '']
    lines += ['## Base', '', *_table(_base_rows(facts, said, licence)), '']
    lines += ['## Method', '', *_table(_method_rows(facts)), '']
    lines += ['## Data', '', *_table(_data_rows(facts, record, said)), '']
    lines += ['## Results', '', *_results(facts, record, said), '']
    lines += ['## Cost', '', *_table(_cost_rows(facts, record, said)), '']
    return '\n'.join(lines)


def _tags(facts: Mapping[str, Any]) -> list[str]:
    return [str(method['type']) for method, _ in methods_of(facts)]


def _yaml(entries: Mapping[str, Any]) -> list[str]:
    """JSON is YAML, whatever stands in it."""
    return [f'{key}: {json.dumps(value)}' for key, value in entries.items()]


def _text(value: Any) -> str:
    """Text in a cell or a line of Markdown, where it can neither end nor mark it up."""
    plain = ' '.join(str(value).split())
    return re.sub(r'([\\`*_\[\]<>|#])', r'\\\1', plain)


def _table(rows: Mapping[str, Any]) -> list[str]:
    lines = ['| | |', '| :--- | :--- |']
    for name, value in rows.items():
        shown = UNSTATED if value in (None, '', {}) else value
        lines.append(f'| {_text(name)} | {_text(shown)} |')
    return lines


def _base_rows(
    facts: Mapping[str, Any], said: Mapping[str, Any], licence: str
) -> dict[str, Any]:
    return {
        'weights': said.get('base') or facts.get('base'),
        'fingerprint': facts['fingerprint'],
        'backbone': (facts.get('backbone') or {}).get('type'),
        'blocks': facts['num_blocks'],
        'licence': licence,
    }


def _method_rows(facts: Mapping[str, Any]) -> dict[str, Any]:
    rows = {}
    for number, (method, part) in enumerate(methods_of(facts)):
        given = {k: v for k, v in method.items() if k != 'type'} | part
        shown = ', '.join(f'{key}={value!r}' for key, value in given.items())
        rows[f'{number}: {method["type"]}'] = shown or 'no arguments'
    if head_of(facts):
        rows['trains like a head'] = ', '.join(head_of(facts))
    return rows


def _data_rows(
    facts: Mapping[str, Any], record: Record | None, said: Mapping[str, Any]
) -> dict[str, Any]:
    rows: dict[str, Any] = {'data': said.get('data')}
    if record is not None:
        rows['data'] = said.get('data') or record.task or record.job.recipe
        for phase, read in record.data.items():
            digest = f', SHA-256 {read.digest[:16]}' if read.digest else ''
            rows[phase] = f'{read.count} samples{digest}'
    if facts.get('classes'):
        rows['classes'] = len(facts['classes'])
    return rows


def _results(
    facts: Mapping[str, Any], record: Record | None, said: Mapping[str, Any]
) -> list[str]:
    metrics = facts.get('metrics') or {}
    if not metrics:
        return ['No figures are on record.']
    protocol = said.get('protocol')
    if record is not None:
        told = f'{record.job.protocol}, seed {record.job.seed}'
        told += f', test set read {record.test_reads} times'
        protocol = protocol or told
    lines = ['| metric | value |', '| :--- | ---: |']
    lines += [f'| {_text(name)} | {_text(value)} |' for name, value in metrics.items()]
    return [*lines, '', f'Protocol: {_text(protocol or UNSTATED)}.']


def _cost_rows(
    facts: Mapping[str, Any], record: Record | None, said: Mapping[str, Any]
) -> dict[str, Any]:
    counts = said.get('counts') or (record.counts if record else {})
    rows: dict[str, Any] = {
        'trained in the backbone': f'{counts.get("delta", 0):,} added, '
        f'{counts.get("selected", 0):,} of the base',
        'trained in heads': f'{counts.get("head", 0):,}',
        'file': f'{facts["tensors"]["bytes"]:,} bytes',
    }
    if record is not None:
        peak = record.peak_memory_bytes
        rows |= {
            'steps': record.steps,
            'time': f'{record.seconds:.0f} s',
            'peak memory': None if peak is None else f'{peak / 2**20:.0f} MiB',
            'device': record.device,
        }
    return rows
