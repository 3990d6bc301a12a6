"""Entries of the zoo from a release: what is copied, said, chosen and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmpetl.apis import read_zoo
from mmpetl.benchmark.records import DataRead, Job, Record, RecordStore
from mmpetl.benchmark.release import release
from mmpetl.benchmark.verdicts import digest_of
from mmpetl.benchmark.zoo_entries import Wanted, build_zoo
from mmpetl.core import PETLError

SHIPPED = Path(__file__).resolve().parents[2] / 'demo' / 'zoo'
ENTRY = read_zoo(SHIPPED).find('digits_lora')
ARGS = {f'model.backbone.method.{k}': v for k, v in ENTRY.method.items() if k != 'type'}


def run(
    store: RecordStore, seed: int, score: float, best: float, **options: float
) -> Path:
    """A finished run of LoRA on digits that has the shipped delta."""
    record = Record(
        Job('mini/digits', 'LoRA', seed=seed, options={**ARGS, **options}),
        'done',
        task='digits',
        backbone='mini ViT',
        metrics={'acc/top1': score},
        primary='acc/top1',
        counts={'delta': 36864, 'selected': 0, 'head': 970, 'base': 571104},
        config_hash='0123456789abcdef',
        data={'train': DataRead('ab' * 32, 200, 'VTAB', 'content')},
        search={'best_value': best, 'budget': 2},
    )
    store.write(record)
    folder = store.folder(record.job)
    for suffix in ('safetensors', 'json'):
        shutil.copy(SHIPPED / f'digits_lora.{suffix}', folder / f'delta.{suffix}')
    return folder


@pytest.fixture(scope='module')
def released(tmp_path_factory) -> Path:
    """Two settings of one pair, of which the validation likes the first."""
    tmp = tmp_path_factory.mktemp('zoo')
    store = RecordStore(tmp / 'bench')
    run(store, 42, 0.92, 94.0)
    run(store, 43, 0.90, 94.0)
    run(store, 42, 0.99, 91.0, **{'optim_wrapper.optimizer.lr': 0.1})
    release(store.out, tmp / 'mini-1', 'mini 1', unverified=True)
    return tmp / 'mini-1'


def test_an_entry_says_what_the_record_says(released, tmp_path):
    out = tmp_path / 'zoo'
    (entry,) = build_zoo(released, [Wanted.parse('mini/digits:lora')], out)
    assert read_zoo(out).entries == {'digits_lora': entry}
    assert entry.method == ENTRY.method
    assert entry.options == {}
    score = entry.score
    assert (score.value, score.label, score.labels) == (92, 'top-1 accuracy', 200)
    assert (score.mean, score.seeds) == (pytest.approx(91), 2)
    assert score.std == pytest.approx(2**0.5)
    assert entry.base == ENTRY.base
    assert entry.release == 'mini 1'
    inside = released / 'runs' / entry.run / 'delta.safetensors'
    assert digest_of(inside) == entry.delta.sha256
    assert sorted(p.name for p in out.iterdir()) == [
        'digits_lora.json',
        'digits_lora.safetensors',
        'index.json',
    ]


def test_files_for_elsewhere_get_their_address(released, tmp_path):
    wanted = [Wanted.parse('mini/digits:LoRA')]
    (entry,) = build_zoo(released, wanted, tmp_path, url='https://a.example/zoo/')
    assert entry.delta.url == 'https://a.example/zoo/digits_lora.safetensors'
    assert entry.base.weights.url is None


def test_other_entries_stay_where_asked_and_go_otherwise(released, tmp_path):
    out = tmp_path / 'zoo'
    shutil.copytree(SHIPPED, out)
    before = set(read_zoo(out).entries)
    wanted = [Wanted.parse('mini/digits:LoRA')]
    build_zoo(released, wanted, out, keep=True)
    zoo = read_zoo(out)
    assert set(zoo.entries) == before
    assert zoo.find('digits_lora').release == 'mini 1'
    assert zoo.find('digits_ssf') == read_zoo(SHIPPED).find('digits_ssf')
    assert zoo.find('digits_lora').example == ENTRY.example
    build_zoo(released, wanted, out)
    assert set(read_zoo(out).entries) == {'digits_lora'}
    assert [p.stem for p in out.glob('*.safetensors')] == ['digits_lora']
    assert (out / 'digit.png').is_file()


def test_what_is_not_released_makes_no_entry(released, tmp_path):
    out = tmp_path / 'zoo'
    with pytest.raises(PETLError, match="Did you mean 'mini/digits:LoRA'"):
        build_zoo(released, [Wanted.parse('mini/digits:DoRA')], out)
    with pytest.raises(PETLError, match='has no seed 7; it has 42, 43'):
        build_zoo(released, [Wanted.parse('mini/digits:LoRA')], out, seed=7)
    with pytest.raises(PETLError, match='an entry is RECIPE:METHOD'):
        Wanted.parse('digits')
    edited = tmp_path / 'edited'
    shutil.copytree(released, edited)
    facts = next(edited.glob('runs/*/delta.json'))
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {'classes': ['a']}))
    with pytest.raises(PETLError, match=r'is another file than the one released'):
        build_zoo(edited, [Wanted.parse('mini/digits:LoRA')], out)
    assert not list(out.glob('*'))


def test_names_follow_recipe_and_method():
    names = {
        'mini/digits:VPTDeep': 'digits_vpt_deep',
        'vtab/cifar100:ssf': 'vtab_cifar100_ssf',
        'mini/digits:LoRA + BitFit': 'digits_lora_bitfit',
        'mini/digits:Compacter': 'digits_compacter',
    }
    assert {text: Wanted.parse(text).name for text in names} == names
