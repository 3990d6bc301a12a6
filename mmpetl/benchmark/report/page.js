(() => {
'use strict';

// ---- small tools ---------------------------------------------------------------
const $ = (selector, root = document) => root.querySelector(selector);
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const SVG = 'http://www.w3.org/2000/svg';

// Everything from records reaches the page as text, never as markup.
function el(tag, attributes = {}, ...children) {
  const node = tag.startsWith('svg:')
    ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === 'text') node.textContent = value;
    else if (key === 'style') node.style.cssText = value;
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
// Plotly reads a few tags in its texts, and %{} in its templates; neither is ours.
const plain = (text) => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
const mean = (xs) => xs.reduce((a, b) => a + b, 0) / xs.length;
function median(xs) {
  const sorted = [...xs].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
function spread(xs) {
  if (xs.length < 2) return null;
  const m = mean(xs);
  return Math.sqrt(xs.reduce((a, x) => a + (x - m) ** 2, 0) / (xs.length - 1));
}
const number = (value, digits) => (value === null ? '–' : value.toFixed(digits));
const count = (value) => Math.round(value).toLocaleString('en');
const several = (n, noun) => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;
function brief(value) {
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)} M`;
  if (value >= 1e3) return `${+(value / 1e3).toPrecision(3)} k`;
  return String(Math.round(value));
}
function bytes(value) {
  return value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(0)} MB`;
}
function seconds(value) {
  return value >= 1 ? `${value.toFixed(2)} s` : `${(value * 1e3).toFixed(1)} ms`;
}

// ---- data ----------------------------------------------------------------------
const DATA = read('data');
const RUNS = [];
{
  const names = Object.keys(DATA.columns);
  const columns = names.map((name) => {
    const column = DATA.columns[name];
    return Array.isArray(column) ? column : column.codes.map((code) => column.levels[code]);
  });
  for (let i = 0; i < DATA.count; i += 1) {
    const run = { place: i };
    names.forEach((name, j) => { run[name] = columns[j][i]; });
    RUNS.push(run);
  }
}
let curveData = null;
const curves = () => (curveData = curveData || read('curves'));
const FAMILIES = [...new Set(RUNS.map((run) => run.family))].sort();
const colourOf = (family) => `var(--c${FAMILIES.indexOf(family) % 8})`;
const SYMBOLS = ['circle', 'square', 'diamond', 'triangle-up', 'cross', 'star', 'hexagon', 'pentagon'];
const CARDS = new Map([...document.querySelectorAll('.card')].map((card) => [card.dataset.method, card]));

function commonest(values) {
  const tally = new Map();
  for (const value of values) tally.set(value, (tally.get(value) || 0) + 1);
  return [...tally].sort((a, b) => b[1] - a[1])[0][0];
}
const state = {};
const inScope = (run) => run.protocol === state.protocol && run.suite === state.suite;
function reset() {
  // The honest protocol is what the benchmark is about, where there is any of it.
  const protocols = RUNS.map((run) => run.protocol);
  state.protocol = protocols.includes('honest') ? 'honest' : commonest(protocols);
  state.suite = commonest(RUNS.filter((run) => run.protocol === state.protocol).map((run) => run.suite));
  state.group = '';
  // One backbone compares like with like; all of them are a choice.
  const backbones = RUNS.filter(inScope).map((run) => run.backbone);
  state.backbone = new Set(backbones).size > 1 ? commonest(backbones) : '';
  state.off = new Set();
  state.budget = Infinity;
  state.text = '';
  state.sort = { key: 'plain', down: true };
}
reset();

// ---- from runs to rows ---------------------------------------------------------
function tasksOf() {
  return DATA.suites[state.suite].tasks.filter(([, group]) => !state.group || group === state.group);
}
function meanOver(parts, pick) {
  const inner = parts.map((part) => part.map(pick).filter((x) => x !== null)).filter((xs) => xs.length);
  return inner.length ? mean(inner.map(mean)) : null;
}
let rows = [];
function aggregate() {
  const tasks = tasksOf();
  const wanted = new Set(tasks.map(([task]) => task));
  const present = RUNS.filter((run) => run.protocol === state.protocol && run.suite === state.suite
    && (!state.backbone || run.backbone === state.backbone));
  // A task that no run of this selection has cannot be missing from one.
  const has = new Set(present.map((run) => run.task));
  const shown = tasks.filter(([task]) => has.has(task));
  const found = new Map();
  for (const run of present) {
    if (!wanted.has(run.task)) continue;
    const key = JSON.stringify([run.label, run.backbone]);
    if (!found.has(key)) {
      found.set(key, { key, label: run.label, method: run.method, family: run.family,
        backbone: run.backbone, runs: [], cells: new Map() });
    }
    const row = found.get(key);
    row.runs.push(run);
    if (!row.cells.has(run.task)) row.cells.set(run.task, { seeds: new Map(), failed: 0 });
    const cell = row.cells.get(run.task);
    if (run.score === null) cell.failed += 1;
    else cell.seeds.set(run.seed, run.score);
  }
  const groups = [...new Set(shown.map(([, group]) => group))];
  for (const row of found.values()) {
    const value = (task) => {
      const cell = row.cells.get(task);
      return cell && cell.seeds.size ? mean([...cell.seeds.values()]) : null;
    };
    const names = shown.map(([task]) => task);
    const parts = groups.map((group) => shown.filter(([, g]) => g === group).map(([task]) => task));
    row.values = new Map(names.map((task) => [task, value(task)]));
    row.of = names.length;
    row.done = names.filter((task) => row.values.get(task) !== null).length;
    row.complete = row.done === row.of;
    row.failed = row.runs.filter((run) => run.error !== null).length;
    row.plain = meanOver([names], value);
    row.group = meanOver(parts, value);
    row.groups = parts.map((part) => meanOver([part], value));
    let shared = null;
    for (const task of names) {
      const cell = row.cells.get(task);
      const seeds = cell ? [...cell.seeds.keys()] : [];
      shared = shared === null ? seeds : shared.filter((seed) => seeds.includes(seed));
    }
    const bySeed = (shared || []).map((seed) => mean(names.map((task) => row.cells.get(task).seeds.get(seed))));
    row.spread = spread(bySeed);
    row.seeds = new Set(row.runs.map((run) => run.seed)).size;
    const good = row.runs.filter((run) => run.score !== null);
    const known = good.map((run) => run.trainable).filter((x) => x !== null);
    // PPT takes the mean over tasks where counts differ.
    const perTask = names.map((task) => good.filter((run) => run.task === task && run.trainable !== null).map((run) => run.trainable));
    const counts = perTask.filter((xs) => xs.length).map(mean);
    row.trainable = counts.length ? mean(counts) : null;
    row.range = known.length ? [Math.min(...known), Math.max(...known)] : null;
    row.ppt = row.complete && row.trainable !== null && row.plain >= 0 && row.plain <= 100
      ? row.plain / 100 * Math.exp(-Math.log10(row.trainable / DATA.scale + 1)) : null;
    const memory = good.map((run) => run.memory).filter((x) => x !== null);
    row.memory = memory.length ? Math.max(...memory) : null;
    const steps = good.map((run) => run.step).filter((x) => x !== null);
    row.step = steps.length ? median(steps) : null;
    row.name = state.backbone || manyBackbones() < 2 ? row.label : `${row.label}, ${row.backbone}`;
  }
  const text = state.text.trim().toLowerCase();
  rows = [...found.values()].filter((row) => !state.off.has(row.family)
    && (row.trainable === null ? state.budget === Infinity : row.trainable <= state.budget)
    && (!text || row.label.toLowerCase().includes(text)));
  rows.shown = shown;
  rows.groupNames = groups;
  rows.total = found.size;
  const ranked = rows.filter((row) => row.complete).sort((a, b) => b.plain - a.plain);
  rows.forEach((row) => { row.position = row.complete ? ranked.indexOf(row) + 1 : null; });
}
const byMean = (a, b) => b.complete - a.complete || (b.plain ?? -1) - (a.plain ?? -1);
const manyBackbones = () => new Set(RUNS.filter(inScope).map((run) => run.backbone)).size;

// ---- leaderboard ---------------------------------------------------------------
// Groups of one task each would say everything twice.
const grouped = () => rows.groupNames.length > 1 && rows.groupNames.length < rows.shown.length;
function boardColumns() {
  const many = rows.shown.length > 1, parts = grouped();
  const columns = [
    { key: 'position', label: '#', get: (row) => row.position, text: (row) => row.position ?? '–' },
    { key: 'label', label: 'Method', left: true, stick: true, get: (row) => row.label.toLowerCase(), cell: methodCell },
    { key: 'plain', label: many ? `Plain mean (${rows.shown.length})` : rows.shown[0]?.[0] ?? 'Score', down: true, get: (row) => row.plain, cell: meanCell('plain', true) },
  ];
  if (parts) columns.push({ key: 'group', label: `Group mean (${rows.groupNames.length})`, down: true, get: (row) => row.group, cell: meanCell('group', false) });
  columns.push(
    { key: 'ppt', label: 'PPT', down: true, get: (row) => row.ppt, text: (row) => number(row.ppt, 3) },
    { key: 'trainable', label: 'Trainable', get: (row) => row.trainable, cell: trainableCell },
    { key: 'family', label: 'Family', left: true, get: (row) => row.family, text: (row) => row.family },
  );
  if (!state.backbone && manyBackbones() > 1) columns.push({ key: 'backbone', label: 'Backbone', left: true, get: (row) => row.backbone, text: (row) => row.backbone });
  if (parts) {
    rows.groupNames.forEach((group, i) => columns.push({ key: `g${i}`, label: group || 'other', down: true,
      get: (row) => row.groups[i], text: (row) => number(row.groups[i], 2) }));
  }
  columns.push(
    { key: 'tasks', label: 'Tasks', down: true, get: (row) => row.done, cell: tasksCell },
    { key: 'memory', label: 'Memory', get: (row) => row.memory, text: (row) => (row.memory === null ? '–' : bytes(row.memory)) },
    { key: 'step', label: 'Step', get: (row) => row.step, text: (row) => (row.step === null ? '–' : seconds(row.step)) },
  );
  return columns;
}
function methodCell(row) {
  const card = CARDS.get(row.method);
  const link = card ? el('a', { href: `#${card.id}`, title: row.label, text: row.label }) : el('span', { text: row.label });
  return el('td', { class: 'l stick' }, el('span', { class: 'dot', style: `--dot:${colourOf(row.family)}` }), link);
}
function trainableCell(row) {
  if (!row.range) return el('td', { text: '–' });
  const [low, high] = row.range;
  const title = low === high ? null : `${count(low)} to ${count(high)}, by task`;
  return el('td', { text: (low === high ? '' : '≈ ') + count(row.trainable), title });
}
function meanCell(key, bar) {
  return (row) => {
    const value = row[key];
    if (value === null) return el('td', { text: '–' });
    const cell = el('td', { text: value.toFixed(2) });
    if (!row.complete) cell.append(' ', el('small', { class: 'short', text: `${row.done}/${row.of}` }));
    else if (bar) cell.append(' ', el('small', { text: row.spread === null ? '' : `± ${row.spread.toFixed(2)}` }));
    if (bar) {
      const [low, high] = rows.extent;
      cell.className = 'bar';
      cell.style.setProperty('--w', `${Math.round(8 + 92 * (value - low) / ((high - low) || 1))}%`);
    }
    return cell;
  };
}
function tasksCell(row) {
  const cell = el('td', {}, el('span', { class: row.complete ? '' : 'short', text: `${row.done}/${row.of}` }));
  if (row.failed) cell.append(' ', el('small', { class: 'short', text: `${row.failed} failed`, title: 'failed runs, see Failures' }));
  return cell;
}
function compareBy(column, down) {
  return (a, b) => {
    const x = column.get(a), y = column.get(b);
    // What is not there comes last, whichever way one sorts.
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === 'string' ? x.localeCompare(y) : x - y;
    return (down ? -order : order) || a.label.localeCompare(b.label);
  };
}
function drawBoard(focus) {
  const columns = boardColumns();
  if (!columns.some((column) => column.key === state.sort.key)) state.sort = { key: 'plain', down: true };
  const current = columns.find((column) => column.key === state.sort.key);
  const values = rows.map((row) => row.plain).filter((x) => x !== null);
  rows.extent = [Math.min(...values), Math.max(...values)];
  const isMean = ['plain', 'group'].includes(current.key) || /^g\d/.test(current.key);
  const order = compareBy(current, state.sort.down);
  // A mean over fewer tasks does not compete with one over all.
  rows.sort((a, b) => (isMean ? b.complete - a.complete : 0) || order(a, b));
  const head = el('tr');
  for (const column of columns) {
    const sorted = column === current ? (state.sort.down ? 'descending' : 'ascending') : 'none';
    const button = el('button', { type: 'button', 'data-key': column.key, text: column.label });
    button.addEventListener('click', () => {
      const again = state.sort.key === column.key;
      state.sort = { key: column.key, down: again ? !state.sort.down : Boolean(column.down) };
      drawBoard(column.key);
    });
    head.append(el('th', { scope: 'col', 'aria-sort': sorted, class: `${column.left ? 'l' : ''}${column.stick ? ' stick' : ''}` }, button));
  }
  $('#board thead').replaceChildren(head);
  const body = document.createDocumentFragment();
  for (const row of rows) {
    const line = el('tr', { class: row.complete ? null : 'partial', 'data-label': row.label });
    for (const column of columns) {
      line.append(column.cell ? column.cell(row) : el('td', { class: column.left ? 'l' : null, text: column.text(row) }));
    }
    body.append(line);
  }
  if (!rows.length) body.append(el('tr', {}, el('td', { class: 'l', colspan: columns.length, text: 'No method passes these filters.' })));
  $('#board tbody').replaceChildren(body);
  if (focus) $(`#board button[data-key="${focus}"]`).focus();
}

// ---- words around it -----------------------------------------------------------
function drawWords() {
  const suite = DATA.suites[state.suite];
  const seeds = new Set(rows.flatMap((row) => row.runs.map((run) => run.seed))).size;
  const where = `${state.suite}${state.group ? `, ${state.group}` : ''}`;
  $('#status').textContent = `${rows.length} of ${several(rows.total, 'row')}: ${where}, ${several(rows.shown.length, 'task')}, ${state.protocol} protocol.`;
  $('#filter-summary').textContent = `– ${where}, ${state.protocol}`;
  $('#board-lead').textContent = `${suite.metric}, percent, ${state.protocol} protocol, mean over ${several(seeds, 'seed')}. `
    + (grouped() ? 'The plain mean is over tasks; the group mean is over the means of the groups.' : 'The plain mean is over tasks.');
  const notes = ['± is the sample standard deviation, over seeds, of the plain mean.',
    'Trainable parameters leave out the head. PPT is of the plain mean. Memory is the highest peak, step the median.'];
  if (rows.some((row) => !row.complete)) notes.push('A mean in italics with k/K is over k of K tasks: it is not comparable, has no PPT, and stands below the rest.');
  const devices = unique(rows.flatMap((row) => row.runs.map((run) => run.device)).filter(Boolean));
  if (devices.length > 1) notes.push(`Memory and step come from ${devices.length} devices (${devices.join(', ')}) and compare within one only.`);
  for (const item of DATA.statistics) {
    if (item.suite === state.suite && item.protocol === state.protocol && (!state.backbone || item.backbone === state.backbone)) notes.push(...item.warnings);
  }
  if (DATA.left_out) notes.push(`${several(DATA.left_out, 'run')} of tuning ${DATA.left_out === 1 ? 'is' : 'are'} not shown.`);
  $('#board-note').textContent = notes.join(' ');
}

// ---- filters -------------------------------------------------------------------
function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, label]) => el('option', { value: key, selected: key === value, text: label })));
  select.value = value;
}
const unique = (values) => [...new Set(values)];
let budgetSteps = [];
function drawFilters() {
  const suites = unique(RUNS.filter((run) => run.protocol === state.protocol).map((run) => run.suite)).sort();
  if (!suites.includes(state.suite)) state.suite = suites[0];
  const groups = unique(DATA.suites[state.suite].tasks.map(([, group]) => group));
  if (!groups.includes(state.group)) state.group = '';
  const backbones = unique(RUNS.filter(inScope).map((run) => run.backbone)).sort();
  if (!backbones.includes(state.backbone)) state.backbone = '';
  fill($('#f-protocol'), unique(RUNS.map((run) => run.protocol)).sort().map((x) => [x, x]), state.protocol);
  fill($('#f-suite'), suites.map((x) => [x, x]), state.suite);
  fill($('#f-group'), [['', 'all groups'], ...(groups.length > 1 ? groups.map((x) => [x, x || 'other']) : [])], state.group);
  fill($('#f-backbone'), [['', 'all backbones'], ...(backbones.length > 1 ? backbones.map((x) => [x, x]) : [])], state.backbone);
  const counts = RUNS.filter(inScope).map((run) => run.trainable).filter((x) => x !== null && x > 0);
  const low = counts.length ? Math.log10(Math.min(...counts)) : 0, high = counts.length ? Math.log10(Math.max(...counts)) : 1;
  budgetSteps = [0];
  for (let i = 1; i < 40; i += 1) budgetSteps.push(+(10 ** (low + (high - low) * i / 40)).toPrecision(2));
  budgetSteps.push(Infinity);
  const place = budgetSteps.findIndex((step) => step >= state.budget);
  $('#f-budget').value = place < 0 ? 40 : place;
  showBudget();
  $('#f-text').value = state.text;
  $('#f-families').replaceChildren(...FAMILIES.map((family) => {
    const chip = el('button', { type: 'button', class: 'chip', 'aria-pressed': String(!state.off.has(family)), style: `--dot:${colourOf(family)}`, text: family || 'none' });
    chip.addEventListener('click', () => {
      if (!state.off.delete(family)) state.off.add(family);
      chip.setAttribute('aria-pressed', String(!state.off.has(family)));
      update();
    });
    return chip;
  }));
}
function showBudget() {
  const text = state.budget === Infinity ? 'any' : `≤ ${brief(state.budget)}`;
  $('#budget-out').textContent = text;
  $('#f-budget').setAttribute('aria-valuetext', text);
}
function listen() {
  for (const key of ['protocol', 'suite', 'group', 'backbone']) {
    $(`#f-${key}`).addEventListener('change', (event) => {
      state[key] = event.target.value;
      drawFilters();
      update();
    });
  }
  $('#f-budget').addEventListener('input', (event) => {
    state.budget = budgetSteps[+event.target.value];
    showBudget();
    update();
  });
  $('#f-text').addEventListener('input', (event) => { state.text = event.target.value; update(); });
  $('#f-reset').addEventListener('click', () => { reset(); drawFilters(); update(); });
  $('#filters').addEventListener('submit', (event) => event.preventDefault());
  for (const id of ['heat-mode', 'curve-task', 'curve-name', 'curve-methods']) {
    $(`#${id}`).addEventListener('change', () => stale(id === 'heat-mode' ? ['heat'] : ['curves']));
  }
}

