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
function quantile(xs, share) {
  const sorted = [...xs].sort((a, b) => a - b), place = share * (sorted.length - 1), low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
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
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GB` : `${(value / 2 ** 20).toFixed(0)} MB`;
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
  state.heat = 'median';
  state.curve = { task: '', name: '', methods: 'best5' };
  state.pair = '';
  state.run = '';
  state.limits = { memory: '', trainable: '', step: '', latency: '', folds: '', kind: '' };
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
    row.marks = marksOf(row);
    row.verified = verifiedOf(row);
    row.fair = row.complete && !row.marks.length;
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
    row.n = bySeed.length;
    row.seeds = new Set(row.runs.map((run) => run.seed)).size;
    const good = row.runs.filter((run) => run.score !== null);
    const known = good.map((run) => run.trainable).filter((x) => x !== null);
    // PPT takes the mean over tasks where counts differ.
    const perTask = names.map((task) => good.filter((run) => run.task === task && run.trainable !== null).map((run) => run.trainable));
    const counts = perTask.filter((xs) => xs.length).map(mean);
    // A mean over the runs that tell would be of other tasks than the score.
    const told = known.length > 0 && known.length === good.length;
    row.trainable = told ? mean(counts) : null;
    row.range = told ? [Math.min(...known), Math.max(...known)] : null;
    row.ppt = row.fair && row.trainable !== null && row.plain >= 0 && row.plain <= 100
      ? row.plain / 100 * Math.exp(-Math.log10(row.trainable / DATA.scale + 1)) : null;
    const memory = good.map((run) => run.memory).filter((x) => x !== null);
    row.memory = memory.length ? Math.max(...memory) : null;
    const steps = good.map((run) => run.step).filter((x) => x !== null);
    row.step = steps.length ? median(steps) : null;
    row.quartiles = steps.length > 1 ? [quantile(steps, 0.25), quantile(steps, 0.75)] : null;
    row.timed = steps.length;
    row.name = state.backbone || manyBackbones() < 2 ? row.label : `${row.label}, ${row.backbone}`;
  }
  const text = state.text.trim().toLowerCase();
  rows = [...found.values()].filter((row) => !state.off.has(row.family)
    && (row.trainable === null ? state.budget === Infinity : row.trainable <= state.budget)
    && (!text || row.label.toLowerCase().includes(text)));
  rows.shown = shown;
  rows.groupNames = groups;
  rows.total = found.size;
  const ranked = rows.filter((row) => row.fair).sort((a, b) => b.plain - a.plain);
  rows.forEach((row) => { row.position = row.fair ? ranked.indexOf(row) + 1 : null; });
}
// Why a row is not to be compared with the others of its table.
function marksOf(row) {
  const item = DATA.statistics.find((found) => found.suite === state.suite && found.protocol === state.protocol && found.backbone === row.backbone && found.marks[row.label]);
  return item ? item.marks[row.label] : [];
}
// How many of its runs were verified, as 5/6; empty where nobody has looked.
function verifiedOf(row) {
  const item = DATA.statistics.find((found) => found.suite === state.suite && found.protocol === state.protocol && found.backbone === row.backbone && found.verified[row.label]);
  return item ? item.verified[row.label] : '';
}
const byMean = (a, b) => b.complete - a.complete || b.fair - a.fair || (b.plain ?? -1) - (a.plain ?? -1);
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
    { key: 'memory', label: 'Memory', get: (row) => row.memory, text: (row) => (row.memory === null ? '–' : bytes(row.memory)) },
    { key: 'step', label: 'Step', get: (row) => row.step, text: (row) => (row.step === null ? '–' : seconds(row.step)) },
    { key: 'tasks', label: 'Tasks', down: true, get: (row) => row.done, cell: tasksCell },
  );
  if (!state.backbone && manyBackbones() > 1) columns.push({ key: 'backbone', label: 'Backbone', left: true, get: (row) => row.backbone, text: (row) => row.backbone });
  if (parts) {
    rows.groupNames.forEach((group, i) => columns.push({ key: `g${i}`, label: group || 'other', down: true,
      get: (row) => row.groups[i], text: (row) => number(row.groups[i], 2) }));
  }
  columns.push({ key: 'family', label: 'Family', left: true, get: (row) => row.family, text: (row) => row.family });
  return columns;
}
function methodCell(row) {
  const card = CARDS.get(row.method);
  const link = card ? el('a', { href: `#${card.id}`, title: row.label, text: row.label }) : el('span', { text: row.label });
  const mark = row.marks.length ? el('span', { class: 'short', title: row.marks.join('; '), text: ' ‡' }) : null;
  const [good, of] = row.verified.split('/'), check = !row.verified || good === '0' ? null
    : el('small', { title: `${good} of ${of} runs verified`, text: good === of ? ' ✓' : ` ✓ ${row.verified}` });
  return el('td', { class: 'l stick' }, el('span', { class: 'dot', style: `--dot:${colourOf(row.family)}` }), link, mark, check);
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
    else if (bar) cell.append(' ', el('small', { text: row.spread === null ? `n=${row.n}` : `± ${row.spread.toFixed(2)} n=${row.n}` }));
    // A bar is as long as its value is great: it begins at zero, or there is none.
    if (bar && rows.top !== null) {
      cell.className = 'bar';
      cell.style.setProperty('--w', `${(100 * value / rows.top).toFixed(1)}%`);
    }
    return cell;
  };
}
function tasksCell(row) {
  const open = el('button', { type: 'button', class: `open${row.complete ? '' : ' short'}`, 'data-row': row.key,
    title: `${several(row.runs.length, 'run')} of ${row.name}`, 'aria-label': `${several(row.runs.length, 'run')} of ${row.name}, ${row.done} of ${several(row.of, 'task')}`,
    text: `${row.done}/${row.of}` });
  const cell = el('td', {}, open);
  if (row.failed) cell.append(' ', el('small', { class: 'short', text: `×${row.failed}`, title: `${several(row.failed, 'failed run')}, see Failures` }));
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
  const low = Math.min(...values), high = Math.max(...values);
  rows.top = low < 0 || high <= 0 ? null : high <= 100 ? 100 : high;
  const isMean = ['plain', 'group'].includes(current.key) || /^g\d/.test(current.key);
  const order = compareBy(current, state.sort.down);
  // A mean over fewer tasks does not compete with one over all.
  rows.sort((a, b) => (isMean ? b.complete - a.complete || b.fair - a.fair : 0) || order(a, b));
  const head = el('tr');
  for (const column of columns) {
    const sorted = column === current ? (state.sort.down ? 'descending' : 'ascending') : 'none';
    const button = el('button', { type: 'button', 'data-key': column.key, text: column.label });
    button.addEventListener('click', () => {
      const again = state.sort.key === column.key;
      state.sort = { key: column.key, down: again ? !state.sort.down : Boolean(column.down) };
      drawBoard(column.key);
      remember();
    });
    head.append(el('th', { scope: 'col', 'aria-sort': sorted, class: `${column.left ? 'l' : ''}${column.stick ? ' stick' : ''}` }, button,
      // A head that holds a button is not repeated on the next sheet of paper.
      el('span', { class: 'paper', 'aria-hidden': 'true', text: column.label })));
  }
  $('#board thead').replaceChildren(head);
  const body = document.createDocumentFragment();
  for (const row of rows) {
    const line = el('tr', { class: row.complete ? null : 'partial', 'data-label': row.label, 'data-row': row.key });
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
  const notes = ['± is the sample standard deviation of the plain mean over the n seeds that all its tasks have; the bar under a mean begins at zero.',
    'Trainable parameters leave out the head. PPT is of the plain mean. Memory is the highest peak, step the median.'];
  if (rows.some((row) => row.failed)) notes.push('× counts failed runs.');
  if (rows.some((row) => !row.complete)) notes.push('A mean in italics with k/K is over k of K tasks: it is not comparable, has no PPT, and stands below the rest.');
  if (rows.some((row) => row.marks.length)) notes.push('‡ is not to be compared, for the reasons above: it has no place, no PPT, and takes part in no statistics.');
  if (rows.some((row) => row.verified)) notes.push('✓ has been verified, all of its runs or as many as it says.');
  const devices = unique(rows.flatMap((row) => row.runs.map((run) => run.device)).filter(Boolean));
  if (devices.length > 1) notes.push(`Memory and step come from ${devices.length} devices (${devices.join(', ')}) and compare within one only.`);
  if (DATA.left_out) notes.push(`${several(DATA.left_out, 'run')} of tuning ${DATA.left_out === 1 ? 'is' : 'are'} not shown.`);
  $('#board-note').textContent = notes.join(' ');
  const warnings = unique(DATA.statistics.filter((item) => item.suite === state.suite && item.protocol === state.protocol
    && (!state.backbone || item.backbone === state.backbone)).flatMap((item) => item.warnings));
  $('#board-warnings').replaceChildren(...warnings.map((text) => el('li', { text })));
  $('#board-warnings').hidden = !warnings.length;
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
  $('#heat-mode').value = state.heat;
  $('#f-families').replaceChildren(...FAMILIES.map((family) => {
    const chip = el('button', { type: 'button', class: 'chip', 'aria-pressed': String(!state.off.has(family)), style: `--dot:${colourOf(family)}`, text: family || 'none' });
    chip.addEventListener('click', () => {
      if (!state.off.delete(family)) state.off.add(family);
      chip.setAttribute('aria-pressed', String(!state.off.has(family)));
      change();
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
      change();
    });
  }
  $('#f-budget').addEventListener('input', (event) => {
    state.budget = budgetSteps[+event.target.value];
    showBudget();
    change();
  });
  $('#f-text').addEventListener('input', (event) => { state.text = event.target.value; change(); });
  $('#f-reset').addEventListener('click', () => { reset(); drawFilters(); change(); });
  $('#filters').addEventListener('submit', (event) => event.preventDefault());
  $('#heat-mode').addEventListener('change', (event) => { state.heat = event.target.value; stale(['heat']); remember(); });
  for (const key of ['task', 'name', 'methods']) {
    $(`#curve-${key}`).addEventListener('change', (event) => { state.curve[key] = event.target.value; stale(['curves']); remember(); });
  }
}
