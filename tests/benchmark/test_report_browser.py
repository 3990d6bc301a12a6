"""How the report page behaves in a browser."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from made_up_pictures import EVIL, put_picture

from mmpetl.benchmark.choosing import Limits, choose
from mmpetl.benchmark.report import build_page, read_pictures
from mmpetl.benchmark.report.browser import NAMES, browser, find_browser
from mmpetl.benchmark.statistics import compare_pairs
from mmpetl.benchmark.tables import build_tables


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


def test_a_row_that_trained_longer_has_no_place(chromium, tmp_path):
    records = [
        replace(record, steps=16_000 if record.job.method == 'GPS' else 4_000)
        for record in synthetic.records(200)
        if record.status == 'done' and record.job.recipe.startswith('vtab')
    ]
    path = tmp_path / 'report.html'
    path.write_text(build_page(records), encoding='utf-8')
    found = Watched(chromium, path).page
    found.evaluate('mmpetlReport.drawAll()')
    places = dict(zip(column(found, 'Method'), column(found, '#'), strict=True))
    assert places.pop('GPS ‡') == '–'
    assert '1' in places.values()
    assert 'GPS ‡ is not to be compared' in found.inner_text('#board-warnings')
    names = found.locator('#choose .choice td:first-child').all_inner_texts()
    assert 'GPS' not in names
    assert len(names) > 2
    left = ' '.join(found.locator('#choose .left-out li').all_text_contents())
    assert 'GPS: is not to be compared' in left
    found.close()