// ---- plots: drawn when they come into view -------------------------------------
const plots = new Map();
let printing = false;
function plotly() {
  if (!window.Plotly) {
    const source = document.getElementById('plotly');
    document.head.append(el('script', { text: source.textContent }));
    source.remove();
  }
  return window.Plotly;
}
function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ink: get('ink'), soft: get('soft'), line: get('line'), panel: get('panel'), accent: get('accent'),
    low: get('low'), mid: get('mid'), high: get('high'), colours: [...'01234567'].map((i) => get(`c${i}`)), font: get('sans') };
}
function layout(t, extra) {
  const axis = { gridcolor: t.line, zeroline: false, linecolor: t.line, tickcolor: t.line, automargin: true };
  const { xaxis, yaxis, ...rest } = extra;
  return { paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { family: t.font, size: 12.5, color: t.ink },
    margin: { l: 54, r: 16, t: 14, b: 50 }, hoverlabel: { bgcolor: t.panel, bordercolor: t.line, font: { color: t.ink, family: t.font } },
    hovermode: 'closest', dragmode: false, legend: { orientation: 'h', y: -0.2, yanchor: 'top', x: 0 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest };
}
// What printing changes is said here too: Plotly keeps what a later config leaves out.
const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true, staticPlot: false };
const painters = {};
function paint(plot) {
  plot.stale = false;
  const made = painters[plot.name](theme(), plot);
  if (typeof made === 'string') {
    if (plot.live) plotly().purge(plot.canvas);
    plot.live = false;
    plot.canvas.className = `${plot.base} none`;
    plot.canvas.style.height = '';
    plot.canvas.replaceChildren(el('p', { text: made }));
    numbers(plot, null);
    return;
  }
  if (!plot.live) plot.canvas.replaceChildren();
  plot.canvas.className = plot.base;
  if (made.height) plot.canvas.style.height = `${made.height}px`;
  if (made.width) plot.canvas.style.minWidth = `${made.width}px`;
  const size = printing ? { autosize: false, width: plot.printWidth, height: made.height || 420 } : { autosize: true };
  plotly().react(plot.canvas, made.data, layout(theme(), { ...made.layout, ...size }), printing ? { ...CONFIG, responsive: false, staticPlot: true } : CONFIG);
  plot.live = true;
  numbers(plot, made.table);
}
// The same figures as text: for those who cannot hover, and to copy.
function numbers(plot, table) {
  let details = $('.numbers', plot.node);
  if (!table) { if (details) details.remove(); return; }
  if (!details) {
    details = el('details', { class: 'numbers' }, el('summary', { text: 'Show the numbers' }), el('div', { class: 'scroll', tabindex: '0' }));
    plot.node.append(details);
    details.addEventListener('toggle', () => { if (details.open) details.fill(); });
  }
  details.fill = () => {
    const [head, lines] = table();
    $('.scroll', details).replaceChildren(makeTable(head, lines));
  };
  if (details.open) details.fill();
}
function makeTable(head, lines) {
  const left = (i) => i === 0 || (lines.length && lines[0][i] instanceof Node && lines[0][i].className === 'l');
  const body = el('tbody');
  for (const line of lines) body.append(el('tr', {}, ...line.map((x, i) => (x instanceof Node ? x : el('td', { class: i ? null : 'l', text: x })))));
  return el('table', {}, el('thead', {}, el('tr', {}, ...head.map((x, i) => el('th', { scope: 'col', class: left(i) ? 'l' : null, text: x })))), body);
}
const queue = [];
function drain() {
  const plot = queue.shift();
  if (plot) { plot.queued = false; if (plot.stale) paint(plot); }
  document.documentElement.dataset.busy = String(queue.length);
  if (queue.length) setTimeout(drain, 0);
}
function ask(plot) {
  if (!plot.stale || plot.queued) return;
  plot.queued = true;
  queue.push(plot);
  if (queue.length === 1) setTimeout(drain, 0);
  document.documentElement.dataset.busy = String(queue.length);
}
function stale(names) {
  for (const [name, plot] of plots) {
    if (names && !names.includes(name)) continue;
    plot.stale = true;
    if (plot.seen) ask(plot);
  }
}
function watch() {
  const seer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const plot = plots.get(entry.target.dataset.plot);
      plot.seen = entry.isIntersecting;
      if (plot.seen) ask(plot);
    }
  }, { rootMargin: '250px' });
  for (const node of document.querySelectorAll('[data-plot]')) {
    const canvas = $('.canvas', node);
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', $('figcaption', node).textContent);
    plots.set(node.dataset.plot, { name: node.dataset.plot, node, canvas, base: canvas.className, stale: true, seen: false,
      live: false, printWidth: node.parentElement.className === 'pair' ? 480 : 980 });
    seer.observe(node);
  }
}
function drawAll() {
  for (const plot of plots.values()) {
    plot.queued = false;
    if (plot.stale) paint(plot);
  }
  queue.length = 0;
  document.documentElement.dataset.busy = '0';
}

