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
  return { ink: get('ink'), soft: get('soft'), line: get('line'), edge: get('edge'), panel: get('panel'), accent: get('accent'),
    low: get('low'), mid: get('mid'), high: get('high'), colours: [...'01234567'].map((i) => get(`c${i}`)), font: get('sans') };
}
function layout(t, extra) {
  const axis = { gridcolor: t.line, zeroline: false, linecolor: t.edge, tickcolor: t.edge, automargin: true };
  const { xaxis, yaxis, ...rest } = extra;
  return { paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { family: t.font, size: 12.5, color: t.ink },
    margin: { l: 54, r: 16, t: 14, b: 50 }, hoverlabel: { bgcolor: t.panel, bordercolor: t.line, font: { color: t.ink, family: t.font } },
    hovermode: 'closest', dragmode: false, legend: { orientation: 'h', y: -0.2, yanchor: 'top', x: 0 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest };
}
// What printing changes is said here too: Plotly keeps what a later config leaves out.
const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true, staticPlot: false };
const painters = {};
const SHEET = 560;
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
  if (made.nodes) { plot.canvas.replaceChildren(...made.nodes); return; }
  // A picture that is taller than a sheet would be cut in two.
  if (printing && made.height) made.height = Math.min(made.height, SHEET);
  if (made.height) plot.canvas.style.height = `${made.height}px`;
  if (made.width) plot.canvas.style.minWidth = `${made.width}px`;
  const size = printing ? { autosize: false, width: plot.printWidth, height: made.height || 420 } : { autosize: true };
  plotly().react(plot.canvas, made.data, layout(theme(), { ...made.layout, ...size }), printing ? { ...CONFIG, responsive: false, staticPlot: true } : CONFIG);
  plot.live = true;
  plot.canvas.removeAllListeners('plotly_click');
  if (made.click && !printing) plot.canvas.on('plotly_click', (event) => made.click(event.points[0]));
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
    if (node.dataset.words === undefined) {
      canvas.setAttribute('role', 'img');
      canvas.setAttribute('aria-label', $('figcaption', node).textContent);
    }
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

