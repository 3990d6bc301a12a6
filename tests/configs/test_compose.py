"""Configs by name, presets, protocols and stages: what they are written out to."""

from __future__ import annotations

import copy

import pytest
from mmengine.config import Config

from mmpetl.config.compose import compose
from mmpetl.config.load import load_config
from mmpetl.config.names import config_root
from mmpetl.core import PETLError
from mmpetl.datasets.presets import AUGMENTATIONS, Preprocessing, pipelines, statistics

CONFIGS = config_root()


def splits(config):
    loaders = [config.get(f'{phase}_dataloader') for phase in ('train', 'val', 'test')]
    return [loader and loader.dataset.get('split') for loader in loaders]


def types(pipeline):
    return [step['type'] for step in pipeline]


# ------------------------------------------------------------------ recipe x method


def test_recipe_and_method_meet_in_memory():
    config = compose('vtab/svhn', 'LoRA', {'optim_wrapper.optimizer.lr': 0.25})
    assert config.model.backbone.method == {'type': 'LoRA'}
    assert config.model.head.num_classes == 10
    assert config.train_dataloader.dataset.task == 'svhn'
    assert config.optim_wrapper.optimizer.lr == 0.25
    assert config.work_dir == 'work_dirs/lora/vtab/svhn'
    by_stem = compose('vtab/svhn', 'lora', {'optim_wrapper.optimizer.lr': 0.25})
    assert by_stem.pretty_text == config.pretty_text


def test_a_recipe_serves_another_size_of_its_set():
    options = {'dataset': 'cifar100_1k'}
    config = compose('many_shot/cifar100_full', 'LoRA', options, stage='tune')
    assert config.train_dataloader.dataset.name == 'cifar100_1k'
    assert config.val_dataloader.dataset.name == 'cifar100_1k'
    assert config.work_dir == 'work_dirs/lora/many_shot/cifar100_1k-tune'


def test_arguments_of_a_method_are_kept():
    config = compose('mini/digits', {'type': 'LoRA', 'rank': 3}, work_dir='here')
    assert config.model.backbone.method == {'type': 'LoRA', 'rank': 3}
    assert config.work_dir == 'here'
    assert config.train_dataloader.dataset.task == 'digits'


def test_leaf_starts_from_published_settings():
    plain = compose('vtab/svhn', 'SSF')
    leaf = compose('vtab/svhn', 'SSF', leaf=True)
    assert plain.optim_wrapper.optimizer.lr == 1e-3
    assert leaf.optim_wrapper.optimizer.lr == 1e-2
    assert leaf.pretty_text == load_config(CONFIGS / 'ssf/vtab/svhn.py').pretty_text


def test_heads_follow_the_feature():
    assert compose('mini/digits', 'VQT').model.head.in_channels == 96 * 7


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('vtab/svnh', 'LoRA'), "no recipe 'vtab/svnh'. Did you mean 'vtab/svhn'?"),
        (('vtab/svhn', 'Lora2'), "unknown method 'Lora2'. Did you mean 'LoRA'?"),
        (('vtab/svhn', {'type': 'LoRA', 'rnk': 2}), "has no argument 'rnk'.*'rank'"),
        (('mini/digit', 'LoRA'), "Did you mean 'mini/digits'"),
    ],
)
def test_unknown_names_get_one_line_with_the_nearest(args, message):
    with pytest.raises(PETLError, match=message) as caught:
        compose(*args)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('lora/vtab/cifar10', "no row 'cifar10'. Did you mean 'cifar100'"),
        ('full/vtab/svhn', 'configs/recipes/vtab/svhn.py.*type=Full'),
        ('mona/vtab/svhn', 'configs/recipes/vtab/svhn.py.*type=Mona'),
        ('lora/vtab', 'is a table of settings; name one of its rows, such as '),
        ('mona/ade2k', "Did you mean 'ade20k.py'"),
    ],
)
def test_unknown_pairs_get_one_line_that_helps(name, message):
    with pytest.raises(PETLError, match=message) as caught:
        load_config(CONFIGS / f'{name}.py')
    assert '\n' not in str(caught.value)


def test_malformed_tables_are_refused(tmp_path):
    from mmpetl.config.leaves import parse_rows, read_table

    with pytest.raises(PETLError, match='row of dtd has 2 cells, the header 3'):
        parse_rows('task lr wd\ndtd 1', 'here')
    with pytest.raises(PETLError, match='two rows of dtd'):
        parse_rows('task lr\ndtd 1\ndtd 2', 'here')
    path = tmp_path / 'vtab.py'
    path.write_text(
        "recipes = 'vtab'\nmethod = dict(type='LoRA')\n"
        "tables = dict(a='task rnk\\ndtd 1')\n"
    )
    with pytest.raises(PETLError, match="column 'rnk'.*Did you mean 'rank'"):
        read_table(path)


