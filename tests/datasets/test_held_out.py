"""A part of a training set held out: disjoint, whole, the same everywhere."""

from __future__ import annotations

import re

import pytest
from mmengine.dataset import BaseDataset

from mmpetl.config.load import load_config
from mmpetl.config.names import config_root
from mmpetl.core import PETLError
from mmpetl.datasets import HeldOut
from mmpetl.datasets.catalog import facts_of


class Files(BaseDataset):
    """Samples by file name; ``skip`` leaves some out, as filters do."""

    def __init__(self, root='/a', count=400, skip=1, **kwargs):
        self.names = [
            f'{root}/set/class_{i % 7}/{i}.mp4' for i in range(0, count, skip)
        ]
        super().__init__(metainfo={'classes': ('x', 'y')}, **kwargs)

    def load_data_list(self):
        return [{'filename': name, 'label': 1} for name in self.names]


def names(part, **kwargs):
    held = HeldOut(Files(**kwargs), part)
    found = [held.get_data_info(i)['filename'] for i in range(len(held))]
    return {name.rpartition('set/')[2] for name in found}


def test_parts_are_disjoint_and_whole():
    train, val = names('train'), names('val')
    assert not train & val
    assert len(train | val) == 400
    assert 0.05 < len(val) / 400 < 0.15


def test_parts_stay_apart_under_filters_and_on_other_machines():
    val = names('val')
    assert not names('train', skip=3) & val
    assert names('val', skip=3) < val
    assert names('val', root='/elsewhere/data') == val


class Clips(BaseDataset):
    """Films of HMDB51, of which clips are cut, as videos or as folders of frames."""

    def __init__(self, suffix='.avi'):
        tags = 'u_nm_np1_ba_goo', 'h_cm_np2_le_med'
        self.names = [
            f'/a/wave/film_{film}_wave_{tags[i % 2]}_{i}{suffix}'
            for film in range(120)
            for i in range(4)
        ]
        super().__init__(metainfo={'classes': ('x', 'y')})

    def load_data_list(self):
        return [{'filename': name, 'label': 1} for name in self.names]


@pytest.mark.parametrize('suffix', ['.avi', '.mp4', ''])
def test_clips_of_one_film_stay_together(suffix):
    pattern, films = facts_of('hmdb51').part_of, []
    for part in ('train', 'val'):
        held = HeldOut(Clips(suffix), part, part_of=pattern)
        names = [held.get_data_info(i)['filename'] for i in range(len(held))]
        films.append({re.search(r'film_\d+', name)[0] for name in names})
        assert len(names) == 4 * len(films[-1])
    train, val = films
    assert not train & val
    assert 0 < len(val) < 40


@pytest.mark.parametrize('recipe', ['hmdb51', 'ssv2'])
def test_recipes_hold_films_out_where_clips_are_cut_from_them(recipe):
    path = config_root() / 'recipes' / f'{recipe}.py'
    config = load_config(path, stage='tune')
    pattern = facts_of(recipe).part_of
    for phase in ('train', 'val'):
        held = config[f'{phase}_dataloader'].dataset
        assert held.type == 'mmpetl.HeldOut'
        assert held.get('part_of', '') == pattern
    assert bool(pattern) == (recipe == 'hmdb51')


def test_it_is_a_data_set_as_samplers_know_it():
    held = HeldOut(Files(), 'train')
    assert held.metainfo['classes'] == ('x', 'y')
    assert held[0]['label'] == 1
    assert held[len(held) - 1]['sample_idx'] > held[0]['sample_idx']


def test_an_empty_part_and_other_names_are_refused():
    with pytest.raises(PETLError, match='leaves no sample in part val'):
        HeldOut(Files(), 'val', share=0.0)
    with pytest.raises(PETLError, match="parts train and val, not 'test'"):
        HeldOut(Files(), 'test')
    with pytest.raises(PETLError, match='share of at least 0 and at most 1'):
        HeldOut(Files(), 'val', share=2.0)