// Score against a cost, with the Pareto front.
function front(points) {
  const best = [];
  let top = -Infinity;
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (point.y > top) { best.push(point); top = point.y; }
  }
  return best;
}
// Names of the front's points, best first, as many as fit beside each other.
function labels(wanted, points, width, height, size) {
  const span = (values) => [Math.min(...values), Math.max(...values) - Math.min(...values) || 1];
  const [x0, dx] = span(points.map((p) => p.x)), [y0, dy] = span(points.map((p) => p.y));
  const taken = [];
  return [...wanted].sort((a, b) => b.y - a.y).filter((p) => {
    const half = p.text.length * size * 0.3 + 4, x = (p.x - x0) / dx * width, y = (p.y - y0) / dy * height;
    if (taken.some((q) => Math.abs(q.x - x) < q.half + half && Math.abs(q.y - y) < size * 1.9)) return false;
    taken.push({ x, y, half });
    return true;
  });
}
function costPlot(key, title, show, scale, log) {
  return (t, plot) => {
    const points = rows.filter((row) => row.complete && row[key] !== null).map((row) => ({ row, x: row[key] / scale, y: row.plain }));
    if (points.length < 1) return 'Nothing to draw: no method with this cost has all tasks of the selection.';
    const positive = points.map((point) => point.x).filter((x) => x > 0);
    // A logarithm has no zero: methods that train no backbone stand at the left edge.
    const edge = positive.length ? Math.min(...positive) / 4 : 0.1;
    const place = (x) => (log && x <= 0 ? edge : x);
    const data = unique(points.map((point) => point.row.family)).sort().map((family) => {
      const own = points.filter((point) => point.row.family === family), i = FAMILIES.indexOf(family) % 8;
      return { type: 'scatter', mode: 'markers', name: plain(family || 'none'), x: own.map((p) => place(p.x)), y: own.map((p) => p.y),
        customdata: own.map((p) => [plain(p.row.name), plain(show(p.row[key])), number(p.row.spread, 2), number(p.row.ppt, 3)]),
        marker: { color: t.colours[i], symbol: SYMBOLS[i], size: 10, line: { color: t.panel, width: 1 } },
        hovertemplate: '<b>%{customdata[0]}</b><br>%{y:.2f} ± %{customdata[2]}<br>%{customdata[1]}<br>PPT %{customdata[3]}<extra></extra>' };
    });
    const line = front(points);
    const narrow = window.innerWidth < 640 && !printing;
    const height = key === 'trainable' ? (narrow ? 500 : 520) : 360;
    data.unshift({ type: 'scatter', mode: 'lines', name: 'Pareto front', x: line.map((p) => place(p.x)), y: line.map((p) => p.y),
      line: { color: t.accent, width: 2, dash: 'dot' }, hoverinfo: 'skip' });
    const at = (x) => (log ? Math.log10(place(x)) : x);
    const room = (printing ? 900 : plot.node.clientWidth) - 120, size = narrow ? 10.5 : 12;
    const annotations = labels(line.map((p) => ({ x: at(p.x), y: p.y, text: p.row.name })), points.map((p) => ({ x: at(p.x), y: p.y })), room, height - 110, size)
      .map((p) => ({ x: p.x, y: p.y, text: plain(p.text), showarrow: false, yshift: 14, font: { size, color: t.ink } }));
    const xaxis = { title: { text: title, standoff: 8 }, type: log ? 'log' : 'linear' };
    if (log) {
      const zero = points.some((p) => p.x <= 0), ticks = [];
      const low = Math.log10(Math.min(...positive, zero ? edge : Infinity)), high = Math.log10(Math.max(...positive, edge));
      // Powers of ten alone may leave a narrow axis without a tick.
      const digits = high - low > 1.6 ? [1] : high - low > 0.5 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
      for (let d = Math.floor(low) - 1; d <= high + 1; d += 1) ticks.push(...digits.map((digit) => digit * 10 ** d));
      xaxis.tickvals = [...(zero ? [edge] : []), ...ticks.filter((tick) => !zero || tick > edge * 2)];
      xaxis.ticktext = xaxis.tickvals.map((tick) => (zero && tick === edge ? '0' : brief(tick)));
    }
    return { data, height,
      layout: { xaxis, showlegend: key === 'trainable', yaxis: { title: { text: 'plain mean, percent', standoff: 6 } }, annotations,
        margin: { l: 54, r: 24, t: 24, b: 50 } },
      table: () => [['Method', 'Cost', 'Plain mean', 'On the front'],
        [...points].sort((a, b) => a.x - b.x).map((p) => [p.row.name, show(p.row[key]), number(p.y, 2), line.includes(p) ? 'yes' : ''])] };
  };
}
painters.params = costPlot('trainable', 'trainable parameters of the backbone', count, 1, true);
painters.memory = costPlot('memory', 'peak memory, GB', bytes, 1e9, false);
painters.step = costPlot('step', 'step, ms', seconds, 1e-3, false);