# ----------------------------------------------------------------------- protocols


def test_honest_reads_the_test_set_once_and_never_while_choosing():
    final = compose('vtab/cifar100', 'LoRA')
    assert splits(final) == ['train800val200', None, 'test']
    assert 'save_best' not in final.default_hooks.checkpoint
    tune = compose('vtab/cifar100', 'LoRA', stage='tune')
    assert splits(tune) == ['train800', 'val200', None]
    assert tune.test_evaluator is tune.test_cfg is None
    assert tune.val_evaluator.type == 'Accuracy'
    assert tune.work_dir.endswith('cifar100-tune')


def test_fine_grained_sets_choose_on_their_own_split():
    final = compose('fgvc/nabirds', 'LoRA')
    assert splits(final) == ['train', 'val', 'test']
    assert splits(compose('fgvc/nabirds', 'LoRA', stage='tune')) == [
        'train',
        'val',
        None,
    ]


def test_published_scores_the_test_set_and_says_so():
    config = load_config(CONFIGS / 'lora/vtab/dtd.py', protocol='published')
    assert splits(config) == ['train800val200', 'test', 'test']
    assert config.train_cfg.val_interval == 10
    assert config.default_hooks.checkpoint.save_best == 'accuracy/top1'
    assert config.protocol == 'published'
    assert config.work_dir == 'work_dirs/lora/vtab/dtd-published'
    assert config.model.backbone.frozen_drop_path is True
    assert config.preprocessing.normalisation == 'imagenet'
    assert config.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    # un-augmented pictures are resized bilinearly there, augmented ones bicubically
    resize = config.train_dataloader.dataset.pipeline[0].transforms[1]
    assert resize.interpolation == 'bicubic'
    test = config.test_dataloader.dataset.pipeline
    assert test[1].interpolation == 'bilinear'
    (schedule,) = config.param_scheduler
    assert schedule.type == 'mmpetl.TimmCosineLR'
    assert schedule.start == pytest.approx(1e-6)
    assert (schedule.T_max, schedule.warmup, schedule.late) == (100, 10, True)


def test_published_is_each_methods_own():
    ssf = load_config(CONFIGS / 'ssf/vtab/dtd.py', protocol='published')
    assert ssf.preprocessing.normalisation == 'half'
    assert ssf.train_cfg.max_epochs == 110
    assert ssf.param_scheduler[0].late is False
    hydra = load_config(CONFIGS / 'hydra/vtab/dtd.py', protocol='published')
    assert hydra.param_scheduler[0].T_max == 500
    gps = load_config(CONFIGS / 'gps/fgvc/nabirds.py', protocol='published')
    assert splits(gps) == ['trainval', 'test', 'test']


def test_the_command_line_has_the_last_word_on_a_protocol():
    options = {'protocol': 'published', 'preprocessing.normalisation': 'none'}
    with pytest.raises(PETLError, match='protocol is honest and, among the options, p'):
        compose('vtab/svhn', 'LoRA', options)
    config = load_config(CONFIGS / 'lora/vtab/svhn.py', options)
    assert (config.protocol, config.preprocessing.normalisation) == (
        'published',
        'none',
    )


@pytest.mark.parametrize('recipe', ['hmdb51', 'voc', 'coco', 'ade20k'])
def test_sets_without_validation_hold_a_part_of_training_out(recipe):
    final = compose(recipe, 'LoRA')
    assert final.val_dataloader is None
    tune = compose(recipe, 'LoRA', stage='tune')
    assert tune.test_dataloader is None
    train, val = tune.train_dataloader.dataset, tune.val_dataloader.dataset
    train = train.dataset if 'times' in train else train
    assert (train.type, train.part) == ('mmpetl.HeldOut', 'train')
    assert (val.type, val.part) == ('mmpetl.HeldOut', 'val')
    assert train.share == val.share
    lists = [
        [d.get('ann_file') for d in (s.dataset.get('datasets') or [s.dataset])]
        for s in (train, val)
    ]
    assert lists[0] == lists[1]
    assert 'ann_file' not in tune.val_evaluator


def test_unknown_protocols_and_stages_are_refused():
    with pytest.raises(PETLError, match="no protocol 'honset'. Did you mean 'honest'"):
        compose('vtab/svhn', 'LoRA', protocol='honset')
    with pytest.raises(PETLError, match='published protocol has no stage tune'):
        compose('vtab/svhn', 'LoRA', protocol='published', stage='tune')
    with pytest.raises(PETLError, match='has no test set to train towards'):
        load_config(CONFIGS / 'noah/vtab/cifar100_search.py', protocol='published')


