"""Search spaces: whole, buildable, and holding what the study chose from them."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from mmpetl.apis import search_space
from mmpetl.benchmark.spaces import num_settings
from mmpetl.core import PETLError, build_method, registered_methods

HERE = Path(__file__).parent
LR = 'optim_wrapper.optimizer.lr'
DECAY = 'optim_wrapper.optimizer.weight_decay'
METHOD = 'model.backbone.method.'
NAMES = {cls.stem(): name for name, cls in registered_methods().items()}


def ends(values):
    """Every choice, or both ends of a range."""
    if isinstance(values, dict):
        assert values['low'] < values['high']
        assert set(values) <= {'low', 'high', 'log'}
        return [values['low'], values['high']]
    return values


@pytest.mark.parametrize('folder', NAMES)
def test_every_choice_builds(folder):
    space = search_space(folder)
    assert LR in space
    assert all(0 < lr < 1 for lr in ends(space[LR]))
    for key, values in space.items():
        assert key in (LR, DECAY) or key.startswith(METHOD)
        for value in ends(values) if key.startswith(METHOD) else ():
            build_method({'type': NAMES[folder], key.removeprefix(METHOD): value})


@pytest.mark.parametrize('folder', NAMES)
def test_no_space_is_tried_out_by_a_usual_budget(folder):
    """Twelve trials of four settings are no budget of twelve."""
    size = num_settings(search_space(folder))
    assert size is None or size >= 24


def printed_rates():
    """V-PETL Bench on VTAB-1k: rates and decays of methods with one optimizer."""
    found = {LR: set(), DECAY: set()}
    keys = {'lr': LR, 'weight_decay': DECAY}
    with open(HERE / 'hyperparameters.csv', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            if (row['collection'], row['task']) == ('vpetl_bench', 'vtab'):
                if row['method'] == 'LoRA' and row['param'] in keys:
                    found[keys[row['param']]].add(float(row['value']))
    return found


@pytest.mark.parametrize('folder', ['lora', 'bitfit', 'mona', 'vqt'])
def test_rates_hold_what_v_petl_bench_prints(folder):
    space = search_space(folder)
    for key, values in printed_rates().items():
        assert space[key]['low'] <= min(values) <= max(values) <= space[key]['high']


# Method of the study to ours, and its parameters to config keys.
STUDY = {
    'Linear probing': ('linear_probe', {}),
    'Full fine-tuning': ('full', {}),
    'BitFit': ('bitfit', {}),
    'LN-Tune': ('ln_tune', {}),
    'DiffFit': ('diff_fit', {}),
    'SSF': ('ssf', {}),
    'VPT-Shallow': ('vpt_shallow', {'vpt_num': 'num_tokens'}),
    'VPT-Deep': ('vpt_deep', {'vpt_num': 'num_tokens'}),
    'LoRA': ('lora', {'lora_bottleneck': 'rank'}),
    'AdaptFormer': (
        'adaptformer',
        {'adapter_bottleneck': 'hidden_dims', 'adapter_scaler': 'scale'},
    ),
    'Adapter (Pfeiffer, LoRA init)': (
        'adapter',
        {'adapter_bottleneck': 'hidden_dims', 'adapter_scaler': 'scale'},
    ),
    'Adapter (Houlsby, random init)': (
        'adapter',
        {'adapter_bottleneck': 'hidden_dims', 'adapter_scaler': 'scale'},
    ),
    'Convpass': (
        'convpass',
        {'convpass_bottleneck': 'hidden_dims', 'convpass_scaler': 'scale'},
    ),
    'RepAdapter': (
        'rep_adapter',
        {'repadapter_bottleneck': 'hidden_dims', 'repadapter_scaler': 'scale'},
    ),
    'FacT-TK': ('fact_tk', {'fact_dim': 'rank', 'fact_scaler': 'scale'}),
    'FacT-TT': ('fact_tt', {'fact_dim': 'rank', 'fact_scaler': 'scale'}),
}


def chosen_in_the_study():
    found = defaultdict(set)
    with open(HERE / 'hyperparameters.csv', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            if (row['collection'], row['task']) == ('lessons_learned', 'vtab1k'):
                found[row['method'], row['param']].add(row['value'])
    return found


CHOSEN = chosen_in_the_study()


@pytest.mark.parametrize('method', STUDY)
def test_grid_of_the_study_holds_what_it_chose(method):
    folder, arguments = STUDY[method]
    space = search_space(folder)
    keys = {'lr': LR, 'wd': DECAY} | {p: METHOD + a for p, a in arguments.items()}
    for param, key in keys.items():
        chosen = {float(value) for value in CHOSEN[method, param]}
        assert chosen
        values = space[key]
        if isinstance(values, dict):
            assert values['low'] <= min(chosen) <= max(chosen) <= values['high'], param
        else:
            assert chosen <= {float(value) for value in values}, param


def test_the_study_is_covered():
    assert {method for method, _ in CHOSEN} == set(STUDY)


def test_names_and_stems_are_taken_and_others_refused():
    assert search_space('LoRA') == search_space('lora')
    with pytest.raises(PETLError, match="unknown method 'Lore'.* Did you mean 'LoRA'"):
        search_space('Lore')
