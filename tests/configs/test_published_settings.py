"""Every published pair has a config, and what is in force in it is what was published.

``hyperparameters.csv`` is the yardstick: values as printed by V-PETL Bench's scripts
and configs and by the methods' own repositories, one row per number.
"""

from __future__ import annotations

import copy
import csv
import functools
from collections import defaultdict
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.config.compose import published_pairs
from mmpetl.config.load import load_config

pytest.importorskip('mmpretrain')

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / 'configs'

# Method of the file to the configs that hold its settings, by task.
HOMES = {
    'Adapter': 'adapter',
    'AdaptFormer': 'adaptformer',
    'BitFit': 'bitfit',
    'Linear probing': 'linear_probe',
    'Full fine-tuning': 'full',
    'LN-Tune': 'ln_tune',
    'LoRA': 'lora',
    'SCT': 'sct',
    'VPT-Shallow': 'vpt_shallow',
    'SSF': 'ssf',
    'GPS': 'gps',
    'HST': 'hst',
    'DTL': 'dtl',
    'DTL+': 'dtl',
    'FacT-TK': 'fact_tk',
    'FacT-TT': 'fact_tt',
    'RepAdapter': 'rep_adapter',
    'RepAdapter (attention only)': 'rep_adapter',
    'Hydra': 'hydra',
    'NOAH': 'noah',
    'VPT-Deep': 'vpt_deep',
    'DiffFit': 'diff_fit',
}
FOLDERS = {'DTL+': 'vtab_plus', 'RepAdapter (attention only)': 'vtab_attn'}
# The file has the batch of one process; these ran on several.
PROCESSES = {('SSF', 'vtab'): 2, ('SSF', 'fgvc'): 2, ('HST', 'vtab'): 2}
PROCESSES |= {('HST', 'fgvc'): 4}