@pytest.mark.parametrize('protocol', ['honest', 'published'])
def test_a_runs_own_config_reads_back_as_it_was(protocol, tmp_path):
    config = load_config(
        CONFIGS / 'lora/vtab/svhn.py',
        {'train_dataloader.dataset.split': 'train800'},
        protocol=protocol,
    )
    path = tmp_path / 'config.py'
    config.dump(path)
    again = load_config(path)
    assert again.to_dict() == config.to_dict()
    other = {'honest': 'published', 'published': 'honest'}[protocol]
    with pytest.raises(PETLError, match='cannot change a config that is written out'):
        load_config(path, protocol=other)
    with pytest.raises(PETLError, match='cannot change a config that is written out'):
        load_config(path, {'preprocessing.size': 32})


# ------------------------------------------------------------------------- presets


def test_statistics_are_those_that_papers_print():
    assert statistics('half') == {'mean': [127.5] * 3, 'std': [127.5] * 3}
    assert statistics('imagenet') == {
        'mean': [123.675, 116.28, 103.53],
        'std': [58.395, 57.12, 57.375],
    }
    assert statistics('none') == {'mean': [0.0] * 3, 'std': [255.0] * 3}
    assert statistics('clip')['mean'][0] == pytest.approx(0.48145466 * 255, abs=1e-5)


def test_no_normalisation_leaves_pixels_between_0_and_1():
    # The data preprocessor divides by std, so that of `none` is the range of a byte.
    none = statistics('none')
    assert [(255 - m) / s for m, s in zip(*none.values(), strict=True)] == [1.0] * 3


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_augmentations_end_at_the_size_that_was_asked(name):
    import numpy as np
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope
    from PIL import Image

    preset = Preprocessing(augmentation=name, size=48, cache=0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        import mmpretrain.datasets  # noqa: F401

        built = [Compose(steps) for steps in pipelines(preset)]
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    for pipeline in built:
        import tempfile

        with tempfile.NamedTemporaryFile(suffix='.png') as file:
            Image.fromarray(pixels).save(file.name)
            out = pipeline({'img_path': file.name, 'gt_label': 1})
        assert tuple(out['inputs'].shape) == (3, 48, 48)


def test_the_test_pipeline_draws_nothing():
    for name in AUGMENTATIONS:
        _, test = pipelines(Preprocessing(augmentation=name))
        assert not [kind for kind in types(test) if kind.startswith('Rand')]


def test_sct_is_flip_and_rand_augment_and_plain_is_neither():
    sct, _ = pipelines(Preprocessing(augmentation='sct'))
    assert types(sct)[2:4] == ['RandomFlip', 'RandAugment']
    assert (sct[3]['magnitude_level'], sct[3]['magnitude_std']) == (9, 0.5)
    plain, test = pipelines(Preprocessing(augmentation='plain'))
    assert plain == test
    assert types(plain) == ['LoadImageFromFile', 'Resize', 'PackInputs']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'preprocessing.normalisation': 'hlaf'}, "'hlaf'. Did you mean 'half'"),
        ({'preprocessing.augmentation': 'stc'}, "'stc'. Did you mean 'sct'"),
        ({'preprocessing.interpolation': 'cubic'}, "Did you mean 'bicubic'"),
        ({'preprocessing.sizee': 3}, "no key 'sizee'. Did you mean 'size'"),
        ({'preprocessing.size': 0}, 'a whole number from 1'),
        ({'dataset': 'svnh'}, "no data set 'svnh'. Did you mean 'svhn'"),
    ],
)
def test_unknown_presets_are_refused(options, message):
    with pytest.raises(PETLError, match=message):
        compose('vtab/svhn', 'LoRA', options)


def test_what_a_config_writes_out_stays_and_is_said():
    config = compose('hmdb51', 'LoRA')
    assert config.preprocessing == {'normalisation': 'imagenet', 'augmentation': None}
    with pytest.raises(PETLError, match='preprocessing.size has no effect'):
        compose('hmdb51', 'LoRA', {'preprocessing.size': 32})
    raw = Config.fromfile(CONFIGS / 'recipes/vtab/svhn.py')
    raw.model.data_preprocessor.mean = [1.0, 2.0, 3.0]
    own = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]
    raw.train_dataloader.dataset.pipeline = copy.deepcopy(own)
    from mmpetl.config.load import finish_config

    config = finish_config(raw, name='x')
    assert config.model.data_preprocessor.mean == [1.0, 2.0, 3.0]
    assert config.train_dataloader.dataset.pipeline == own
    assert config.preprocessing == {'normalisation': None, 'augmentation': None}


def test_options_reach_into_written_pipelines():
    key = 'test_dataloader.dataset.pipeline.1.interpolation'
    config = compose('vtab/svhn', 'LoRA', {key: 'nearest'})
    assert config.test_dataloader.dataset.pipeline[1].interpolation == 'nearest'