// The bar beside a map: what its colours stand for.
function colourBar(t, title, lines) {
  return { thickness: 12, outlinewidth: 0, len: Math.max(0.35, Math.min(1, 320 / (21 * lines + 30))), y: 1, yanchor: 'top',
    tickfont: { color: t.soft }, title: { text: title, side: 'right', font: { size: 11.5, color: t.ink } } };
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
const fromTo = (xs) => { const low = Math.min(...xs), high = Math.max(...xs); return low === high ? String(low) : `${low} to ${high}`; };
function costPlot(key, title, show, scale, log) {
  return (t, plot) => {
    const points = rows.filter((row) => row.fair && row[key] !== null).map((row) => ({ row, x: row[key] / scale, y: row.plain }));
    if (points.length < 1) return 'Nothing to draw: no method with this cost has all tasks of the selection.';
    const positive = points.map((point) => point.x).filter((x) => x > 0);
    // A logarithm has no zero: methods that train no backbone stand at the left edge.
    const edge = positive.length ? Math.min(...positive) / 4 : 0.1;
    const place = (x) => (log && x <= 0 ? edge : x);
    const data = unique(points.map((point) => point.row.family)).sort().map((family) => {
      const own = points.filter((point) => point.row.family === family), i = FAMILIES.indexOf(family) % 8;
      return { type: 'scatter', mode: 'markers', name: plain(family || 'none'), x: own.map((p) => place(p.x)), y: own.map((p) => p.y),
        customdata: own.map((p) => [plain(p.row.name), plain(show(p.row[key])), number(p.row.spread, 2), number(p.row.ppt, 3), p.row.n]),
        error_y: { type: 'data', array: own.map((p) => p.row.spread), color: t.colours[i], thickness: 1.2, width: 3 },
        error_x: key === 'step' ? { type: 'data', symmetric: false, color: t.colours[i], thickness: 1.2, width: 3,
          array: own.map((p) => (p.row.quartiles ? p.row.quartiles[1] / scale - p.x : null)),
          arrayminus: own.map((p) => (p.row.quartiles ? p.x - p.row.quartiles[0] / scale : null)) } : undefined,
        marker: { color: t.colours[i], symbol: SYMBOLS[i], size: 10, line: { color: t.panel, width: 1 } },
        hovertemplate: '<b>%{customdata[0]}</b><br>%{y:.2f} ± %{customdata[2]}, n = %{customdata[4]}<br>%{customdata[1]}<br>PPT %{customdata[3]}<extra></extra>' };
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
    const counts = fromTo(points.map((p) => p.row.n));
    $('.bars', plot.node).textContent = points.some((p) => p.row.spread !== null)
      ? `Upright bars: one standard deviation over n = ${counts} seeds.${key === 'step' ? ' Level bars: the middle half of the runs.' : ''}` : `No bars: n = ${counts} seed.`;
    const xaxis = { title: { text: title, standoff: 8 }, type: log ? 'log' : 'linear' }, shapes = [];
    if (log) {
      const zero = points.some((p) => p.x <= 0), ticks = [];
      if (zero && positive.length) {
        // The axis breaks between zero and the smallest number.
        const gap = Math.log10(edge * 2);
        shapes.push({ type: 'line', xref: 'x', yref: 'paper', x0: edge * 2, x1: edge * 2, y0: 0, y1: 1, line: { color: t.edge, width: 1, dash: 'dot' } });
        for (const y of [0, 1]) annotations.push({ x: gap, xref: 'x', y, yref: 'paper', yanchor: 'middle', text: '<b>//</b>', showarrow: false, font: { size: 14, color: t.ink } });
      }
      const low = Math.log10(Math.min(...positive, zero ? edge : Infinity)), high = Math.log10(Math.max(...positive, edge));
      // Powers of ten alone may leave a narrow axis without a tick.
      const digits = high - low > 1.6 ? [1] : high - low > 0.5 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
      for (let d = Math.floor(low) - 1; d <= high + 1; d += 1) ticks.push(...digits.map((digit) => digit * 10 ** d));
      xaxis.tickvals = [...(zero ? [edge] : []), ...ticks.filter((tick) => !zero || tick > edge * 2)];
      xaxis.ticktext = xaxis.tickvals.map((tick) => (zero && tick === edge ? '0' : brief(tick)));
    }
    return { data, height,
      layout: { xaxis, showlegend: key === 'trainable', yaxis: { title: { text: 'plain mean, percent', standoff: 6 } }, annotations,
        shapes, margin: { l: 54, r: 24, t: 24, b: 50 } },
      table: () => [['Method', 'Cost', 'Plain mean', 'Spread', 'n', 'On the front'],
        [...points].sort((a, b) => a.x - b.x).map((p) => [p.row.name, show(p.row[key]), number(p.y, 2), number(p.row.spread, 2), String(p.row.n), line.includes(p) ? 'yes' : ''])] };
  };
}
painters.params = costPlot('trainable', 'trainable parameters of the backbone', count, 1, true);
painters.memory = costPlot('memory', 'peak memory, GB', bytes, 2 ** 30, false);
painters.step = costPlot('step', 'step, ms', seconds, 1e-3, false);

// Heat map.
painters.heat = (t) => {
  const tasks = rows.shown.map(([task]) => task);
  if (!rows.length) return 'No method passes these filters.';
  const mode = state.heat;
  const ordered = [...rows].sort((a, b) => byMean(a, b));
  const column = new Map(tasks.map((task) => [task, ordered.map((row) => row.values.get(task)).filter((x) => x !== null && x !== undefined)]));
  const tone = (task, value) => {
    if (value === null || value === undefined) return null;
    if (mode === 'score') return value;
    if (mode === 'rank') return 1 + column.get(task).filter((x) => x - value >= DATA.draws.edge).length;
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
    const wide = spread([...cell.seeds.values()]);
    return `${number(row.values.get(task), 2)}${wide === null ? '' : ` ± ${wide.toFixed(2)}`}, n = ${cell.seeds.size}<br>${scores}${cell.failed ? `<br>${cell.failed} failed` : ''}`;
  }));
  const flat = z.flat().filter((x) => x !== null);
  const reach = mode === 'median' ? Math.max(0.5, [...flat].map(Math.abs).sort((a, b) => a - b)[Math.floor(flat.length * 0.95)] || 0.5) : null;
  const scales = { median: [[0, t.low], [0.5, t.mid], [1, t.high]], score: [[0, t.mid], [1, t.high]], rank: [[0, t.high], [1, t.mid]] };
  const names = ordered.map((row) => plain(row.name));
  // Names of axes are keys to plotly, so rows and columns go by place.
  const places = (xs) => xs.map((_, i) => i);
  return { height: 130 + 21 * ordered.length, width: 190 + 44 * tasks.length,
    data: [{ type: 'heatmap', x: places(tasks), y: places(names), z, text, texttemplate: '%{text}', textfont: { size: printing ? 8 : 10.5, color: t.ink },
      colorscale: scales[mode], zmin: reach === null ? undefined : -reach, zmax: reach === null ? undefined : reach,
      hovertemplate: '%{hovertext}<extra></extra>', hoverongaps: true, xgap: 1, ygap: 1,
      hovertext: hover.map((line, i) => line.map((words, j) => `<b>${names[i]}</b> on ${plain(tasks[j])}<br>${words}`)),
      colorbar: colourBar(t, { median: 'points from the task’s median', score: 'score, percent', rank: 'rank on the task' }[mode], ordered.length) }],
    click: (point) => { const row = ordered[point.y]; openRuns(row, tasks[point.x]); remember(); },
    layout: { margin: { l: 8, r: 8, t: 8, b: 8 },
      shapes: rows.shown.flatMap(([, group], i) => (i && group !== rows.shown[i - 1][1]
        ? [{ type: 'line', x0: i - 0.5, x1: i - 0.5, y0: -0.5, y1: ordered.length - 0.5, line: { color: t.ink, width: 2 } }] : [])),
      xaxis: { side: 'top', tickangle: -40, showgrid: false, tickvals: places(tasks), ticktext: tasks.map(plain), ticks: '' },
      yaxis: { autorange: 'reversed', showgrid: false, tickvals: places(names), ticktext: names, ticks: '', tickfont: printing ? { size: 9 } : undefined } },
    table: () => [['Method', ...tasks], ordered.map((row) => [row.name, ...tasks.map((task) => state_(row, task) || 'not run')])] };
};

// Learning curves.
function drawCurveTools() {
  const all = curves();
  const names = Object.keys(all.names).sort((a, b) => (b === 'loss') - (a === 'loss') || a.localeCompare(b));
  const kept = state.curve;
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
        line: { color: t.colours[i % 8], dash: dashes[i % 5], width: 1.7 }, opacity: j ? 0.55 : 1,
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
const seedSpread = (point) => spread([...point.row.cells.get(point.task).seeds.values()]);
painters.published = (t) => {
  const pairs = publishedPairs();
  if (!pairs.length) return 'No published figure matches these methods, tasks and backbones.';
  const data = unique(pairs.map(({ item }) => item.source)).map((source, i) => {
    const points = pairs.filter(({ item }) => item.source === source).flatMap(({ item, row, tasks }) => tasks.map((task) => ({ item, row, task })));
    return { type: 'scatter', mode: 'markers', name: plain(source), x: points.map((p) => p.item.scores[p.task]), y: points.map((p) => p.row.values.get(p.task)),
      customdata: points.map((p) => [plain(p.row.name), plain(p.task), number(seedSpread(p), 2), p.row.cells.get(p.task).seeds.size]),
      marker: { color: t.colours[i % 8], symbol: SYMBOLS[i % 8], size: 7, opacity: 0.8 },
      error_y: { type: 'data', array: points.map(seedSpread), color: t.colours[i % 8], thickness: 1, width: 2 },
      hovertemplate: '<b>%{customdata[0]}</b> on %{customdata[1]}<br>printed %{x:.2f}, ours %{y:.2f} ± %{customdata[2]}, n = %{customdata[3]}<extra></extra>' };
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
  if (bars.length) word(right, 16, 'end', 'under one bar: not shown to differ', 'accent', 12);
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