// Heat map.
painters.heat = (t) => {
  const tasks = rows.shown.map(([task]) => task);
  if (!rows.length) return 'No method passes these filters.';
  const mode = $('#heat-mode').value;
  const ordered = [...rows].sort((a, b) => byMean(a, b));
  const column = new Map(tasks.map((task) => [task, ordered.map((row) => row.values.get(task)).filter((x) => x !== null && x !== undefined)]));
  const tone = (task, value) => {
    if (value === null || value === undefined) return null;
    if (mode === 'score') return value;
    if (mode === 'rank') return 1 + column.get(task).filter((x) => x > value).length;
    return value - median(column.get(task));
  };
  const z = ordered.map((row) => tasks.map((task) => tone(task, row.values.get(task))));
  const state_ = (row, task) => {
    const value = row.values.get(task);
    if (value !== null && value !== undefined) return value.toFixed(1);
    return row.cells.has(task) ? '×' : '';
  };
  const text = ordered.map((row) => tasks.map((task) => state_(row, task)));
  const hover = ordered.map((row) => tasks.map((task) => {
    const cell = row.cells.get(task);
    if (!cell) return 'not run';
    if (!cell.seeds.size) return `failed (${several(cell.failed, 'run')})`;
    const scores = [...cell.seeds].map(([seed, score]) => `seed ${seed}: ${score.toFixed(2)}`).join('<br>');
    return `${number(row.values.get(task), 2)}<br>${scores}${cell.failed ? `<br>${cell.failed} failed` : ''}`;
  }));
  const flat = z.flat().filter((x) => x !== null);
  const reach = mode === 'median' ? Math.max(0.5, [...flat].map(Math.abs).sort((a, b) => a - b)[Math.floor(flat.length * 0.95)] || 0.5) : null;
  const scales = { median: [[0, t.low], [0.5, t.mid], [1, t.high]], score: [[0, t.mid], [1, t.high]], rank: [[0, t.high], [1, t.mid]] };
  const names = ordered.map((row) => plain(row.name));
  // Names of axes are keys to plotly, so rows and columns go by place.
  const places = (xs) => xs.map((_, i) => i);
  return { height: 130 + 21 * ordered.length, width: 190 + 44 * tasks.length,
    data: [{ type: 'heatmap', x: places(tasks), y: places(names), z, text, texttemplate: '%{text}', textfont: { size: 10.5 },
      colorscale: scales[mode], zmin: reach === null ? undefined : -reach, zmax: reach === null ? undefined : reach,
      hovertemplate: '%{hovertext}<extra></extra>', hoverongaps: true, xgap: 1, ygap: 1,
      hovertext: hover.map((line, i) => line.map((words, j) => `<b>${names[i]}</b> on ${plain(tasks[j])}<br>${words}`)),
      colorbar: { thickness: 10, outlinewidth: 0, len: Math.min(1, 260 / (21 * ordered.length + 30)), y: 1, yanchor: 'top', tickfont: { color: t.soft } } }],
    layout: { margin: { l: 8, r: 8, t: 8, b: 8 },
      shapes: rows.shown.flatMap(([, group], i) => (i && group !== rows.shown[i - 1][1]
        ? [{ type: 'line', x0: i - 0.5, x1: i - 0.5, y0: -0.5, y1: ordered.length - 0.5, line: { color: t.ink, width: 2 } }] : [])),
      xaxis: { side: 'top', tickangle: -40, showgrid: false, tickvals: places(tasks), ticktext: tasks.map(plain), ticks: '' },
      yaxis: { autorange: 'reversed', showgrid: false, tickvals: places(names), ticktext: names, ticks: '' } },
    table: () => [['Method', ...tasks], ordered.map((row) => [row.name, ...tasks.map((task) => state_(row, task) || 'not run')])] };
};

