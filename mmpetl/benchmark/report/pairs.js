// ---- method against method -------------------------------------------------------
// What was computed with the records: a minus b over the tasks and seeds of both.
function pairTable() {
  return DATA.statistics.find((item) => item.suite === state.suite && item.protocol === state.protocol
    && (state.backbone ? item.backbone === state.backbone : true) && item.pairs.length) || null;
}
// The pair as seen from one of its two.
function seenFrom(item, pair, index) {
  if (pair.a === index) return { other: item.labels[pair.b], ...pair };
  return { other: item.labels[pair.a], ...pair, difference: -pair.difference, wins: pair.losses, losses: pair.wins,
    low: pair.high === null ? null : -pair.high, high: pair.low === null ? null : -pair.low };
}
const signed = (value, digits = 2) => (value === null ? '–' : `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(digits)}`);
const small = (p) => (p === null ? '–' : p < 0.001 ? p.toExponential(1) : p.toFixed(3));
const differs = (pair) => pair.p_tasks !== null && pair.p_tasks < 0.05;
function pairLines(item) {
  const index = item.labels.indexOf(state.pair);
  return item.pairs.filter((pair) => pair.a === index || pair.b === index).map((pair) => seenFrom(item, pair, index))
    .sort((a, b) => b.difference - a.difference);
}
function drawPairs() {
  const item = pairTable(), tools = $('#pair-tools'), box = $('#pair-table');
  tools.hidden = !item;
  if (!item) {
    box.replaceChildren(el('p', { class: 'empty', text: 'Nothing to compare: no two methods share a task and a seed.' }));
    return;
  }
  const order = [...rows].sort(byMean).filter((row) => row.backbone === item.backbone).map((row) => row.label).filter((label) => item.labels.includes(label));
  if (!item.labels.includes(state.pair)) state.pair = order[0] || item.labels[0];
  fill($('#pair-of'), item.labels.map((label) => [label, label]), state.pair);
  const table = makeTable(['Compared with', 'Difference', `${item.level} interval`, 'Win / tie / loss', 'n tasks', 'n runs', 'p over tasks', 'p over runs', 'Verdict'],
    pairLines(item).map((pair) => [pair.other, signed(pair.difference), pair.low === null ? '–' : `${signed(pair.low)} to ${signed(pair.high)}`,
      `${pair.wins} / ${pair.ties} / ${pair.losses}`, String(pair.tasks), String(pair.runs), small(pair.p_tasks), small(pair.p_runs),
      el('td', { class: 'l', text: differs(pair) ? (pair.difference > 0 ? 'better' : 'worse') : 'not shown to differ' })]));
  table.id = 'pairs-of';
  box.replaceChildren(el('div', { class: 'scroll long', tabindex: '0', role: 'region', 'aria-label': `${state.pair} against the others` }, table),
    el('p', { class: 'note', text: `${item.backbone}: ${state.pair} minus the other, in points, over the tasks and seeds that both have. ${item.interval} ${item.tests}` }));
}
// Every two methods, by mean score; a cell is the row minus the column.
painters.pairs = (t) => {
  const item = pairTable();
  if (!item) return 'Nothing to compare: no two methods share a task and a seed.';
  const shown = [...rows].sort(byMean).filter((row) => row.backbone === item.backbone && item.labels.includes(row.label)).map((row) => row.label);
  if (shown.length < 2) return 'No two methods pass these filters.';
  const of = new Map();
  for (const pair of item.pairs) {
    of.set(`${pair.a} ${pair.b}`, seenFrom(item, pair, pair.a));
    of.set(`${pair.b} ${pair.a}`, seenFrom(item, pair, pair.b));
  }
  const code = shown.map((label) => item.labels.indexOf(label));
  const found = code.map((a) => code.map((b) => of.get(`${a} ${b}`) || null));
  const z = found.map((line) => line.map((pair) => (pair ? pair.difference : null)));
  const reach = Math.max(0.5, ...z.flat().filter((x) => x !== null).map(Math.abs));
  const text = found.map((line) => line.map((pair) => (pair ? `${signed(pair.difference, 1)}${differs(pair) ? '*' : ''}` : '')));
  const hover = found.map((line, i) => line.map((pair, j) => (pair
    ? `<b>${plain(shown[i])}</b> minus <b>${plain(shown[j])}</b><br>${signed(pair.difference)}${pair.low === null ? '' : `, ${item.level}: ${signed(pair.low)} to ${signed(pair.high)}`}`
      + `<br>${several(pair.tasks, 'task')}, ${several(pair.runs, 'pair')} of runs<br>p over tasks ${small(pair.p_tasks)}${differs(pair) ? '' : ': not shown to differ'}`
    : plain(shown[i]))));
  const places = shown.map((_, i) => i);
  return { height: 130 + 21 * shown.length, width: 200 + (shown.length > 26 ? 35 : 40) * shown.length, click: (point) => { state.pair = shown[point.y]; drawPairs(); remember(); },
    data: [{ type: 'heatmap', x: places, y: places, z, text, texttemplate: '%{text}', textfont: { size: printing ? 6 : shown.length > 26 ? 8.5 : 9.5, color: t.ink }, hovertext: hover, hovertemplate: '%{hovertext}<extra></extra>',
      colorscale: [[0, t.low], [0.5, t.mid], [1, t.high]], zmin: -reach, zmax: reach, xgap: 1, ygap: 1,
      colorbar: colourBar(t, 'row minus column, points', shown.length) }],
    layout: { margin: { l: 8, r: 8, t: 8, b: 8 },
      xaxis: { side: 'top', tickangle: -40, showgrid: false, tickvals: places, ticktext: shown.map(plain), ticks: '' },
      yaxis: { autorange: 'reversed', showgrid: false, tickvals: places, ticktext: shown.map(plain), ticks: '', tickfont: printing ? { size: 9 } : undefined } },
    table: () => [['Method', ...shown], shown.map((label, i) => [label, ...text[i]])] };
};
function listenPairs() {
  $('#pair-of').addEventListener('change', (event) => { state.pair = event.target.value; drawPairs(); remember(); });
}
