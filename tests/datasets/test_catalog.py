"""The catalogue against figures from the papers, and against itself."""

from __future__ import annotations

import pytest

from mmpetl.core import PETLError
from mmpetl.datasets import catalog, verify
from mmpetl.datasets.catalog import BENCHMARK_IDS, CATALOG, facts_of, select
from mmpetl.datasets.folders import known_names, spelling


def test_the_benchmark_has_thirty_sets():
    count = {b: len(select([b])) for b in ('vtab', 'fgvc', 'video', 'dense', 'study')}
    assert count == {'vtab': 19, 'fgvc': 5, 'video': 3, 'dense': 4, 'study': 21}
    assert len(BENCHMARK_IDS) == 19 + 5 + 3 + 3
    assert 'voc_seg' not in BENCHMARK_IDS


def test_sizes_are_the_published_ones():
    def size(id, split):
        return CATALOG[id].split(split).size

    # 1,000 labelled pictures; dSprites: a tenth of 737,280; CLEVR: its validation set
    assert all(size(f.id, 'train800val200') == 1000 for f in select(['vtab']))
    assert size('dsprites_loc', 'test') == 737_280 // 10
    # CUB: 11,788 pictures; NABirds: 48,562; Dogs: 20,580; Cars: 16,185
    for id, total in (
        ('cub_200_2011', 11_788),
        ('nabirds', 48_562),
        ('stanford_dogs', 20_580),
        ('stanford_cars', 16_185),
        ('oxford_flowers', 8_189),
    ):
        assert sum(size(id, part) for part in ('train', 'val', 'test')) == total
    # HMDB51: 70 training and 30 test clips of each of 51 classes, in each split
    assert [s.size for s in CATALOG['hmdb51'].splits] == [51 * 70, 51 * 30] * 3
    # VOC 07+12: 16,551 pictures; SBD brings the 1,464 to 10,582
    voc = CATALOG['voc']
    assert voc.split('trainval2007').size + voc.split('trainval2012').size == 16_551
    assert size('voc_seg', 'train') + size('voc_seg', 'aug') == 10_582


def test_subset_sizes_add_up():
    for facts in CATALOG.values():
        if facts.base != 'many_shot':
            continue
        train, val, both = (facts.split(n).size for n in ('train', 'val', 'trainval'))
        assert train + val == both <= facts.pool.size
        name = facts.id.rpartition('_')[2]
        if name == 'full':
            assert both == facts.pool.size
        else:
            assert both == int(name.replace('k', '000'))
            assert val == both // 5
    assert CATALOG['imagenet'].split('train').size == 100 * 1000
    assert CATALOG['imagenet_r'].num_present == CATALOG['imagenet_a'].num_present == 200


def test_no_two_rows_are_the_same_data():
    seen = {}
    for facts in CATALOG.values():
        for split in facts.splits:
            if split.name == 'test' and facts.pool:
                continue  # one test set for all sizes
            place = (facts.path, split.file or split.images)
            assert place not in seen, (facts.id, seen[place])
            seen[place] = facts.id


def test_names_groups_and_aliases():
    assert facts_of('pets').id == facts_of('oxford_pet').id == 'oxford_iiit_pet'
    assert [f.id for f in select(['specialised'])][:2] == ['patch_camelyon', 'eurosat']
    assert len(select(['vtab', 'svhn'])) == 19
    assert [f.id for f in select(['segmentation'])] == ['ade20k', 'voc_seg']
    assert len(select()) == len(CATALOG)
    with pytest.raises(
        PETLError, match="no data set 'cifr100'. Did you mean 'cifar100'"
    ):
        select(['cifr100'])
    with pytest.raises(
        PETLError, match=r"coco has no split 'test'; there are train, val"
    ):
        CATALOG['coco'].split('test')


def test_names_of_the_former_single_files_are_where_they_were():
    for module, names in (
        (catalog, 'BENCHMARK_IDS Benchmark CATALOG DatasetFacts Family Layout Split'),
        (verify, 'Finding Progress Report TWINS disjoint_splits fault_of verify'),
    ):
        assert set(names.split()) <= set(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_a_folder_has_one_set():
    """No spelling of a folder is that of another set of the same benchmark."""
    for base in ('fgvc', 'vtab-1k'):
        seen = {}
        for facts in CATALOG.values():
            for name in known_names(facts) if facts.base == base else ():
                assert seen.setdefault(spelling(name), facts.id) == facts.id