// Learning curves.
function drawCurveTools() {
  const all = curves();
  const names = Object.keys(all.names).sort((a, b) => (b === 'loss') - (a === 'loss') || a.localeCompare(b));
  const kept = { task: $('#curve-task').value, name: $('#curve-name').value, methods: $('#curve-methods').value };
  const tasks = rows.shown.map(([task]) => task);
  const labels = [...rows].sort((a, b) => byMean(a, b));
  fill($('#curve-task'), tasks.map((x) => [x, x]), tasks.includes(kept.task) ? kept.task : tasks[0] ?? '');
  fill($('#curve-name'), names.map((x) => [x, x]), names.includes(kept.name) ? kept.name : names[0] ?? '');
  const options = [['best5', 'the best five'], ['all', 'all'], ...labels.map((row) => [row.key, row.name])];
  fill($('#curve-methods'), options, options.some(([key]) => key === kept.methods) ? kept.methods : 'best5');
}
painters.curves = (t) => {
  drawCurveTools();
  const all = curves(), name = $('#curve-name').value, task = $('#curve-task').value, which = $('#curve-methods').value;
  const best = [...rows].sort((a, b) => byMean(a, b));
  const chosen = which === 'all' ? best : which === 'best5' ? best.slice(0, 5) : best.filter((row) => row.key === which);
  const own = all.names[name] || {};
  const dashes = ['solid', 'dash', 'dot', 'dashdot', 'longdash'];
  const data = [];
  chosen.forEach((row, i) => {
    const runs = row.runs.filter((run) => run.task === task && own[run.place]);
    runs.forEach((run, j) => {
      const [code, values] = own[run.place];
      data.push({ type: 'scatter', mode: 'lines', x: all.steps[code], y: values, name: plain(row.name), legendgroup: row.key, showlegend: j === 0,
        line: { color: t.colours[i % 8], dash: dashes[Math.floor(i / 8) % 5], width: 1.6 }, opacity: j ? 0.55 : 1,
        hovertemplate: `<b>${plain(row.name).replace(/%/g, '&#37;')}</b>, seed ${run.seed}<br>step %{x}: %{y}<extra></extra>` });
    });
  });
  $('#curve-caption').textContent = `${name || 'Curves'} on ${task}, one line per seed${all.thinned ? `; thinned to ${all.thinned} points` : ''}`;
  if (!data.length) return 'No curve is recorded for this choice.';
  const narrow = window.innerWidth < 640 && !printing;
  return { data, height: 460 + (narrow ? 20 * Math.min(chosen.length, 12) : 0), layout: { xaxis: { title: { text: 'step', standoff: 8 } }, yaxis: { title: { text: plain(name), standoff: 6 } } } };
};

