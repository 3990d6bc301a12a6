"""The whole way: pictures, a run, a delta that names classes, the page."""

from __future__ import annotations

import csv
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from painted import COLOURS, paint

from mmpetl.core import PETLError
from mmpetl.own import auto, choose_method, prepare, run_line, train_own, write_page
from mmpetl.own.follow import PERIOD_S, shown

MINI = str(Path(__file__).parents[2] / 'configs' / 'mini' / 'digits.py')


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    data = paint(folder / 'a <b>colours</b>', 8)
    return prepare(
        data,
        backbone=MINI,
        work_dir=folder / 'work',
        epochs=8,
        lr=1e-2,
        batch_size=6,
        augmentation='none',
    )


@pytest.fixture(scope='module')
def run(task):
    return train_own(task, 'lora', {'model.backbone.method.rank': 2})


def test_a_run_learns_and_reads_the_test_pictures_once(run):
    record = run.record
    assert record.status == 'done'
    assert (record.job.method, record.test_reads) == ('LoRA', 1)
    assert record.settings == {'rank': 2}
    assert record.data['train'].count == 3 * 6  # train and val
    assert record.data['test'].count == 3 * 2
    assert record.score > 60  # a third by chance


def test_what_was_said_of_each_picture_is_a_csv(run, task):
    with open(run.delta.with_suffix('.csv'), encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    entries = task.splits.parts['test']
    assert [row['path'] for row in rows] == [entry.path for entry in entries]
    assert [row['label'] for row in rows] == [
        task.splits.classes[entry.label] for entry in entries
    ]
    right = sum(row['label'] == row['called'] for row in rows)
    assert 100 * right / len(rows) == pytest.approx(run.record.score)
    assert all(1 / 3 <= float(row['score']) <= 1 for row in rows)


def test_the_same_call_runs_nothing_again(run, task):
    said = []
    again = train_own(task, 'LoRA', {'model.backbone.method.rank': 2}, said.append)
    assert again.record == run.record
    assert 'nothing is run again' in said[0]


def test_another_run_takes_the_page_of_the_last_away(task):
    said = []
    write_page(train_own(task, 'bitfit', {'train_cfg.max_epochs': 1}, said.append))
    for _ in range(2):
        again = train_own(task, 'bitfit', {'train_cfg.max_epochs': 2}, said.append)
        assert not again.page.exists()
    replaced = [line for line in said if 'of another run is replaced' in line]
    assert len(replaced) == 1
    assert replaced[0].endswith('of another run is replaced and its page removed')


def pictures_of(run) -> list[str]:
    with open(run.delta.with_suffix('.csv'), encoding='utf-8') as file:
        return [row['path'] for row in csv.DictReader(file)]


def test_a_division_that_is_drawn_anew_is_another_run(tmp_path):
    paint(tmp_path / 'data', 6)
    asked = {'backbone': MINI, 'work_dir': tmp_path / 'work', 'epochs': 1}
    task = prepare(tmp_path / 'data', **asked)
    first = train_own(task, 'linear_probe')
    (task.folder / 'splits.json').unlink()
    drawn = prepare(tmp_path / 'data', split_seed=7, **asked)
    assert drawn.splits.parts['test'] != task.splits.parts['test']
    said = []
    again = train_own(drawn, 'linear_probe', say=said.append)
    assert not any('nothing is run again' in line for line in said)
    assert again.folder != first.folder
    assert pictures_of(again) == [e.path for e in drawn.splits.parts['test']]
    jobs = [t.job('LoRA', stage='tune', variant='trial') for t in (task, drawn)]
    assert jobs[0].id != jobs[1].id


def test_a_work_folder_may_lie_among_the_pictures(tmp_path, monkeypatch):
    from mmpetl.cli.commands.predict import files_of

    monkeypatch.chdir(paint(tmp_path / 'data', 5))
    said = []
    for _ in range(2):
        task = prepare('.', backbone=MINI, epochs=1)
        run = train_own(task, 'linear_probe', say=said.append)
    assert said == [f'{run.folder} is trained and scored already; nothing is run again']
    (run.task.folder / 'shown.png').write_bytes(Path('red/00.png').read_bytes())
    for name in (run.delta, run.task.folder):
        assert len(files_of(['.'], str(name))) == 15
    with pytest.raises(PETLError, match='work folder . is that of the pictures'):
        prepare('.', backbone=MINI, work_dir='.')


def test_the_delta_names_classes_without_data_or_folder(run, task, tmp_path):
    from mmpetl.apis import init_model, predict_image

    for file in (run.delta, run.delta.with_suffix('.json'), run.config):
        shutil.copy(file, tmp_path)
    config = tmp_path / run.config.name
    text = config.read_text().replace(str(task.folder.resolve()), '/nowhere')
    config.write_text(text.replace(str(task.root.resolve()), '/nowhere'))
    model = init_model(str(config), tmp_path / run.delta.name, 'cpu')
    (best, *_) = predict_image(model, task.root / 'green' / '00.png')
    assert best.name == 'green'
    assert model.dataset_meta['classes'] == list(COLOURS)


def test_the_page_is_one_file_that_asks_nothing(run):
    path = write_page(run)
    text = path.read_text(encoding='utf-8')
    assert path == run.config.with_suffix('.html')
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert '<script' not in text
    assert '<b>colours' not in text
    assert 'a &lt;b&gt;colours' in text
    accuracy = f'{run.record.score:.1f} %'
    assert '<dt>accuracy<small>' in text
    assert f'<dd>{accuracy}</dd>' in text
    wrong = round(6 * (1 - run.record.score / 100))
    assert text.count('<img ') == wrong
    assert len(re.findall(r'<td class="hit"', text)) >= 1
    assert f'{run.record.counts["delta"]:,}' in text
    # Every section that a link names is there.
    links = re.findall(r'<a href="#(\w+)">', text)
    assert len(links) == 6
    assert all(f'id="{name}"' in text for name in links)


@pytest.mark.parametrize(('width', 'dark'), [(390, True), (1400, False)])
def test_the_page_fits_the_window(run, width, dark):
    from mmpetl.benchmark.report.browser import NAMES, browser, find_browser

    if find_browser() is None:
        pytest.skip(f'no browser: none of {", ".join(NAMES)} is on the PATH')
    pytest.importorskip('playwright.sync_api')
    path = write_page(run)
    with browser() as chromium:
        page = chromium.new_page(
            viewport={'width': width, 'height': 800},
            color_scheme='dark' if dark else 'light',
        )
        asked, said = [], []
        page.on('request', lambda request: asked.append(request.url))
        page.on('console', lambda message: said.append(message.text))
        page.goto(path.as_uri())
        assert page.evaluate('document.documentElement.scrollWidth') == width
        paper = page.evaluate('getComputedStyle(document.body).backgroundColor')
        assert (sum(map(int, re.findall(r'\d+', paper)[:3])) < 150) == dark
        assert not said
        assert [url for url in asked if not url.startswith('data:')] == [path.as_uri()]


def test_a_method_that_cannot_act_is_one_line(task):
    with pytest.raises(PETLError, match='STAdapter cannot be trained on .*digits.py'):
        train_own(task, 'st_adapter')
    with pytest.raises(PETLError, match='LoRAA'):
        train_own(task, 'LoRAA')


def test_auto_gives_every_method_as_many_trials(task, monkeypatch):
    pytest.importorskip('optuna')
    said = []
    with pytest.raises(PETLError, match='do not hold one epoch of each of 2 methods'):
        choose_method(task, 0.5, ['bitfit', 'linear_probe'], said.append)
    # From here on time is what the test says: two rounds fit, and a third does not.
    monkeypatch.setattr(auto, '_pace', lambda *_: auto._Pace(1.0, 2.0, 5.0))
    monkeypatch.setattr(auto, '_seconds_of', lambda *_: 10.0)
    names = ['bitfit', 'linear_probe', 'st_adapter']
    choice = choose_method(task, 45, names, said.append)
    assert {one.method: one.trials for one in choice.tried} == {
        'BitFit': 2,
        'LinearProbe': 2,
    }
    assert 'STAdapter' in choice.left_out
    assert choice.method in choice.why
    # Of three steps, 2 s each: 20 / 1.5 - 1 s hold two.
    assert 'trials have 2 epochs, not 8' in said[0]
    records = task.store.all(curves=False)
    trials = [r for r in records if r.job.stage == 'tune']
    assert not any(r.test_reads or 'test' in r.data for r in trials)
    assert {r.data['val'].count for r in trials} == {3}
    assert {r.epochs for r in trials if r.job.variant == 'trial'} == {2}
    # Going on runs nothing that is on record.
    again = choose_method(task, 45, names, said.append)
    assert again == choice
    assert len(task.store.all(curves=False)) == len(records)


def test_epochs_of_trials_are_those_on_record_or_refused(tmp_path, monkeypatch):
    from dataclasses import replace

    def lengths(task, budget_s: float) -> list[str]:
        said = []
        with pytest.raises(RuntimeError, match='searched'):
            choose_method(task, budget_s, ['bitfit', 'linear_probe'], said.append)
        return said

    def searched(*_):
        raise RuntimeError('searched')

    monkeypatch.setattr(auto, '_pace', lambda *_: auto._Pace(1.0, 2.0, 5.0))
    monkeypatch.setattr(auto, '_rounds', searched)
    asked = {'backbone': MINI, 'work_dir': tmp_path / 'work', 'batch_size': 6}
    task = prepare(paint(tmp_path / 'data', 8), epochs=8, **asked)
    assert 'trials have 2 epochs, not 8: so many fit' in lengths(task, 45)[0]
    (line,) = lengths(task, 450)
    assert 'trials have 2 epochs, not 8: those on record have as many' in line
    longer = replace(task, settings=replace(task.settings, epochs=9))
    with pytest.raises(PETLError, match=r'asked for 8 epochs and now for 9.*remove'):
        choose_method(longer, 45, ['bitfit'])
    # What was searched on another division is no trial of this one.
    (task.folder / 'splits.json').unlink()
    drawn = prepare(tmp_path / 'data', epochs=9, split_seed=7, **asked)
    anew, *rest = lengths(drawn, 450)
    assert 'divided anew' in anew
    assert not rest
    aside = task.folder / f'search-{task.splits.digest[:12]}'
    assert (aside / 'epochs.json').is_file()
    assert '9' in (task.folder / 'search' / 'epochs.json').read_text()
    assert 'divided anew' in lengths(task, 450)[0]
    assert not aside.exists()


def test_a_search_comes_back_with_its_division(tmp_path, monkeypatch):
    """Also where that of the division between ended before it had kept a length."""
    from dataclasses import replace

    import msgspec

    def ended(*_):
        raise KeyboardInterrupt

    def search(task, until=PETLError) -> list[str]:
        said = []
        with pytest.raises(until):
            choose_method(task, 450, ['bitfit'], said.append)
        return said

    def searched(task, *_):
        assert (task.folder / 'search' / 'epochs.json').is_file()
        raise PETLError('searched')

    monkeypatch.setattr(auto, '_rounds', searched)
    task = prepare(
        paint(tmp_path / 'data', 8),
        backbone=MINI,
        work_dir=tmp_path / 'work',
        epochs=2,
        batch_size=6,
    )
    other = replace(task, splits=msgspec.structs.replace(task.splits, digest='f' * 64))
    folder = task.folder / 'search'
    aside = task.folder / f'search-{task.splits.digest[:12]}'
    pace = auto._Pace(1.0, 2.0, 5.0)
    monkeypatch.setattr(auto, '_pace', lambda *_: pace)
    search(task)
    (folder / 'trials').write_text('of the first')
    for _ in range(2):
        monkeypatch.setattr(auto, '_pace', ended)
        assert f'{aside} was the search; all is' in search(other, KeyboardInterrupt)[0]
        assert not folder.exists()
        monkeypatch.setattr(auto, '_pace', lambda *_: pace)
        assert f'which was {aside}, goes on' in search(task)[0]
        assert (folder / 'trials').read_text() == 'of the first'
    # A folder of that name that is there already is left alone.
    shutil.copytree(folder, aside)
    assert f'{aside}-2 was the search' in search(other)[0]
    assert (aside.with_name(f'{aside.name}-2') / 'trials').is_file()
    # Earlier versions kept a number, and no division.
    (folder / 'epochs.json').write_text('2\n')
    (line,) = search(other)
    assert f'no division is on record; {folder}-earlier was the search' in line
    assert (folder.with_name('search-earlier') / 'epochs.json').read_text() == '2\n'
    (folder / 'epochs.json').write_text('"two"')
    with pytest.raises(PETLError, match='epochs.json.* to begin anew'):
        choose_method(other, 450, ['bitfit'])


def test_the_tool_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    import importlib.util

    path = Path(__file__).parents[2] / 'tools' / 'train_own.py'
    spec = importlib.util.spec_from_file_location('train_own_tool', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = ['train_own.py', 'lora', str(tmp_path / 'absent'), '--backbone', MINI]
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit) as left:
        tool.main()
    assert left.value.code == 1
    assert 'no folder and no CSV' in capsys.readouterr().err


def test_train_with_pictures_in_place_of_a_recipe_is_this(tmp_path, monkeypatch):
    from mmpetl.cli.commands import train

    (tmp_path / 'mini' / 'digits').mkdir(parents=True)
    table = tmp_path / 'list.csv'
    table.write_text('path,label\n')
    monkeypatch.chdir(tmp_path)
    assert train.names_pictures(['lora', str(tmp_path), '--report'])
    assert train.names_pictures(['auto', 'list.csv'])
    # A recipe comes first, and a config is no picture.
    assert not train.names_pictures(['lora', 'mini/digits'])
    assert not train.names_pictures(['config.py', '--method', 'LoRA'])
    assert not train.names_pictures(['--help'])
    asked = []
    monkeypatch.setattr(train.train_own, 'main', asked.append)
    train.main(['lora', 'list.csv', '--backbone', MINI])
    assert asked == [['lora', 'list.csv', '--backbone', MINI]]


def test_flags_of_memory_and_processes_are_options_of_the_task(monkeypatch):
    from mmpetl.cli.commands import train_own as command

    asked = {}

    def note(data, **named):
        asked.update(named)
        raise PETLError('seen')

    monkeypatch.setattr('mmpetl.own.prepare', note)
    words = 'lora pictures --gpus 2 --shard-base --offload-activations --base-bits 8'
    more = '--cache-features 2.5 --deepspeed 2 --cfg-options batch=64 deepspeed=3'
    with pytest.raises(SystemExit):
        command.main([*words.split(), *more.split()])
    assert asked['options'] == {
        'processes': 2,
        'shard_base': True,
        'offload_activations': True,
        'model.backbone.base_bits': 8,
        'cache_features': {'limit_gib': 2.5},
        'deepspeed': 2,
        'batch': 64,
    }
    with pytest.raises(SystemExit):
        command.main(['lora', 'pictures'])
    assert asked['options'] == {}


def test_what_is_added_to_a_file_is_shown(tmp_path, capsys):
    path = tmp_path / 'console.log'
    path.write_bytes(b'before\n')
    with open(path, 'ab', buffering=0) as file, shown(path):
        file.write('drei\nf\u00fcnf\n'.encode()[:7])
        time.sleep(3 * PERIOD_S)
        assert capsys.readouterr().out == 'drei\nf'
        file.write('\u00fcnf\n'.encode()[1:])
    assert capsys.readouterr().out == '\u00fcnf\n'
    with shown(tmp_path / 'absent'):
        pass
    assert capsys.readouterr().out == ''


@pytest.mark.slow
def test_two_processes_train_and_one_scores(task, capfd):
    from dataclasses import replace

    options = {'processes': 2, 'shard_base': True}
    run = train_own(replace(task, options=options), 'lora')
    out = capfd.readouterr().out
    assert out.count('the frozen base is sharded') == 1
    assert (run.folder / 'console.log').read_text() in out
    assert (run.record.status, run.record.test_reads) == ('done', 1)
    assert run.record.data['test'].count == 3 * 2
    assert run.record.score > 60  # a third by chance


def test_a_base_to_be_shared_by_one_process_is_one_line(task):
    from dataclasses import replace

    for options, match in (
        ({'shard_base': True}, 'this one has one; start several'),
        ({'deepspeed': 3}, 'this one has one; start several|not installed'),
        ({'deepspeed': 4}, 'is 1, 2 or 3; got 4'),
        ({'processes': 'two'}, "processes is a whole number from 1 to .* got 'two'"),
    ):
        with pytest.raises(PETLError, match=match):
            train_own(replace(task, options=options), 'lora')


def test_channels_are_those_of_the_trunk(task):
    from dataclasses import replace

    from mmpetl.benchmark.job_config import compose_job

    for rgb in (True, False):
        trunk = replace(task.trunk, rgb=rgb)
        job = replace(task, trunk=trunk).job('LoRA')
        # What a recipe says already is no option, and changes no run's id.
        assert any(key.endswith('_rgb') for key in job.options) is not rgb
        assert compose_job(job, 'unused').model.data_preprocessor.to_rgb is rgb


def test_a_batch_may_be_made_of_several_passes(task):
    from dataclasses import replace

    from mmpetl.benchmark.job_config import compose_job

    options = {'batch': 6, 'train_dataloader.batch_size': 2}
    config = compose_job(replace(task, options=options).job('LoRA'), 'unused')
    assert config.optim_wrapper.accumulative_counts == 3
    assert config.train_dataloader.batch_size == 2


def test_a_search_keeps_no_features(task):
    from dataclasses import replace

    with pytest.raises(PETLError, match='leave cache_features out, or name a method'):
        run_line(replace(task, options={'cache_features': True}), 'auto')


def test_what_does_not_go_together_is_refused(task):
    for args, match in (
        ({'method': 'auto', 'petl_options': {'rank': 2}}, 'leave out rank'),
        ({'method': 'lora', 'methods': ['ssf']}, 'named for auto to try'),
        ({'method': 'auto', 'budget': '20'}, 'is written 90s'),
        ({'method': 'lora', 'petl_options': {'rnak': 2}}, "Did you mean 'rank'"),
        ({'method': 'auto', 'methods': ['loraa']}, "Did you mean 'LoRA'"),
    ):
        with pytest.raises(PETLError, match=match):
            run_line(task, **args, say=lambda line: None)


def test_the_guide_is_what_runs(tmp_path, monkeypatch, capsys):
    """Its digits, its first command on them for some steps, and its prediction."""
    import runpy
    import shlex

    from mmpetl.cli.commands.predict import main

    root = Path(__file__).parents[2]
    text = (root / 'docs' / 'own_pictures.md').read_text(encoding='utf-8')
    pictures, use, _ = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    said = re.findall(r'(?m)^(?:python|mmpetl) (\S+) (.*/own/digits.*)$', text)
    commands = [line for line in said if '--out found.csv' not in line[1]]
    (train, words), (predict, shown), (again, auto_words) = commands
    assert auto_words.startswith('auto ')
    assert train == again == 'train-own'
    (tmp_path / 'configs').symlink_to(root / 'configs')
    monkeypatch.chdir(tmp_path)
    exec(compile(pictures, 'own_pictures.md', 'exec'), {})
    script = 'tools/train_own.py'
    few = shlex.split(f'{words} --epochs 1 --batch-size 60')
    monkeypatch.setattr(sys, 'argv', [script, *few])
    runpy.run_path(str(root / script), run_name='__main__')
    assert (tmp_path / 'work_dirs/own/digits/lora.html').is_file()
    capsys.readouterr()
    assert predict == 'predict'
    main(shlex.split(shown))
    assert capsys.readouterr().out.count('%  digit_') == 3
    exec(compile(use, 'own_pictures.md', 'exec'), {})
    assert capsys.readouterr().out.count("name='digit_") == 3
