"""The report page: what goes into it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic

from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.report import build_page, page_data, read_pictures, write_report
from mmpetl.benchmark.report.browser import NAMES, browser, find_browser
from mmpetl.benchmark.report.cards import make_cards, markdown
from mmpetl.benchmark.report.data import MAX_POINTS, thin, to_script
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
    assert len(re.findall('<script', page.lower())) == 4 + _in_plotly('<script')


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


def test_it_prints(page, tmp_path):
    path = tmp_path / 'page.pdf'
    page.pdf(path=path, prefer_css_page_size=True)
    pages = len(re.findall(rb'/Type\s*/Page\b', path.read_bytes()))
    assert 4 <= pages <= 20
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
