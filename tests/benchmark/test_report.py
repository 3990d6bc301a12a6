"""The report page: what goes into it, and what it says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import synthetic
from made_up_pictures import EVIL, put_picture

from mmpetl.benchmark.cards import Measured
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.report import build_page, page_data, read_pictures, write_report
from mmpetl.benchmark.report.cards import make_cards, markdown
from mmpetl.benchmark.report.data import MAX_POINTS, thin, to_script
from mmpetl.benchmark.report.details import details
from mmpetl.benchmark.report.pairs import interval
from mmpetl.core import PETLError


def test_columns_hold_every_final_run_once():
    records = synthetic.records(60)
    records.append(replace(records[0], job=replace(records[0].job, stage='tune')))
    main = page_data(records)['main']
    assert (main['count'], main['left_out']) == (60, 1)
    column = main['columns']['id']
    ids = [column['levels'][code] for code in column['codes']]
    assert ids == [record.job.id for record in records[:60]]
    scores = [s for s in main['columns']['score'] if s is not None]
    assert len(scores) == sum(record.status == 'done' for record in records[:60])


def test_a_task_of_two_suites_is_in_both():
    record = synthetic.records(1)[0]
    found = [
        replace(record, job=replace(record.job, recipe=f'{suite}/{record.task}'))
        for suite in ('vtab', 'few')
    ]
    column = page_data(found)['main']['columns']['suite']
    assert [column['levels'][code] for code in column['codes']] == ['vtab', 'few']


def test_script_data_cannot_leave_its_element():
    data = {'a': EVIL, 'b': '<!--', 'c': '\u2028&'}
    text = to_script(data)
    assert not re.search('[<>&\u2028]', text)
    assert json.loads(text) == data


def test_thinning_keeps_both_ends():
    points = [[i, i] for i in range(1000)]
    kept = thin(points, MAX_POINTS)
    assert len(kept) == MAX_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thin(points[:5], MAX_POINTS) == points[:5]


def test_the_page_tells_how_settings_were_found():
    records = [r for r in synthetic.records(80) if r.status == 'done'][:6]
    plain = build_page(records)
    assert '6 of 6 runs took the settings of the plan' in plain
    assert 'search-table' not in plain
    trials = [
        {'number': 0, 'status': 'done', 'value': 61.04, 'options': {'a.lr': 1e-3}},
        {'number': 1, 'status': 'pruned', 'value': None, 'options': {'a.lr': 1}},
        {'number': 2, 'status': 'done', 'value': 64.0, 'options': {'a.lr': 0.00316227}},
    ]
    found = {
        'budget': 3,
        'split': 'train800 / val200',
        'best': 2,
        'default_value': 61.04,
        'best_value': 64.0,
        'trials': trials,
    }
    searched = replace(records[0], search=found)
    seed = replace(searched, job=replace(searched.job, seed=searched.job.seed + 50))
    leaf = replace(records[1], job=replace(records[1].job, leaf=True))
    page = build_page([searched, seed, leaf, *records[2:]])
    assert '4 of 7 runs took the settings of the plan' in page
    assert '1 of 7 runs took the settings published' in page
    table = re.search('<table id="search-table">(.*?)</table>', page, re.DOTALL)[1]
    cells = re.findall('<td[^>]*>(.*?)</td>', table)
    assert cells[0] == records[0].job.method
    assert cells[2:] == [
        *('3 (1 pruned)', 'train800 / val200', '61.0', '64.0', 'lr = 0.00316')
    ]


def test_names_and_errors_are_text_in_the_page():
    job = Job('vtab/dtd', EVIL, variant=EVIL)
    lost = Record(job, 'failed', task=EVIL, family=EVIL, backbone=EVIL, error=EVIL)
    page = build_page([lost], title=EVIL)
    assert EVIL not in page
    assert '<script>window' not in page
    assert '<img src=x' not in page
    # Every script element that opens is one of the template's.
    assert len(re.findall('<script', page.lower())) == 5 + _in_plotly('<script')


def _in_plotly(text: str) -> int:
    from mmpetl.benchmark.report.page import plotly_source

    return plotly_source().lower().count(text)


def test_the_page_asks_nothing_of_the_network():
    page = build_page(synthetic.records(5))
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert 'http' not in policy
    head = page[: page.index('<script type="text/plain"')]
    assert not re.search(r'<(script|img|iframe|source)\b[^>]*\ssrc="(?!data:)', head)
    assert not re.search(r'<link\b[^>]*href="(?!data:)', head)


def test_cards_hold_the_documentation():
    lora, unknown = make_cards(['LoRA', 'Ripple'])
    assert 'low-rank sum' in lora.body
    assert '<table>' in lora.body
    assert lora.source == 'docs/methods/lora.md'
    assert 'No method of this name' in unknown.body


def test_cards_without_pages_say_so(tmp_path):
    (card,) = make_cards(['LoRA'], tmp_path)
    assert card.source == 'docstring of the class'
    assert 'rank' in card.body


def test_markdown_renders_no_raw_html_and_no_dead_links():
    body = markdown(
        '# A\n\n<script>x</script> [b](mona.md) [c](../x.md) [d](https://e.org) '
        '![p](https://e.org/p.png) [j](javascript:alert(1))',
        {'mona.md': 'method-mona'},
    )
    assert '<h3>' in body
    assert '<script>' not in body
    assert '<img' not in body
    assert 'href="#method-mona"' in body
    assert 'x.md' not in body
    assert 'href="https://e.org"' in body
    assert 'href="javascript' not in body


def test_pictures_are_carried_with_their_words(tmp_path):
    put_picture(tmp_path, caption='<b>seen</b>', alt='"points"')
    (picture,) = read_pictures(tmp_path)
    assert (picture.width, picture.height) == (3, 2)
    page = build_page(synthetic.records(3), [picture])
    assert 'src="data:image/png;base64,' in page
    assert '&lt;b&gt;seen' in page
    assert 'alt="&quot;points&quot;"' in page
    assert '<h3>Features</h3>' in page


def test_a_picture_without_words_is_refused(tmp_path):
    put_picture(tmp_path)
    words = tmp_path / 'pictures' / 'tsne.json'
    words.write_text('{"title": "T"}')
    with pytest.raises(PETLError, match='says no caption, alt, section'):
        read_pictures(tmp_path)
    words.unlink()
    with pytest.raises(PETLError, match=r'no tsne\.json beside it'):
        read_pictures(tmp_path)


def test_a_folder_becomes_one_file(tmp_path):
    store = RecordStore(tmp_path)
    for record in synthetic.records(3):
        store.write(record)
    put_picture(tmp_path, title='Seen by all')
    shutil.copytree(tmp_path / 'pictures', tmp_path / 'analysis' / 'agreement')
    path = write_report(tmp_path, title='A & B')
    assert path == tmp_path / 'report.html'
    text = path.read_text()
    assert '<h1>A &amp; B</h1>' in text
    assert text.count('<strong>Seen by all') == 2
    assert not list(tmp_path.glob('*.part'))


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(PETLError, match='holds no record'):
        write_report(tmp_path)


def test_details_hold_each_value_once_and_invent_none():
    done = [r for r in synthetic.records(40) if r.status == 'done'][:3]
    old = replace(done[0], data={}, host='', batch=None, total_seconds=None)
    lost = replace(done[1], status='failed', error='x' * 5000 + 'the end', metrics={})
    found = details([*done, old, lost])

    def value(name, place):
        return found[name]['values'][found[name]['codes'][place]]

    assert found['batch']['values'] == [64, None]
    assert value('data', 0)['train']['digest'] == done[0].data['train'].digest
    assert [value(name, 3) for name in ('data', 'host', 'batch')] == [None] * 3
    assert value('error', 4).endswith('the end')
    assert len(value('error', 4)) == 4000
    assert value('metrics', 4) is None
    assert value('recipe', 0) == done[0].job.recipe
    json.dumps(found, allow_nan=False)


def test_verdicts_and_cards_reach_the_page():
    done = [r for r in synthetic.records(40) if r.status == 'done'][:3]
    ids = [record.job.id for record in done]
    verdicts = dict.fromkeys(ids[:2], 'verified (files)')
    cards = {name: Measured(0.004, False) for name in ids}
    found = page_data(done, verdicts, cards)
    values = found['details']['verified']
    assert [values['values'][code] for code in values['codes']] == [
        'verified (files)',
        'verified (files)',
        None,
    ]
    (item,) = found['main']['statistics']
    assert item['verified'] == {done[0].job.method: '2/3'}
    facts = item['choice']['facts'][done[0].job.method]
    assert (facts['latency'], facts['folds']) == (0.004, False)
    # Where nobody has looked, nothing is said of it.
    assert page_data(done)['main']['statistics'][0]['verified'] == {}


def test_an_interval_is_that_of_student():
    from scipy.stats import ttest_1samp

    gaps = [0.4, 1.3, -0.2, 0.9, 2.2]
    low, high = ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert interval(gaps) == pytest.approx((low, high), abs=1e-4)
    assert interval([1.0]) == (None, None)