METHOD = 'model.backbone.method'
TRUNK_DROP = 'model.backbone.backbone.drop_path_rate'
SMOOTH = 'model.head.loss.label_smooth_val'
# What the size of a script is for each method; for the others it does nothing.
SIZES = {
    'Adapter': ('hidden_dims', lambda reduction: 768 // reduction),
    'AdaptFormer': ('hidden_dims', int),
    'LoRA': ('rank', int),
    'VPT-Shallow': ('num_tokens', int),
    'SCT': ('num_channels', int),
}
ARGUMENTS = {
    'scale': 'scale',
    'scaleonx': 'scale_on_x',
    'rank': 'rank',
    'beta': 'beta',
    'dropout': 'drop_rate',
    'times_para': 'num_weights',
    'fusion_size': 'kernel_size',
    'vpt_num': 'num_tokens',
    'visual_prompt_dim_per_layer': 'num_tokens',
    'lora_dim_per_layer': 'rank',
    'adapter_dim_per_layer': 'hidden_dims',
}


def read_published():
    """``{(method, task, dataset): {param: text}}`` of the pairs that have a config."""
    pairs = defaultdict(dict)
    with open(HERE / 'hyperparameters.csv', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            task = row['task'].removesuffix('1k')
            own = row['collection'] in ('vpetl_bench', 'official')
            studied = row['method'] in ('VPT-Deep', 'DiffFit') and task == 'vtab'
            if row['dataset'].endswith('_aug_norm') or not (own or studied):
                continue
            pairs[row['method'], task, row['dataset']][row['param']] = row['value']
    return dict(pairs)


PUBLISHED = read_published()


@functools.cache
def read_once(path: str) -> Config:
    return plain_fromfile(path)


plain_fromfile = Config.fromfile


@pytest.fixture(autouse=True)
def _read_each_file_once(monkeypatch):
    """Bases are read hundreds of times otherwise."""
    monkeypatch.setattr(
        Config, 'fromfile', lambda path, **_: copy.deepcopy(read_once(str(path)))
    )


def value(config, path):
    for key in path.split('.'):
        config = config[int(key)] if key.isdigit() else config.get(key)
        if config is None:
            return None
    return config


def number(text: str):
    return text == 'True' if text in ('True', 'False') else float(text)


def expected_at(method, task, param, text, config):
    """Config key and value that a published number stands for; None for no effect."""
    if param == 'lr':
        return 'optim_wrapper.optimizer.lr', float(text)
    if param in ('wd', 'weight_decay'):
        return 'optim_wrapper.optimizer.weight_decay', float(text)
    if param == 'drop_path':
        own = method == 'HST'  # its pyramid's; the trunk is not meant
        return f'{METHOD}.drop_path_rate' if own else TRUNK_DROP, float(text)
    if param == 'batch_size':
        total = int(text) * PROCESSES.get((method, task), 1)
        return 'train_dataloader.batch_size', total
    if param == 'epochs':
        return 'train_cfg.max_epochs', int(text)
    if param == 'warmup_epochs':
        return 'param_scheduler.0.end', int(text)
    if param == 'warmup_lr':
        lr = config.optim_wrapper.optimizer.lr
        return 'param_scheduler.0.start_factor', float(text) / lr
    if param == 'min_lr':
        return 'param_scheduler.1.eta_min', float(text)
    if param in ('labelsmoothing', 'label_smoothing'):
        return SMOOTH, float(text) or None
    if param == 'train_aug':
        plain = 'fgvc' if task == 'fgvc' else 'plain'
        wanted = 'sct' if text == 'True' else plain
        return 'preprocessing.augmentation', wanted
    if param == 'optimizer':
        return 'optim_wrapper.optimizer.type', {'adam': 'Adam', 'adamw': 'AdamW'}[text]
    if param == 'ema_decay':
        return 'custom_hooks.4.decay', float(text)
    if param == 'size':
        if method not in SIZES:
            return None
        key, convert = SIZES[method]
        return f'{METHOD}.{key}', convert(int(text))
    if param == 'fusion_size' and text == '0':
        return f'{METHOD}.kernel_size', None
    if param == 'lora_before_blocks':
        assert text == '0-11'  # every block, which is what DTL does
        return None
    if param == 'add_after_blocks':
        first, last = map(int, text.split('-'))
        return f'{METHOD}.add_after', list(range(first, last + 1))
    if param.endswith('_per_layer'):
        return f'{METHOD}.{ARGUMENTS[param]}', [int(n) for n in text.split()]
    return f'{METHOD}.{ARGUMENTS[param]}', number(text)


@pytest.mark.parametrize('method', HOMES)
def test_values_in_force_are_the_published_ones(method):
    checked = 0
    for (name, task, dataset), params in PUBLISHED.items():
        if name != method:
            continue
        folder = FOLDERS.get(method, task)
        path = CONFIGS / HOMES[method] / folder / f'{dataset}.py'
        assert not path.exists(), 'a row of a table needs no file'
        config = load_config(path)
        for param, text in params.items():
            wanted = expected_at(method, task, param, text, config)
            if wanted is None:
                continue
            key, right = wanted
            found = value(config, key)
            if isinstance(right, float):
                right = pytest.approx(right, rel=1e-12)
            assert found == right, f'{dataset}: {param}={text}, but {key} is {found}'
            checked += 1
    assert checked >= 2


def test_the_yardstick_is_whole():
    assert {method for method, *_ in PUBLISHED} == set(HOMES)
    numbers = sum(len(params) for params in PUBLISHED.values())
    # 1,616 of the benchmark, 1,385 of the methods, 19 tasks of two from the study
    assert numbers == 1616 + 1385 + 19 * 3 + 19 * 2


def test_every_published_pair_is_listed_once():
    listed = [f'{stem}/{name}' for stem, name in published_pairs()]
    assert len(set(listed)) == len(listed)
    for method, task, dataset in PUBLISHED:
        folder = FOLDERS.get(method, task)
        assert f'{HOMES[method]}/{folder}/{dataset}' in listed