// Published beside ours.
function publishedPairs() {
  const found = [];
  for (const item of DATA.published) {
    if (item.suite !== state.suite || item.protocol !== state.protocol) continue;
    // A variant is not what was published; the setting of the recipe comes first.
    const own = rows.filter((row) => row.method === item.method && row.backbone === item.backbone);
    const row = own.find((r) => r.label === r.method) || own[0];
    if (!row) continue;
    const tasks = rows.shown.map(([task]) => task).filter((task) => task in item.scores && (row.values.get(task) ?? null) !== null);
    if (tasks.length) found.push({ item, row, tasks });
  }
  return found;
}
painters.published = (t) => {
  const pairs = publishedPairs();
  if (!pairs.length) return 'No published figure matches these methods, tasks and backbones.';
  const data = unique(pairs.map(({ item }) => item.source)).map((source, i) => {
    const points = pairs.filter(({ item }) => item.source === source).flatMap(({ item, row, tasks }) => tasks.map((task) => ({ item, row, task })));
    return { type: 'scatter', mode: 'markers', name: plain(source), x: points.map((p) => p.item.scores[p.task]), y: points.map((p) => p.row.values.get(p.task)),
      customdata: points.map((p) => [plain(p.row.name), plain(p.task)]), marker: { color: t.colours[i], symbol: SYMBOLS[i], size: 7, opacity: 0.75 },
      hovertemplate: '<b>%{customdata[0]}</b> on %{customdata[1]}<br>printed %{x:.2f}, ours %{y:.2f}<extra></extra>' };
  });
  const all = data.flatMap((trace) => [...trace.x, ...trace.y]);
  const ends = [Math.min(...all) - 2, Math.max(...all) + 2];
  data.unshift({ type: 'scatter', mode: 'lines', x: ends, y: ends, name: 'equal', line: { color: t.soft, width: 1, dash: 'dot' }, hoverinfo: 'skip' });
  return { data, height: 460, layout: { xaxis: { title: { text: 'printed, percent', standoff: 8 } }, yaxis: { title: { text: 'ours, percent', standoff: 6 } } } };
};
function drawPublished() {
  const pairs = publishedPairs();
  const lines = pairs.map(({ item, row, tasks }) => {
    const ours = mean(tasks.map((task) => row.values.get(task))), theirs = mean(tasks.map((task) => item.scores[task]));
    const whole = tasks.length === DATA.suites[state.suite].tasks.length;
    const check = tasks.length === 1 ? item.ppt[tasks[0]] : whole ? item.ppt.mean : null;
    const ppt = check ? el('td', { text: check[0] + (check[1] ? ' †' : ''), title: check[1] || null }) : '–';
    return [row.name, el('td', { class: 'l', text: `${item.name}, ${item.source}` }), String(tasks.length), number(ours, 2), number(theirs, 2),
      (ours < theirs ? '−' : '+') + number(Math.abs(ours - theirs), 2), number(row.ppt, 3), ppt];
  });
  const table = makeTable(['Ours', 'Printed as', 'Shared tasks', 'Ours, mean', 'Printed, mean', 'Difference', 'Our PPT', 'Printed PPT'], lines);
  table.id = 'published-table';
  const notes = unique(pairs.flatMap(({ item }) => Object.values(item.ppt).map((check) => check[1]).filter(Boolean)));
  if (pairs.length) table.append(el('caption', { class: 'hidden', text: 'Means are plain means over the tasks that both have.' }));
  $('#published-table').replaceWith(table);
  table.hidden = !pairs.length;
  let foot = $('#published .note');
  if (!foot) { foot = el('p', { class: 'note' }); $('#published').append(foot); }
  foot.textContent = pairs.length ? ['Means here are plain means over the tasks that both have.', ...notes.map((note) => `† ${note}.`)].join(' ') : '';
}

