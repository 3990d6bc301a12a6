"""Plans: what they say, what they leave out, and how they fail."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import pytest

from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.plan import (
    Plan,
    choose_methods,
    options_of,
    parse_plan,
    plans_folder,
    read_jobs,
    read_plan,
    resolve,
    write_plan,
)
from mmpetl.benchmark.run_facts import settings_of
from mmpetl.benchmark.sizes import sizes
from mmpetl.config.compose import compose
from mmpetl.core import PETLError, registered_methods

SMALL = {
    'name': 'small',
    'methods': ['LoRA', 'prompt'],
    'recipes': ['mini/digits'],
    'seeds': [1, 2],
}


def test_mini_holds_every_method_of_single_images_twice_on_every_task() -> None:
    resolved = resolve(read_plan('mini'))
    known = registered_methods()
    of_tasks = {n for n, m in known.items() if m.family == 'multi_task'}
    along_time = {n for n, m in known.items() if m.along_time}
    others = of_tasks | along_time
    references = {'LinearProbe', 'LoRA', 'Full'}
    pictures = {'mini/digits', 'mini/textures', 'mini/counting'}
    pairs = {(m, r) for m in known.keys() - others for r in pictures}
    pairs |= {(m, 'mini/hmdb51_frames') for m in along_time | references}
    pairs |= {(m, 'mini/nyud_mt') for m in of_tasks | references}
    cells = {(j.method, j.recipe, j.seed) for j in resolved.jobs}
    assert cells == {(*pair, seed) for pair in pairs for seed in (42, 43)}
    assert len({j.id for j in resolved.jobs}) == len(resolved.jobs)
    assert {(r.method, r.recipe) for r in resolved.refused} == {
        (m, r) for m in others for r in pictures
    }
    assert resolved.toolboxes == ('mmaction', 'mmpretrain', 'mmseg')


@pytest.mark.parametrize('name', ['mini', 'mini-release'])
def test_mini_plans_hold_every_method(name: str) -> None:
    jobs = resolve(read_plan(name)).jobs
    assert {job.method for job in jobs} == set(registered_methods())


@pytest.mark.parametrize('path', sorted(plans_folder().glob('*.yaml')), ids=str)
def test_presets_say_nothing_wrong(path: Path) -> None:
    read_plan(path.stem)


def test_families_stems_and_names_choose_methods() -> None:
    assert choose_methods(['lora', 'LoRA']) == ['LoRA']
    assert set(choose_methods(['prompt'])) == {
        n for n, c in registered_methods().items() if c.family == 'prompt'
    }
    assert set(choose_methods(['all'])) == set(registered_methods())


def test_filters_include_and_exclude_pairs() -> None:
    recipes = ['mini/digits', 'mini/counting']
    plan = parse_plan(
        SMALL
        | {
            'recipes': recipes,
            'include': ['LoRA', 'prompt@mini/d*'],
            'exclude': ['VPTShallow', 'LoRA@*/counting'],
        }
    )
    pairs = {(j.method, j.recipe) for j in resolve(plan).jobs}
    prompts = {n for n, c in registered_methods().items() if c.family == 'prompt'}
    left = (prompts - {'VPTShallow'}) | {'LoRA'}
    assert pairs == {(m, 'mini/digits') for m in left}


def test_options_come_from_plan_recipe_sizes_and_method_in_this_order() -> None:
    plan = parse_plan(
        SMALL
        | {
            'sizes': 'mini',
            'settings': {'lora': {'scale': 2.0}},
            'options': {'a.b': 1, 'c': 1, 'd': 1},
            'recipe_options': {'mini/*': {'c': 2, 'd': 2}},
            'method_options': {'LoRA': {'d': 3}},
        }
    )
    assert options_of(plan, 'LoRA', 'mini/digits') == {
        'a.b': 1,
        'c': 2,
        'd': 3,
        'model.backbone.method.rank': sizes('mini')['LoRA']['rank'],
        'model.backbone.method.scale': 2.0,
    }
    assert options_of(plan, 'VPTShallow', 'vtab/svhn') == {'a.b': 1, 'c': 1, 'd': 1}


def test_what_is_said_of_a_method_on_some_recipes_goes_before_what_is_said_of_it() -> (
    None
):
    plan = parse_plan(
        SMALL
        | {
            'settings': {
                'LoRA@mini/*': {'rank': 2},
                'lora@vtab/*': {'rank': 3},
                'LoRA': {'rank': 4, 'scale': 2.0},
            },
            'method_options': {'LoRA@mini/digits': {'d': 1}, 'LoRA': {'d': 2}},
        }
    )
    rank, scale = (f'model.backbone.method.{name}' for name in ('rank', 'scale'))
    assert options_of(plan, 'LoRA', 'mini/digits') == {rank: 2, scale: 2.0, 'd': 1}
    assert options_of(plan, 'LoRA', 'mini/cub') == {rank: 2, scale: 2.0, 'd': 2}
    assert options_of(plan, 'LoRA', 'vtab/svhn') == {rank: 3, scale: 2.0, 'd': 2}
    assert options_of(plan, 'LoRA', 'coco') == {rank: 4, scale: 2.0, 'd': 2}


def test_some_recipes_of_a_plan_take_along_what_is_said_of_them(tmp_path: Path) -> None:
    path = tmp_path / 'two.yaml'
    path.write_text(
        'methods: [OFT, LoRA]\nrecipes: [mini/digits, mini/textures]\n'
        'recipe_options: {mini/digits: {train_cfg.max_epochs: 2}, mini/t*: {}}\n'
        'settings: {OFT@mini/textures: {block_size: 8}}\n'
        'exclude: [LoRA@mini/textures]\n'
    )
    plan = read_plan(path, recipes=['mini/digits'])
    assert list(plan.recipe_options) == ['mini/digits']
    assert not plan.settings
    assert not plan.exclude
    assert len(resolve(plan).jobs) == 2
    assert read_plan(path).settings
    assert len(resolve(read_plan(path)).jobs) == 3
    assert len(resolve(read_plan(path, methods=['OFT'])).jobs) == 2
    path.write_text(path.read_text().replace('OFT@mini/textures', 'OFT@mini/texture'))
    for recipes in (None, ['mini/digits']):
        with pytest.raises(PETLError, match="'OFT@mini/texture', which is no recipe"):
            resolve(read_plan(path, recipes=recipes))


def test_arguments_make_a_method_fit_whose_defaults_do_not(tmp_path: Path) -> None:
    """HST has four stages by default, and the mini trunk six blocks."""
    plan = read_plan('mini-release', methods=['HST'], recipes=['mini/digits'])
    job = dataclasses.replace(resolve(plan).jobs[0], stage='tune')
    assert compose_job(job, tmp_path).model.backbone.method.dims == [32, 48, 64]


def test_several_methods_are_one_by_their_names() -> None:
    plan = parse_plan(
        SMALL
        | {
            'methods': [
                'lora+vpt_deep',
                'LoRA + VPTDeep',
                'LST + LoRA',
                'BitFit + VQT',
            ],
            'settings': {
                'LoRA': {'rank': 3},
                'lora + vpt_deep': {'1.num_tokens': 2, '0.blocks': ':1'},
            },
            'include': ['combined'],
        }
    )
    resolved = resolve(plan)
    one, other = resolved.jobs[:2]
    assert one.method == 'LoRA + VPTDeep'
    assert one.id.startswith('mini-digits--lora+vptdeep--')
    start = 'model.backbone.method'
    assert one.options == {
        f'{start}.0.rank': 3,
        f'{start}.1.num_tokens': 2,
        f'{start}.0.blocks': ':1',
    }
    config = compose_job(one, 'work')
    assert list(config.model.backbone.method) == [
        {'type': 'LoRA', 'rank': 3, 'blocks': ':1'},
        {'type': 'VPTDeep', 'num_tokens': 2},
    ]
    assert other.method == 'LST + LoRA'
    assert settings_of(config) == {
        '0.rank': 3,
        '0.blocks': ':1',
        '1.num_tokens': 2,
    }
    assert compose('mini/digits', 'lora+ssf').work_dir.endswith('lora+ssf/mini/digits')
    clash = parse_plan(SMALL | {'methods': ['LoRA', 'DTL + LST']})
    (refusal,) = resolve(clash).refused
    assert 'cannot act beside' in refusal.reason


def test_jobs_go_seed_by_seed_and_are_kept_as_they_are(tmp_path: Path) -> None:
    resolved = resolve(parse_plan(SMALL | {'protocol': 'published'}))
    seeds = [j.seed for j in resolved.jobs]
    assert seeds == sorted(seeds)
    assert {j.protocol for j in resolved.jobs} == {'published'}
    write_plan(resolved, tmp_path)
    jobs, refused = read_jobs(tmp_path)
    assert jobs == list(resolved.jobs)
    assert refused == list(resolved.refused)


def test_pairs_without_sites_are_listed_with_the_reason() -> None:
    plan = parse_plan(SMALL | {'methods': ['LoRA', 'VQT'], 'recipes': ['mini/voc']})
    resolved = resolve(plan)
    assert {j.method for j in resolved.jobs} == {'LoRA'}
    (refusal,) = resolved.refused
    assert refusal.method == 'VQT'
    assert 'needs site kind feature' in refusal.reason
    assert resolved.toolboxes == ('mmdet',)


def test_leaves_start_from_published_settings_where_there_are_some() -> None:
    plan = Plan('x', ('SSF', 'Mona'), ('vtab/svhn',), leaves=True)
    assert {j.method: j.leaf for j in resolve(plan).jobs} == {
        'SSF': True,
        'Mona': False,
    }


BAD = {
    'method': ({'methods': ['Lora_']}, r"unknown method or family 'Lora_'.*'LoRA'"),
    'recipe': ({'recipes': ['mini/digit']}, r"no recipe 'mini/digit'.*'mini/digits'"),
    'pattern': ({'recipes': ['vtab2/*']}, r"no recipe 'vtab2/\*'"),
    'key': ({'metods': ['LoRA']}, r"key 'metods'\. Did you mean 'methods'"),
    'seed': ({'seeds': [1.5]}, r'seeds holds 1\.5'),
    'negative seed': ({'seeds': [-1]}, 'whole numbers from 0'),
    'nothing': ({'seeds': []}, 'needs seeds'),
    'protocol': ({'protocol': 'honnest'}, "Did you mean 'honest'"),
    'sizes': ({'sizes': 'minni'}, "Did you mean 'mini'"),
    'options': ({'options': ['lr']}, 'options needs'),
    'settings': ({'settings': {'LoRA': 4}}, 'settings of LoRA'),
    'settings of nobody': ({'settings': {'Loora': {}}}, "Did you mean 'LoRA'"),
    'argument': ({'settings': {'LoRA': {'rnk': 4}}}, "Did you mean 'rank'"),
    'filter': ({'exclude': ['Lora']}, r"filter 'Lora' fits no pair"),
    'recipe_options': ({'recipe_options': {'vtab/*': {}}}, 'no recipe of the plan'),
    'settings elsewhere': (
        {'settings': {'LoRA@vtab/*': {'rank': 2}}},
        r"settings speak of 'LoRA@vtab/\*', which is no recipe of the plan",
    ),
    'options that do not fit': (
        {'options': {'param_scheduler.7.end': 1}},
        'the plan small.* mini/digits',
    ),
    'all filtered': ({'exclude': ['*']}, 'nothing to run'),
    'impossible': ({'methods': ['VMTAdapter']}, 'nothing to run; VMTAdapter is for'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_plans_fail_in_a_line(case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(PETLError, match=message) as error:
        resolve(parse_plan(SMALL | change))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('methods: [LoRA', 'cannot read the plan'),
        ('- LoRA', 'holds no keys'),
        ('methods: [LoRA]', 'needs recipes'),
        ('!!python/object/apply:os.system [true]', 'cannot read the plan'),
    ],
)
def test_bad_files_fail_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / 'plan.yaml'
    path.write_text(text)
    with pytest.raises(PETLError, match=message) as error:
        read_plan(path)
    assert '\n' not in str(error.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(PETLError, match="Did you mean 'mini'"):
        read_plan('mni')


def test_a_folder_without_a_plan_says_so(tmp_path: Path) -> None:
    with pytest.raises(PETLError, match=r'holds no plan\.json'):
        read_jobs(tmp_path)
    (tmp_path / 'plan.json').write_text(json.dumps({'jobs': []}))
    with pytest.raises(PETLError, match='is damaged'):
        read_jobs(tmp_path)


NAMES = {
    'vtab/svhn': ('ViT-B/16', 'svhn', 'natural'),
    'fgvc/nabirds': ('ViT-B/16', 'nabirds', 'fine-grained'),
    'ade20k': ('Swin-L', 'ade20k', 'dense'),
    'coco': ('Swin-B', 'coco', 'dense'),
    'hmdb51': ('ViT-B/16', 'hmdb51', 'video'),
    'hmdb51_swin': ('Video Swin-B', 'hmdb51', 'video'),
    'nyud_mt': ('Swin-T', 'nyud_mt', 'multi-task'),
    'mini/counting': ('mini ViT', 'counting', 'structured'),
    'mini/hmdb51': ('mini Video ViT', 'hmdb51', 'video'),
}


@pytest.mark.parametrize('recipe', NAMES)
def test_records_call_backbones_and_tasks_as_the_published_tables_do(
    recipe: str,
) -> None:
    from mmpetl.benchmark.run_facts import backbone_of, task_of
    from mmpetl.config.compose import compose

    config = compose(recipe, 'LinearProbe')
    assert (backbone_of(config), *task_of(recipe, config)) == NAMES[recipe]


def test_the_config_hash_tells_results_apart_and_folders_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmpetl.benchmark.config_digest import config_hash
    from mmpetl.benchmark.job_config import compose_job
    from mmpetl.benchmark.records import Job

    def digest(data: str = 'here', **change: object) -> str:
        monkeypatch.setenv('MMPETL_DATA', str(tmp_path / data))
        job = Job('mini/digits', 'LoRA', **change)
        return config_hash(compose_job(job, tmp_path / data / 'run'))

    first = digest()
    assert digest('elsewhere') == first
    assert digest(options={'log_level': 'ERROR'}) == first
    others = [
        digest(seed=1),
        digest(stage='tune'),
        digest(options={'model.backbone.method.rank': 2}),
        digest(options={'optim_wrapper.optimizer.lr': 0.1}),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('run.py mni', "Did you mean 'mini'"),
        ('run.py mini --executor inline --workers 2', 'takes no --workers'),
        ('run.py mini --retries -1', 'needs --retries of at least 0'),
        ('status.py nowhere', 'holds no plan.json'),
        ('search.py --methods Loora --recipe mini/digits', "Did you mean 'LoRA'"),
    ],
)
def test_the_tools_fail_in_a_line(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    script, *args = command.split()
    tool = Path(__file__).parents[2] / 'tools' / 'benchmark' / script
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [str(tool), *args])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name='__main__')
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert said.count('\n') == 1
    assert message in said


def test_a_plan_whose_scores_could_not_be_ranked_is_refused() -> None:
    options = {'test_evaluator.topk': [5]}
    with pytest.raises(PETLError, match='small, recipe mini/digits .*of Accuracy'):
        resolve(parse_plan(SMALL | {'options': options}))
    assert resolve(parse_plan(SMALL | {'options': options | {'primary': 'x/top5'}}))
