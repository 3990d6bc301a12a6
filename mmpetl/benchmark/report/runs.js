// ---- from a row or a cell down to its runs ---------------------------------------
let detailData = null;
const detailsOf = () => (detailData = detailData || read('details'));
// A field of a run; null where its record does not know it.
function factOf(name, run) {
  const field = detailsOf()[name];
  return field ? field.values[field.codes[run.place]] : null;
}
const UNKNOWN = 'not recorded';
function factText(value) {
  if (value === null) return UNKNOWN;
  if (typeof value === 'number') return Number.isInteger(value) ? count(value) : String(value);
  return typeof value === 'string' ? value : JSON.stringify(value);
}
function factList(title, pairs) {
  const list = el('dl', { class: 'list' });
  for (const [name, value] of pairs) {
    list.append(el('div', {}, el('dt', { text: name }), el('dd', { class: value === null ? 'unknown' : null, text: factText(value) })));
  }
  return [el('h4', { text: title }), pairs.length ? list : el('p', { class: 'note', text: 'none' })];
}
const entries = (value) => (value && typeof value === 'object' ? Object.entries(value) : []);
function openRuns(row, task) {
  const runs = row.runs.filter((run) => !task || run.task === task)
    .sort((a, b) => a.task.localeCompare(b.task) || a.seed - b.seed);
  if (!runs.length) return;
  const dialog = $('#runs');
  $('#runs-title').textContent = `${row.name}${task ? ` on ${task}` : ''}: ${several(runs.length, 'run')}`;
  const lines = runs.map((run) => {
    const open = el('button', { type: 'button', class: 'open', 'data-run': run.id, text: run.task });
    return [el('td', { class: 'l' }, open), String(run.seed), run.score === null ? 'failed' : run.score.toFixed(2),
      factText(factOf('test_reads', run)), run.seconds === null ? '–' : `${(run.seconds / 60).toFixed(1)} min`, el('td', { class: 'l', text: run.device || UNKNOWN })];
  });
  $('#runs-list').replaceChildren(makeTable(['Task', 'Seed', 'Score', 'Test reads', 'Time', 'Device'], lines));
  $('#runs-list').scrollTop = 0;
  showRun(runs[0]);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
function openRun(id) {
  const run = RUNS.find((item) => item.id === id);
  const row = rows.find((item) => item.runs.includes(run))
    || { name: run.label, runs: RUNS.filter((item) => item.label === run.label && item.backbone === run.backbone && item.suite === run.suite && item.protocol === run.protocol) };
  openRuns(row, '');
  showRun(run);
}
function showRun(run) {
  state.run = run.id;
  for (const button of document.querySelectorAll('#runs-list [data-run]')) {
    if (button.dataset.run === run.id) button.setAttribute('aria-current', 'true'); else button.removeAttribute('aria-current');
  }
  const fact = (name) => factOf(name, run), metrics = entries(fact('metrics')).map(([name, value]) => [name, value]);
  const data = entries(fact('data')).flatMap(([phase, found]) => entries(found).map(([name, value]) => [`${phase} ${name}`, value]));
  const search = fact('search');
  const known = (pairs) => pairs.filter(([, value]) => value !== undefined);
  const failed = run.error === null ? [] : [el('h4', { text: 'Error' }), el('pre', { class: 'error', text: fact('error') || run.error })];
  $('#runs-detail').replaceChildren(
    el('h3', { text: `${run.task}, seed ${run.seed}` }), el('p', { class: 'note', text: run.id }),
    ...failed,
    ...factList('Result', known([['status', fact('status')], ...metrics, ['test set read, times', fact('test_reads')], ...entries(fact('counts')).map(([name, value]) => [`parameters, ${name}`, value]), ['verified', fact('verified')]]
      .filter(([name, value]) => name !== 'verified' || value !== null))),
    ...factList('Config: what departs from the defaults', [['recipe', fact('recipe')], ...entries(fact('settings')).map(([name, value]) => [`method.${name}`, value]),
      ...entries(fact('options')), ['published settings of the pair', fact('leaf')], ['batch per step', fact('batch')], ['config hash', fact('config_hash')]]),
    ...factList('Data', data.length ? data : [['data read', null]]),
    ...factList('Preprocessing and base', [...entries(fact('preprocessing')), ...entries(fact('base')).map(([name, value]) => [`base ${name}`, value])]),
    ...factList('Environment', [['device', run.device || null], ...['host', 'cuda', 'driver', 'processes', 'threads', 'shared'].map((name) => [WORDS[name], fact(name)]),
      ['commit', fact('commit')], ...entries(fact('versions'))]),
    ...factList('Cost', [['time of the run, s', run.seconds], ['time with all attempts, s', fact('total_seconds')], ['training step, s', run.step], ['peak memory, bytes', run.memory],
      ['delta on disk, bytes', fact('delta_bytes')], ['attempts', fact('attempts')], ['started', fact('started')], ['finished', fact('finished')]]),
    ...(search ? factList('Search that chose the settings', entries(search)) : []),
    el('h4', { text: 'Curves' }), runCurves(run));
}
const WORDS = { host: 'host', cuda: 'CUDA', driver: 'driver', processes: 'processes', threads: 'threads', shared: 'jobs at a time on the device' };
// Curves of one run, each with its own axes.
function runCurves(run) {
  const all = curves(), box = el('div', { class: 'curves' });
  for (const [name, runs] of Object.entries(all.names)) {
    if (!runs[run.place]) continue;
    const [code, values] = runs[run.place];
    const points = all.steps[code].map((step, i) => [step, values[i]]).filter(([, value]) => value !== null);
    if (points.length) box.append(smallCurve(name, points));
  }
  return box.children.length ? box : el('p', { class: 'note', text: UNKNOWN });
}
function smallCurve(name, points) {
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const px = (x) => 52 + 236 * (x - x0) / ((x1 - x0) || 1), py = (y) => 118 - 98 * (y - y0) / ((y1 - y0) || 1);
  const short = (value) => String(+value.toPrecision(3));
  const svg = el('svg:svg', { viewBox: '0 0 300 160', role: 'img', 'aria-label': `${name}: from ${short(ys[0])} to ${short(ys[ys.length - 1])} over ${points.length} points` });
  const word = (x, y, anchor, text, colour = 'soft') => svg.append(el('svg:text', { x, y, 'text-anchor': anchor, style: `fill:var(--${colour});font-size:11px`, text }));
  svg.append(el('svg:path', { d: 'M52,20V118H288', style: 'fill:none;stroke:var(--edge);stroke-width:1' }));
  svg.append(el('svg:path', { d: `M${points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join('L')}`, style: 'fill:none;stroke:var(--accent);stroke-width:1.6' }));
  if (points.length === 1) svg.append(el('svg:circle', { cx: px(xs[0]), cy: py(ys[0]), r: 3, style: 'fill:var(--accent)' }));
  word(52, 12, 'start', name, 'ink');
  word(48, 24, 'end', short(y1));
  if (y1 > y0) word(48, 121, 'end', short(y0));
  word(52, 133, 'start', short(x0));
  word(288, 133, 'end', short(x1));
  word(170, 148, 'middle', 'step');
  return svg;
}
function listenRuns() {
  $('#board tbody').addEventListener('click', (event) => {
    if (event.target.closest('a')) return;
    const line = event.target.closest('tr[data-row]'), row = line && rows.find((item) => item.key === line.dataset.row);
    if (row) { openRuns(row, ''); remember(); }
  });
  const dialog = $('#runs');
  $('#runs-list').addEventListener('click', (event) => {
    const button = event.target.closest('[data-run]');
    if (button) { showRun(RUNS.find((run) => run.id === button.dataset.run)); remember(); }
  });
  $('#runs-close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => { state.run = ''; remember(); });
}