// Mean ranks and critical difference.
function drawRanks() {
  const panels = DATA.statistics.filter((item) => item.suite === state.suite && item.protocol === state.protocol
    && (!state.backbone || item.backbone === state.backbone));
  $('#rank-panels').replaceChildren(...panels.flatMap((item) => {
    const left = item.left_out.length ? ` Not ranked, tasks are missing: ${item.left_out.join(', ')}.` : '';
    if (!item.ranks) {
      return [el('p', { class: 'empty', text: `${item.backbone || item.suite}: a comparison of ranks needs three methods that did all of two or more tasks.${left}` })];
    }
    const p = item.p < 0.001 ? item.p.toExponential(1) : item.p.toFixed(3);
    return [el('div', { class: 'rank', tabindex: '0', role: 'region', 'aria-label': `Mean ranks, ${item.backbone}` }, rankPicture(item)),
      el('p', { class: 'note', text: `${item.backbone}, ${several(item.tasks, 'task')}, ${item.ranks.length} methods. Friedman χ² = ${item.chi2.toFixed(2)}, p = ${p}; critical difference ${item.difference.toFixed(2)}.${left}` })];
  }));
  if (!panels.length) $('#rank-panels').replaceChildren(el('p', { class: 'empty', text: 'Nothing to rank here.' }));
}
function rankPicture(item) {
  const ranks = item.ranks, last = Math.max(2, Math.ceil(ranks[ranks.length - 1][1]));
  const left = 210, right = 790, half = Math.ceil(ranks.length / 2), bars = item.cliques;
  const x = (rank) => left + (right - left) * (rank - 1) / (last - 1);
  const top = 64, start = top + 18 + 9 * bars.length, height = start + 20 * half + 10;
  const svg = el('svg:svg', { viewBox: `0 0 1000 ${height}`, role: 'img', 'aria-label': `Mean ranks: ${ranks.map(([name, rank]) => `${name} ${rank.toFixed(2)}`).join(', ')}` });
  const line = (x1, y1, x2, y2, width, colour) => svg.append(el('svg:line', { x1, y1, x2, y2, style: `stroke:var(--${colour});stroke-width:${width}` }));
  const word = (px, py, anchor, text, colour = 'ink', size = 13) => svg.append(el('svg:text', { x: px, y: py, 'text-anchor': anchor, style: `fill:var(--${colour});font-size:${size}px`, text }));
  line(left, top, right, top, 1.2, 'ink');
  const every = Math.ceil((last - 1) / 12);
  for (let tick = 1; tick <= last; tick += every) { line(x(tick), top - 6, x(tick), top, 1.2, 'ink'); word(x(tick), top - 10, 'middle', String(tick), 'soft', 12); }
  line(left, 24, Math.min(x(1 + item.difference), right), 24, 3, 'ink');
  word(left, 16, 'start', `critical difference ${item.difference.toFixed(2)}`, 'soft', 12);
  ranks.forEach(([name, rank], i) => {
    const onLeft = i < half, row = onLeft ? i : ranks.length - 1 - i, y = start + 20 * row + 10;
    line(x(rank), top, x(rank), y, 0.7, 'soft');
    line(x(rank), y, onLeft ? left - 12 : right + 12, y, 0.7, 'soft');
    word(onLeft ? left - 18 : right + 18, y + 4, onLeft ? 'end' : 'start', onLeft ? `${name}  ${rank.toFixed(2)}` : `${rank.toFixed(2)}  ${name}`);
  });
  const of = new Map(ranks);
  bars.forEach((bar, i) => line(x(of.get(bar[0])) - 4, top + 12 + 9 * i, x(of.get(bar[bar.length - 1])) + 4, top + 12 + 9 * i, 4, 'accent'));
  return svg;
}

