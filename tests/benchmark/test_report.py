"""The report page: what goes into it, and how it behaves in a browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from mmpetl.benchmark import report
from mmpetl.benchmark.cards import Measured
from mmpetl.benchmark.choosing import Limits, choose
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.report import build_page, page_data, read_pictures, write_report
from mmpetl.benchmark.report.browser import NAMES, browser, find_browser
from mmpetl.benchmark.report.cards import make_cards, markdown
from mmpetl.benchmark.report.data import MAX_POINTS, thin, to_script
from mmpetl.benchmark.report.details import details
from mmpetl.benchmark.report.pairs import interval
from mmpetl.benchmark.statistics import compare_pairs
from mmpetl.benchmark.tables import build_tables
from mmpetl.core import PETLError

EVIL = '</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2>'


def png(width: int = 3, height: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', crc)

    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    rows = b''.join(b'\0' + b'\x80' * width for _ in range(height))
    body = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows))
    return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def put_picture(out: Path, **words: str) -> None:
    folder = out / 'pictures'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tsne.png').write_bytes(png())
    facts = {'title': 'T', 'caption': 'C', 'alt': 'A', 'section': 'Features', **words}
    (folder / 'tsne.json').write_text(json.dumps(facts))


# ---- what goes in ------------------------------------------------------------------


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


# ---- how it looks ------------------------------------------------------------------


def _luminance(colour: np.ndarray) -> np.ndarray:
    return _linear(colour) @ np.array([0.2126, 0.7152, 0.0722])


def _linear(colour: np.ndarray) -> np.ndarray:
    return np.where(
        colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4
    )


def _contrast(a: np.ndarray, b: np.ndarray) -> float:
    low, high = sorted((float(_luminance(a)), float(_luminance(b))))
    return (high + 0.05) / (low + 0.05)


def _schemes() -> dict[str, dict[str, np.ndarray]]:
    """Colours of the page by scheme and name, in [0, 1]."""
    text = (Path(report.__file__).parent / 'page.css').read_text()
    light, dark = text.split('@media (prefers-color-scheme: dark)')
    dark = dark.split('* { box-sizing')[0]
    found = {}
    for name, part in (('light', light), ('dark', dark)):
        pairs = re.findall(r'--([\w-]+): (#[0-9a-f]{6});', part)
        found[name] = {
            key: np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            for key, value in pairs
        }
    assert set(found['light']) == set(found['dark'])
    return found


SIGHTS = {
    'all cones': np.eye(3),
    'no long': np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    'no middle': np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    'no short': np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
"""Machado, Oliveira and Fernandes (2009), severity 1, of linear RGB."""


def _oklab(linear: np.ndarray) -> np.ndarray:
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(np.clip(linear, 0, 1) @ to_cones.T) @ to_lab.T


def test_the_formulas_of_sight_are_right():
    white, black = np.ones(3), np.zeros(3)
    assert _contrast(white, black) == pytest.approx(21)
    assert _oklab(white) == pytest.approx([1, 0, 0], abs=1e-4)
    for matrix in SIGHTS.values():
        assert matrix.sum(1) == pytest.approx(1, abs=1e-5)  # grey stays grey


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_and_graphics_stand_out(scheme):
    colours = _schemes()[scheme]
    for text in ('ink', 'soft', 'accent', 'warn'):
        for ground in ('paper', 'panel', 'tint', 'warn-tint'):
            if (text, ground) in (('accent', 'warn-tint'), ('warn', 'tint')):
                continue  # never on one another
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for end in ('low', 'mid', 'high'):  # numbers in the cells of maps
        assert _contrast(colours['ink'], colours[end]) >= 4.5, end
    for graphic in ('edge', 'accent', *(f'c{i}' for i in range(8))):
        for ground in ('paper', 'panel'):
            assert _contrast(colours[graphic], colours[ground]) >= 3, graphic


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('sight', SIGHTS)
def test_lines_are_told_apart_by_every_eye(scheme, sight):
    colours = _schemes()[scheme]
    lines = _linear(np.array([colours[f'c{i}'] for i in range(8)]))
    seen = _oklab(np.clip(lines @ SIGHTS[sight].T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)
    # A step of 0.02 is just seen; symbols and dashes are the second code.
    assert apart[~np.eye(8, dtype=bool)].min() > 0.1


# ---- how it behaves ----------------------------------------------------------------


@pytest.fixture(scope='module')
def chromium():
    if find_browser() is None:
        pytest.skip(f'no browser: none of {", ".join(NAMES)} is on the PATH')
    pytest.importorskip('playwright.sync_api')
    with browser() as found:
        yield found


@pytest.fixture(scope='module')
def many():
    return synthetic.records(2500)


@pytest.fixture(scope='module')
def page_file(many, tmp_path_factory):
    out = tmp_path_factory.mktemp('report')
    put_picture(out)
    path = out / 'report.html'
    text = build_page(many, read_pictures(out), 'Synthetic')
    path.write_text(text, encoding='utf-8')
    return path


class Watched:
    """A page, with what it asked for and complained of."""

    def __init__(self, chromium, path, width=1280, height=800, **kwargs):
        size = {'width': width, 'height': height}
        self.page = chromium.new_page(viewport=size, **kwargs)
        self.page.set_default_timeout(120_000)  # a busy machine is no fault of a page
        self.requests, self.complaints = [], []
        self.page.on('request', lambda r: self.requests.append(r.url))
        self.page.on('pageerror', lambda e: self.complaints.append(str(e)))
        self.page.on(
            'console',
            lambda m: (
                self.complaints.append(m.text)
                if m.type in ('error', 'warning')
                else None
            ),
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_selector('html[data-ready]')


@pytest.fixture(scope='module')
def watched(chromium, page_file):
    found = Watched(chromium, page_file)
    yield found
    found.page.close()


@pytest.fixture
def page(watched):
    watched.page.click('#f-reset')
    watched.page.evaluate('window.scrollTo(0, 0)')
    return watched.page


def column(page, name: str) -> list[str]:
    """Texts of a column of the leaderboard by the beginning of its head."""
    heads = page.locator('#board thead button').all_inner_texts()
    place = next(i for i, head in enumerate(heads) if head.startswith(name))
    return page.locator(f'#board tbody td:nth-child({place + 1})').all_inner_texts()


def test_it_says_when_it_was_ready(watched):
    assert watched.page.evaluate('+document.documentElement.dataset.ready') > 0
    assert watched.page.locator('#board tbody tr').count() == 31


def test_the_page_and_the_tables_say_the_same(page, many):
    page.select_option('#f-backbone', 'ViT-B/16')
    tables = build_tables(many, protocol='honest', suites=['vtab'])
    (table,) = [t for t in tables if t.backbone == 'ViT-B/16']
    own = {row.label: row for row in table.rows}
    names = column(page, 'Method')
    shown = zip(
        names,
        column(page, 'Plain mean'),
        column(page, 'Group mean'),
        column(page, 'PPT'),
        column(page, 'Trainable'),
        strict=True,
    )
    for name, plain, group, ppt, trainable in shown:
        row = own.pop(name)
        assert plain.split()[0] == f'{row.means["plain"].value:.2f}'
        if row.complete and row.means['plain'].spread is not None:
            assert plain.split()[2] == f'{row.means["plain"].spread:.2f}'
        assert group.split()[0] == f'{row.means["group"].value:.2f}'
        assert ppt == ('–' if row.ppt is None else f'{row.ppt:.3f}')
        assert trainable == f'{row.trainable[0]:,}'
    assert not own
    complete = [row.label for row in table.rows if row.complete]
    assert names[: len(complete)] == complete


def test_it_sorts_by_mouse_and_by_keyboard(page):
    head = page.locator('#board th:has(button[data-key=trainable])')
    head.locator('button').click()
    assert head.get_attribute('aria-sort') == 'ascending'
    counts = [int(x.replace(',', '')) for x in column(page, 'Trainable')]
    assert counts == sorted(counts)
    # The focus stays on the button, so that Enter turns the order.
    page.keyboard.press('Enter')
    assert head.get_attribute('aria-sort') == 'descending'
    assert column(page, 'Method')[0] == 'Full'
    page.keyboard.press('Shift+Tab')
    page.keyboard.press('Space')
    assert page.locator('#board th[aria-sort=descending]').inner_text() == 'PPT'
    values = column(page, 'PPT')
    assert values[-1] == '–'
    assert values[:-1] == sorted(values[:-1], reverse=True)


def test_pictures_enlarge_by_mouse_and_by_keyboard(page):
    button = page.get_by_role('button', name='Enlarge: T')
    large = page.locator('dialog.large')
    button.click()
    assert large.locator('img').get_attribute('alt') == 'A'
    assert large.is_visible()
    large.click()
    assert not large.is_visible()
    button.press('Enter')
    assert large.is_visible()
    page.keyboard.press('Escape')
    assert not large.is_visible()


def test_it_filters(page):
    rows = page.locator('#board tbody tr')
    page.get_by_role('button', name='adapter', exact=True).click()
    assert 'adapter' not in column(page, 'Family')
    page.click('#f-reset')
    page.fill('#f-text', 'fact')
    assert set(column(page, 'Method')) == {'FacTTK', 'FacTTT'}
    page.fill('#f-text', 'nothing of the sort')
    assert 'No method passes' in rows.first.inner_text()
    page.click('#f-reset')
    page.select_option('#f-group', 'structured')
    assert {text.split()[0] for text in column(page, 'Tasks')} == {'8/8', '6/8'}
    page.select_option('#f-group', '')
    page.select_option('#f-backbone', '')
    assert set(column(page, 'Backbone')) == {'ViT-B/16', 'Swin-B'}
    page.select_option('#f-protocol', 'published')
    assert 'published protocol' in page.inner_text('#status')
    assert all(name.endswith('(swin)') for name in column(page, 'Method'))
    page.click('#f-reset')
    budget = page.locator('#f-budget')
    budget.focus()
    page.keyboard.press('Home')
    assert column(page, 'Method') == ['LinearProbe']
    assert page.inner_text('#budget-out') == '≤ 0'
    page.keyboard.press('End')
    assert page.inner_text('#budget-out') == 'any'


def fields(page) -> list[dict[str, str]]:
    """The CSV of the leaderboard, as it is saved."""
    with page.expect_download() as found:
        page.click('#save-csv')
    text = Path(found.value.path()).read_text(encoding='utf-8')
    return list(csv.DictReader(io.StringIO(text)))


def test_a_link_brings_the_state_back(chromium, page_file, page):
    page.select_option('#f-group', 'structured')
    page.get_by_role('button', name='adapter', exact=True).click()
    page.locator('#board button[data-key=trainable]').click()
    page.select_option('#heat-mode', 'rank')
    page.fill('#f-text', 'a')
    page.click('#copy-link')
    link = page.input_value('#link')
    state = [page.inner_text('#status'), column(page, 'Method')]
    assert 'adapter' not in column(page, 'Family')
    other = Watched(chromium, page_file)
    other.page.goto('about:blank')
    other.page.goto(link)
    other.page.wait_for_selector('html[data-ready]')
    assert [other.page.inner_text('#status'), column(other.page, 'Method')] == state
    head = other.page.locator('#board th:has(button[data-key=trainable])')
    assert head.get_attribute('aria-sort') == 'ascending'
    assert other.page.input_value('#heat-mode') == 'rank'
    assert other.page.input_value('#f-text') == 'a'
    # The same tab follows a link too, and says what the page does not have.
    other.page.evaluate("location.hash = '#?suite=moon&protocol=published&off=none'")
    other.page.wait_for_function(
        "document.querySelector('#status').textContent.includes('moon')"
    )
    said = other.page.inner_text('#status')
    assert 'published protocol' in said
    assert 'does not have: suite moon, family none' in said
    assert other.complaints == []
    other.page.close()


def test_the_csv_holds_what_is_shown(page, many):
    page.select_option('#f-backbone', 'ViT-B/16')
    page.fill('#f-text', 'ad')
    lines = fields(page)
    assert [line['method'] for line in lines] == column(page, 'Method')
    (table,) = [
        t
        for t in build_tables(many, protocol='honest', suites=['vtab'])
        if t.backbone == 'ViT-B/16'
    ]
    own = {row.label: row for row in table.rows}
    for line in lines:
        row = own[line['method']]
        plain = row.means['plain']
        assert float(line['Plain mean (19)']) == pytest.approx(plain.value, rel=1e-5)
        assert line['tasks'] == str(plain.tasks)
        assert line['backbone'] == 'ViT-B/16'
        if plain.spread is not None and row.complete:
            spread = float(line['Plain mean (19) spread'])
            assert spread == pytest.approx(plain.spread, rel=1e-4)
            assert int(line['seeds']) > 1
        assert float(line['peak_memory_bytes']) > 1e9


def test_the_latex_holds_what_is_shown(page):
    page.select_option('#f-backbone', 'ViT-B/16')
    page.fill('#f-text', 'fact')
    with page.expect_download() as found:
        page.click('#save-tex')
    text = Path(found.value.path()).read_text(encoding='utf-8')
    lines = [line for line in text.splitlines() if line.startswith('FacT')]
    assert [line.split(' & ')[0] for line in lines] == column(page, 'Method')
    best = column(page, 'Plain mean')[0].split()[0]
    assert text.count(f'\\textbf{{{best}}}') == 1
    assert '\\label{tab:vtab-vit-b-16-honest}' in text


def test_a_row_and_a_cell_lead_to_their_runs(chromium, page_file, page, many):
    button = page.locator('#board tr[data-label=Mona] .open')
    button.focus()
    page.keyboard.press('Enter')
    dialog = page.locator('#runs')
    assert dialog.is_visible()
    mine = [r for r in many if r.job.method == 'Mona' and r.backbone == 'ViT-B/16']
    mine = [r for r in mine if r.job.recipe.startswith('vtab')]
    assert page.locator('#runs-list tbody tr').count() == len(mine)
    record = next(r for r in mine if r.status == 'done' and r.task == 'dtd')
    page.click(f'#runs-list [data-run="{record.job.id}"]')
    facts = dict(
        zip(
            page.locator('#runs-detail dt').all_inner_texts(),
            page.locator('#runs-detail dd').all_inner_texts(),
            strict=True,
        )
    )
    assert facts['train digest'] == record.data['train'].digest
    assert facts['host'] == 'made-up'
    assert facts['batch per step'] == '64'
    assert facts['config hash'] == record.config_hash
    assert facts['CUDA'] == 'not recorded'
    assert page.locator('#runs-detail .curves svg').count() == len(record.curves)
    link = page.evaluate('location.href')
    page.keyboard.press('Escape')
    assert not dialog.is_visible()
    other = Watched(chromium, page_file)
    other.page.goto('about:blank')
    other.page.goto(link)
    assert other.page.locator('#runs .note').first.inner_text() == record.job.id
    other.page.close()
    lost = next(
        r
        for r in many
        if r.status == 'failed'
        and r.backbone == 'ViT-B/16'
        and r.job.recipe.startswith('vtab')
    )
    page.locator(f'#board tr[data-label={lost.job.method}]').click(
        position={'x': 300, 'y': 8}
    )
    page.click(f'#runs-list [data-run="{lost.job.id}"]')
    assert page.inner_text('#runs-detail .error') == lost.error
    page.click('#runs-close')


def test_pairs_are_those_of_the_tables(page, many):
    page.select_option('#f-backbone', 'ViT-B/16')
    page.select_option('#pair-of', 'Mona')
    (table,) = [
        t
        for t in build_tables(many, protocol='honest', suites=['vtab'])
        if t.backbone == 'ViT-B/16'
    ]
    pairs = {(p.a, p.b): p for p in compare_pairs(table.runs()) if 'Mona' in (p.a, p.b)}
    lines = page.locator('#pairs-of tbody tr').all_inner_texts()
    assert len(lines) == len(pairs) == 30
    for line in lines:
        other, difference, _, counts, tasks, runs, p_tasks, _, verdict = line.split(
            '\t'
        )
        found = pairs.get(('Mona', other)) or pairs[other, 'Mona']
        shown = float(difference.replace('−', '-'))
        sign = 1 if found.a == 'Mona' else -1
        assert shown == pytest.approx(sign * found.difference, abs=0.0051)
        assert int(runs) == found.num_runs
        assert (verdict == 'not shown to differ') == (found.p_tasks >= 0.05)


LIMITS = (
    {},
    {'folds': True},
    {'memory': 4.6, 'step': 90},
    {'trainable': 200_000, 'folds': True},
    {'trainable': 0},
)


@pytest.mark.parametrize('asked', LIMITS, ids=str)
def test_the_choice_is_that_of_the_command(page, many, asked):
    limits = Limits(
        memory_bytes=asked['memory'] * 2**30 if 'memory' in asked else None,
        trainable=asked.get('trainable'),
        step_seconds=asked['step'] / 1000 if 'step' in asked else None,
        folds=asked.get('folds', False),
        backbone='Swin-B',
        suites=['vtab'],
    )
    (found,) = choose(many, limits)
    page.select_option('#f-backbone', 'Swin-B')
    for key in ('memory', 'trainable', 'step'):
        page.fill(f'#limit-{key}', str(asked.get(key, '')))
    page.set_checked('#limit-folds', asked.get('folds', False))
    page.evaluate('mmpetlReport.drawAll()')
    shown = {
        cells[0]: cells[2:]
        for cells in (
            line.locator('td').all_inner_texts()
            for line in page.locator('#choose .choice tbody tr').all()
        )
    }
    assert list(shown) == [one.label for one in found.candidates]
    for one in found.candidates:
        rank, mean, best, p, verdict, *_, folds = shown[one.label]
        numbers = [float(x) for x in re.findall(r'[\d.]+', f'{rank} {mean}')]
        own = [one.rank, one.mean]
        if one.rank_interval:
            rank_ends = [one.rank_interval.low, one.rank_interval.high]
            mean_ends = [one.mean_interval.low, one.mean_interval.high]
            own = [one.rank, *rank_ends, one.mean, *mean_ends]
            assert float(best.split()[0]) == pytest.approx(100 * one.best, abs=0.0501)
        assert numbers == pytest.approx(own, abs=0.00501)
        assert (verdict == 'shares the first place') == one.tied
        if one.p is not None:
            assert float(p) == pytest.approx(one.p, rel=0.06, abs=0.00051)
        assert folds == ('yes' if one.facts.folds else 'no')
    left = page.locator('#choose .left-out li').all_text_contents()
    names = [*found.excluded, *found.incomplete]
    assert sorted(line.split(':')[0] for line in left) == sorted(names)
    if len(asked) == 0:
        assert found.candidates[0].rank_interval is not None
        assert len(found.candidates) == 6


PLACE_OF_A_POINT = """() => {
    const plot = document.querySelector('[data-plot=params]');
    const point = plot.querySelector('.trace path.point').getBoundingClientRect();
    const area = plot.querySelector('.nsewdrag').getBoundingClientRect();
    return {
        x: point.x + point.width / 2 - area.x, y: point.y + point.height / 2 - area.y,
    };
}"""


def test_plots_answer_to_hovering(page):
    # A plot that is drawn anew while it comes into view forgets where the mouse is.
    page.evaluate('mmpetlReport.drawAll()')
    area = page.locator('[data-plot=params] .nsewdrag')
    area.hover(position={'x': 2, 'y': 2})
    area.hover(position=page.evaluate(PLACE_OF_A_POINT))
    page.locator('[data-plot=params] .hovertext').first.wait_for()
    text = page.locator('[data-plot=params] .hovertext').first.text_content()
    assert 'PPT' in text
    page.locator('[data-plot=params] .numbers summary').click()
    front = page.locator('[data-plot=params] .numbers tr:has(td:text-is("yes"))')
    assert 'LinearProbe' in front.first.inner_text()


def test_every_plot_is_drawn(page):
    page.evaluate('mmpetlReport.drawAll()')
    assert page.locator('.canvas svg.main-svg').count() >= 6
    assert page.evaluate('document.documentElement.scrollWidth') == 1280
    # An empty cell where nothing ran, a cross where all runs failed.
    heat = page.locator('[data-plot=heat] .hm text')
    assert heat.count() > 500
    assert page.locator('#rank-panels svg').count() == 1
    assert 'critical difference' in page.inner_text('#rank-panels')
    assert '†' in page.inner_text('#published-table')
    assert 'made up: loss' in page.inner_text('#failures')


def test_it_is_usable_by_keyboard(page):
    # What can be pressed is a button, a link or a field: nothing is a mere click.
    assert page.locator('[onclick]').count() == 0
    summary = page.locator('#method-lora summary')
    summary.focus()
    page.keyboard.press('Enter')
    assert page.locator('#method-lora[open] .text').is_visible()
    page.keyboard.press('Enter')


def test_a_name_in_the_board_opens_its_card(page):
    page.locator('#board a', has_text=re.compile('^Mona$')).click()
    page.wait_for_selector('#method-mona[open]')


def test_it_fits_a_phone_in_the_dark(chromium, page_file):
    small = Watched(chromium, page_file, 360, 740, color_scheme='dark')
    # The first stop of the keyboard is a way past the rest, and can be seen.
    small.page.keyboard.press('Tab')
    focus = 'getComputedStyle(document.activeElement).outlineStyle'
    assert small.page.evaluate('document.activeElement.className') == 'skip'
    assert small.page.evaluate(focus) == 'solid'
    small.page.keyboard.press('Enter')
    assert small.page.evaluate('location.hash') == '#leaderboard'
    small.page.evaluate('mmpetlReport.drawAll()')
    assert small.page.evaluate('document.documentElement.scrollWidth') == 360
    assert small.page.locator('#board tbody tr').first.is_visible()
    paper = small.page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert sum(map(int, re.findall(r'\d+', paper)[:3])) < 150
    assert small.complaints == []
    small.page.close()


@pytest.mark.parametrize('width', [1400, 390])
def test_nothing_is_wider_than_the_window(chromium, page_file, width):
    found = Watched(chromium, page_file, width, 900)
    found.page.evaluate('mmpetlReport.drawAll()')
    assert found.page.evaluate('document.documentElement.scrollWidth') == width
    if width == 1400:
        # Memory and time stand on the screen, and so does every other column.
        board = found.page.locator('.board')
        assert board.evaluate('(x) => x.scrollWidth - x.clientWidth') == 0
        for name in ('memory', 'step'):
            head = found.page.locator(f'#board button[data-key={name}]').bounding_box()
            assert head['x'] + head['width'] < width
    found.page.locator('#board .open').first.click()
    runs = found.page.locator('#runs')
    assert runs.evaluate('(x) => x.scrollWidth - x.clientWidth') == 0
    found.page.close()


def test_a_bar_begins_at_zero(page):
    cells = page.locator('#board td.bar')
    for place in (0, cells.count() - 1):
        cell = cells.nth(place)
        value = float(cell.inner_text().split()[0])
        wide = cell.evaluate("(x) => x.style.getPropertyValue('--w')")
        assert float(wide.rstrip('%')) == pytest.approx(value, abs=0.06)


def test_it_prints(page, tmp_path):
    path = tmp_path / 'page.pdf'
    page.pdf(path=path, prefer_css_page_size=True)
    pages = len(re.findall(rb'/Type\s*/Page\b', path.read_bytes()))
    assert 4 <= pages <= 20
    page.emulate_media(media='print')
    # Buttons in a head keep it from being repeated; heads without one are.
    assert not page.locator('#board thead button').first.is_visible()
    assert page.locator('#board thead .paper').first.is_visible()
    for words in ('h2', '.lead'):
        rule = '(x) => getComputedStyle(x).breakAfter + getComputedStyle(x).breakInside'
        assert page.locator(words).first.evaluate(rule).startswith('avoid')
    page.emulate_media(media='screen')
    # And is as it was: plots answer again.
    assert page.evaluate("'print' in document.documentElement.dataset") is False
    page.evaluate('mmpetlReport.drawAll()')
    assert page.locator('[data-plot=params] .nsewdrag').count() == 1


def test_nothing_in_records_runs(chromium, tmp_path):
    done = synthetic.records(40)
    bad = []
    for i, record in enumerate(done):
        job = replace(record.job, method=f'{EVIL}{i}', variant=EVIL)
        bad.append(replace(record, job=job, family=EVIL, backbone=EVIL, group=EVIL))
    lost = replace(bad[0], status='failed', metrics={}, error=EVIL)
    bad[0] = lost
    path = tmp_path / 'report.html'
    path.write_text(build_page(bad, title=EVIL), encoding='utf-8')
    found = Watched(chromium, path)
    found.page.evaluate('mmpetlReport.drawAll()')
    assert found.page.evaluate('window.pwned') is None
    assert found.page.locator('img').count() == 0
    assert '<script>' in found.page.inner_text('#board')
    assert '<script>' in found.page.inner_text('#failures')
    assert found.complaints == []
    assert found.requests == [path.as_uri()]
    found.page.close()


def test_no_complaint_and_no_request(watched, page_file):
    """After all that was done to the page above."""
    watched.page.evaluate('mmpetlReport.drawAll()')
    assert watched.complaints == []
    assert watched.requests == [page_file.as_uri()]