// Failures.
function drawFailures() {
  const failed = RUNS.filter((run) => run.error !== null);
  const list = $('#failure-list');
  if (!failed.length) { list.replaceChildren(el('p', { class: 'empty', text: 'No run failed.' })); return; }
  const byError = new Map();
  for (const run of failed) {
    if (!byError.has(run.error)) byError.set(run.error, []);
    byError.get(run.error).push(run);
  }
  list.replaceChildren(...[...byError].sort((a, b) => b[1].length - a[1].length).map(([error, runs]) => el('div', { class: 'failure' },
    el('p', {}, el('code', { text: error })),
    el('p', { class: 'which', text: `${several(runs.length, 'run')}: ${runs.slice(0, 12).map((run) => run.id).join(', ')}${runs.length > 12 ? ', …' : ''}` }))));
}

// ---- all together --------------------------------------------------------------
function update() {
  aggregate();
  drawBoard();
  drawWords();
  drawRanks();
  drawPublished();
  stale();
}
function openTarget() {
  const id = decodeURIComponent(location.hash.slice(1));
  const target = id && document.getElementById(id);
  if (target && target.tagName === 'DETAILS') { target.open = true; target.scrollIntoView(); }
}
function markSection() {
  const links = new Map([...document.querySelectorAll('.sections a')].map((link) => [link.hash.slice(1), link]));
  const seer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const [id, link] of links) {
        if (id === entry.target.id) link.setAttribute('aria-current', 'true'); else link.removeAttribute('aria-current');
      }
    }
  }, { rootMargin: '-15% 0px -75% 0px' });
  document.querySelectorAll('main > section').forEach((section) => seer.observe(section));
}
function print(on) {
  printing = on;
  if (on) document.documentElement.dataset.print = ''; else delete document.documentElement.dataset.print;
  for (const plot of plots.values()) plot.stale = true;
  if (on) drawAll(); else stale();
}
// A picture opens at its own size; a click or Escape closes it.
function enlarge(event) {
  const button = event.target.closest('.enlarge');
  if (!button) return;
  const large = $('dialog.large');
  large.replaceChildren(button.firstElementChild.cloneNode());
  large.showModal();
}
if (window.innerWidth < 640) $('#filters details').open = false;
drawFilters();
listen();
update();
drawFailures();
$('#pictures').addEventListener('click', enlarge);
window.addEventListener('hashchange', openTarget);
window.addEventListener('beforeprint', () => print(true));
window.addEventListener('afterprint', () => print(false));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => stale());
// The leaderboard is there by now; plots need what stands below this script.
document.addEventListener('DOMContentLoaded', () => {
  $('dialog.large').addEventListener('click', (event) => event.currentTarget.close());
  watch();
  markSection();
  openTarget();
  window.mmpetlReport = { drawAll };
  document.documentElement.dataset.busy = '0';
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
});
})();
