// ---- which method should I take --------------------------------------------------
// The same as mmpetl.benchmark.choosing, in the page: its bootstrap draws the same tasks
// and seeds, since the generator (PCG64, O'Neill 2014, as numpy has it) starts alike.
const ONES = (1n << 128n) - 1n, MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
function generator() {
  let state = BigInt(DATA.draws.state), half = null;
  const increment = BigInt(DATA.draws.increment);
  const next64 = () => {
    state = (state * MULTIPLIER + increment) & ONES;
    const word = (state >> 64n) ^ (state & 0xffffffffffffffffn), turn = state >> 122n;
    return ((word >> turn) | (word << (64n - turn))) & 0xffffffffffffffffn;
  };
  // numpy gives the lower half first, then the upper one.
  const next32 = () => {
    if (half !== null) { const kept = half; half = null; return kept; }
    const word = next64();
    half = Number(word >> 32n);
    return Number(word & 0xffffffffn);
  };
  // A whole number below n (Lemire, 2019); n = 1 takes no draw.
  return (n) => {
    if (n === 1) return 0;
    let product = next32() * n;
    const least = (2 ** 32 - n) % n;
    while (product % 2 ** 32 < least) product = next32() * n;
    return Math.floor(product / 2 ** 32);
  };
}
const rounded = (score) => Math.round(score / (2 * DATA.draws.edge));
// Ranks of scores, 1 is best; ties share their mean.
function ranksOf(scores, order, out) {
  order.sort((a, b) => scores[b] - scores[a]);
  for (let i = 0; i < order.length;) {
    let j = i;
    // Nearer ones are not told apart, as in mmpetl.benchmark.statistics.
    while (j + 1 < order.length && scores[order[j]] - scores[order[j + 1]] < DATA.draws.edge) j += 1;
    for (let k = i; k <= j; k += 1) out[order[k]] += (i + j) / 2 + 1;
    i = j + 1;
  }
}
const ends = (values) => {
  const edge = (1 - DATA.draws.level) / 2;
  return [quantile(values, edge), quantile(values, 1 - edge)];
};
// Intervals of means and mean ranks by label; null where nothing can be drawn.
function uncertainty(labels, tasks, cells) {
  const seeds = tasks.map((task) => [...cells.get(labels[0]).get(task).keys()]
    .filter((seed) => labels.every((label) => cells.get(label).get(task).has(seed))).sort((a, b) => a - b));
  if (seeds.some((own) => !own.length) || (tasks.length < 2 && seeds[0].length < 2)) return null;
  const scores = tasks.map((task, i) => labels.map((label) => seeds[i].map((seed) => cells.get(label).get(task).get(seed))));
  const below = generator(), many = DATA.draws.resamples, k = labels.length;
  const means = labels.map(() => new Array(many)), ranks = labels.map(() => new Array(many)), best = labels.map(() => 0);
  const order = labels.map((_, i) => i), column = new Array(k);
  // All tasks are drawn first, then, task by task, the seeds of each time it was drawn.
  const places = Array.from({ length: many * tasks.length }, () => below(tasks.length)), drawn = new Array(places.length);
  seeds.forEach((own, task) => places.forEach((place, i) => { if (place === task) drawn[i] = own.map(() => below(own.length)); }));
  for (let draw = 0; draw < many; draw += 1) {
    const total = new Array(k).fill(0), place = new Array(k).fill(0);
    for (let slot = draw * tasks.length; slot < (draw + 1) * tasks.length; slot += 1) {
      const own = scores[places[slot]], chosen = drawn[slot];
      for (let i = 0; i < k; i += 1) {
        let sum = 0;
        for (const seed of chosen) sum += own[i][seed];
        column[i] = sum / chosen.length;
        total[i] += column[i];
      }
      ranksOf(column, order, place);
    }
    let least = Infinity, firsts = 0;
    for (let i = 0; i < k; i += 1) {
      means[i][draw] = total[i] / tasks.length;
      ranks[i][draw] = place[i] / tasks.length;
      least = Math.min(least, ranks[i][draw]);
    }
    for (let i = 0; i < k; i += 1) firsts += ranks[i][draw] - least < 1e-9;
    for (let i = 0; i < k; i += 1) if (ranks[i][draw] - least < 1e-9) best[i] += 1 / firsts / many;
  }
  return new Map(labels.map((label, i) => [label, { mean: ends(means[i]), rank: ends(ranks[i]), best: best[i] }]));
}
function holm(ps) {
  const order = ps.map((_, i) => i).sort((a, b) => ps[a] - ps[b]), out = [];
  let highest = 0;
  order.forEach((i, place) => { highest = Math.max(highest, Math.min(1, (ps.length - place) * ps[i])); out[i] = highest; });
  return out;
}
const LIMITS = [
  { key: 'memory', head: 'Memory', name: 'peak memory', unit: 'GB', scale: 2 ** 30, show: bytes },
  { key: 'trainable', head: 'Trainable', name: 'trainable parameters', unit: '', scale: 1, show: count },
  { key: 'step', head: 'Step', name: 'training step', unit: 'ms', scale: 1e-3, show: seconds },
  { key: 'latency', head: 'Latency', name: 'latency', unit: 'ms', scale: 1e-3, show: seconds },
];
// Time of a prediction is asked for where some run has a card of the scorecard.
const TIMED = DATA.statistics.some((item) => Object.values(item.choice.facts).some((facts) => facts.latency !== null));
const shownLimits = () => LIMITS.filter(({ key }) => key !== 'latency' || TIMED || state.limits.latency !== '');
function limitsOf() {
  const found = { folds: state.limits.folds === 'yes' };
  for (const { key, scale } of LIMITS) {
    const value = state.limits[key] === '' ? NaN : Number(state.limits[key]);
    found[key] = Number.isFinite(value) && value >= 0 ? value * scale : null;
  }
  return found;
}
// Why a row does not fit, and what its records do not tell.
function against(facts, limits) {
  const reasons = [], unknown = [];
  for (const { key, name, show } of LIMITS) {
    if (limits[key] === null) continue;
    if (facts[key] === null) unknown.push(name);
    else if (facts[key] > limits[key]) reasons.push(`${name} ${show(facts[key])}`);
  }
  if (limits.folds && facts.folds === null) unknown.push('folding');
  if (limits.folds && facts.folds === false) reasons.push('does not fold');
  return { reasons, unknown };
}
const chosenBefore = new Map();
function choose(item) {
  const limits = limitsOf(), key = JSON.stringify([DATA.statistics.indexOf(item), limits]);
  if (chosenBefore.has(key)) return chosenBefore.get(key);
  const cells = new Map();
  for (const run of RUNS) {
    if (run.protocol !== item.protocol || run.suite !== item.suite || run.backbone !== item.backbone || run.score === null) continue;
    if (!cells.has(run.label)) cells.set(run.label, new Map());
    const row = cells.get(run.label);
    if (!row.has(run.task)) row.set(run.task, new Map());
    row.get(run.task).set(run.seed, run.score);
  }
  const { tasks, facts, whole, p } = item.choice, excluded = [], incomplete = [], fit = new Map();
  for (const label of item.labels_all) {
    const { reasons, unknown } = against(facts[label], limits);
    if (item.marks[label]) reasons.unshift('is not to be compared ‡');
    if (reasons.length) excluded.push([label, reasons]);
    else if (!whole.includes(label)) incomplete.push([label, tasks.filter((task) => !(cells.get(label) || new Map()).has(task))]);
    else fit.set(label, unknown);
  }
  const labels = [...fit.keys()], total = labels.map(() => 0), order = labels.map((_, i) => i);
  const value = (label, task) => mean([...cells.get(label).get(task)].sort((a, b) => a[0] - b[0]).map(([, score]) => score));
  for (const task of tasks) ranksOf(labels.map((label) => value(label, task)), order, total);
  const found = labels.map((label, i) => ({ label, unknown: fit.get(label), facts: facts[label], rank: total[i] / tasks.length, mean: mean(tasks.map((task) => value(label, task))) }))
    .sort((a, b) => a.rank - b.rank || rounded(b.mean) - rounded(a.mean));
  const around = found.length ? uncertainty(found.map((one) => one.label), tasks, cells) : null;
  const pOf = (a, b) => { const [i, j] = [whole.indexOf(a), whole.indexOf(b)].sort((x, y) => x - y); return p[i * whole.length - i * (i + 1) / 2 + j - i - 1]; };
  const ps = holm(found.slice(1).map((one) => pOf(found[0].label, one.label)));
  found.forEach((one, i) => {
    Object.assign(one, around ? around.get(one.label) && { meanEnds: around.get(one.label).mean, rankEnds: around.get(one.label).rank, best: around.get(one.label).best } : { meanEnds: null, rankEnds: null, best: null });
    one.p = i ? ps[i - 1] : null;
    one.tied = !i || one.p >= DATA.draws.alpha;
  });
  const answer = { item, limits, candidates: found, excluded, incomplete, tasks };
  if (chosenBefore.size > 40) chosenBefore.clear();
  chosenBefore.set(key, answer);
  return answer;
}
// What may be said, in sentences.
function sayChoice({ candidates, tasks }) {
  const tied = candidates.filter((one) => one.tied), others = candidates.length - 1;
  if (!tied.length) return ['No method fits.'];
  if (!others) return [`Only ${tied[0].label} fits; there is nothing to rank.`];
  const how = `signed-rank test over ${several(tasks.length, 'task')}, Holm over ${several(others, 'comparison')} with the first`;
  if (tied.length === 1) return [`${tied[0].label} is first, and all others are shown to differ (${how}).`];
  const lines = [`The first place is shared by ${tied.length} of ${candidates.length}: ${tied.map((one) => one.label).join(', ')}. They are not shown to differ from ${tied[0].label} (${how}).`];
  const least = Math.min(1, others * Math.min(1, 2 ** (1 - tasks.length)));
  if (least >= DATA.draws.alpha) {
    let need = 1;
    while (others * 2 ** (1 - need) >= DATA.draws.alpha) need += 1;
    lines.push(`With ${several(tasks.length, 'task')} no difference can be shown: the least p is ${+least.toPrecision(3)}; ${need} tasks can.`);
  }
  const cheap = LIMITS.slice(0, 3).filter(({ key }) => tied.every((one) => one.facts[key] !== null)).map(({ key, name, show }) => {
    const low = Math.min(...tied.map((one) => one.facts[key]));
    return `${name} ${tied.filter((one) => one.facts[key] === low).map((one) => one.label).join(', ')} (${show(low)})`;
  });
  if (cheap.length) lines.push(`Of these, least in ${cheap.join('; in ')}.`);
  return lines;
}
function intervalPicture(one, top) {
  const x = (rank) => 4 + 152 * (rank - 1) / ((top - 1) || 1);
  const words = `mean rank ${one.rank.toFixed(2)}${one.rankEnds ? `, interval ${one.rankEnds.map((end) => end.toFixed(2)).join(' to ')}` : ''}`;
  const svg = el('svg:svg', { viewBox: '0 0 160 16', width: 160, height: 16, role: 'img', 'aria-label': words });
  const line = (x1, y1, x2, y2, width, colour) => svg.append(el('svg:line', { x1, y1, x2, y2, style: `stroke:var(--${colour});stroke-width:${width}` }));
  line(4, 8, 156, 8, 1, 'line');
  if (one.rankEnds) {
    line(x(one.rankEnds[0]), 8, x(one.rankEnds[1]), 8, 2, 'accent');
    for (const end of one.rankEnds) line(x(end), 4, x(end), 12, 1.5, 'accent');
  }
  svg.append(el('svg:circle', { cx: x(one.rank), cy: 8, r: 4, style: `fill:var(--${one.tied ? 'accent' : 'panel'});stroke:var(--accent);stroke-width:1.5` }));
  return svg;
}
const NOTHING_TO_DRAW = 'No intervals: on some task no seed is there of all that fit, so that none can be drawn for all alike.';
function choiceBlock(answer) {
  const { item, candidates, excluded, incomplete } = answer, top = Math.max(2, ...candidates.flatMap((one) => [one.rank, ...(one.rankEnds || [])]));
  const show = (one, { key, name, show: words }) => (one.facts[key] === null ? '?' : words(one.facts[key])) + (one.unknown.includes(name) ? ' ?' : '');
  const lines = candidates.map((one) => [one.label,
    el('td', { class: 'l' }, intervalPicture(one, top)),
    `${one.rank.toFixed(2)}${one.rankEnds ? ` (${one.rankEnds.map((end) => end.toFixed(2)).join(' to ')})` : ''}`,
    `${one.mean.toFixed(2)}${one.meanEnds ? ` (${one.meanEnds.map((end) => end.toFixed(2)).join(' to ')})` : ''}`,
    one.best === null ? '–' : `${(100 * one.best).toFixed(1)} %`, one.p === null ? '–' : small(one.p),
    el('td', { class: 'l', text: one.tied ? 'shares the first place' : 'shown to be worse' }),
    ...shownLimits().map((limit) => show(one, limit)), one.facts.folds === null ? '?' : one.facts.folds ? 'yes' : 'no']);
  const table = makeTable(['Method', 'Mean rank, 1 is best', 'Mean rank', 'Mean score', 'Best in', 'p to the first', 'Verdict', ...shownLimits().map(({ head }) => head), 'Folds'], lines);
  table.className = 'choice';
  const left = [...excluded.map(([label, reasons]) => `${label}: ${reasons.join(', ')}`), ...incomplete.map(([label, missing]) => `${label}: lacks ${missing.join(', ')}`)];
  const few = candidates.length > 1 && candidates[0].rankEnds === null ? [NOTHING_TO_DRAW] : [];
  return [el('h3', { text: item.choice.title }), ...[...sayChoice(answer), ...few].map((text) => el('p', { class: 'verdict', text })),
    lines.length ? el('div', { class: 'scroll long', tabindex: '0', role: 'region', 'aria-label': `Methods that fit, ${item.choice.title}` }, table) : null,
    ...(left.length ? [el('details', { class: 'left-out' }, el('summary', { text: `${several(left.length, 'method')} left out` }), el('ul', {}, ...left.map((text) => el('li', { text }))))] : []),
    ...item.warnings.map((text) => el('p', { class: 'note', text }))].filter(Boolean);
}
painters.choice = () => {
  const kind = state.limits.kind;
  const items = DATA.statistics.filter((item) => item.protocol === state.protocol && (!state.backbone || item.backbone === state.backbone)
    && (kind ? item.choice.kind === kind : item.suite === state.suite));
  if (!items.length) return 'No table of this kind of task.';
  return { nodes: items.flatMap((item) => choiceBlock(choose(item))) };
};
function drawChoice() {
  const kinds = unique(DATA.statistics.map((item) => item.choice.kind).filter(Boolean)).sort();
  fill($('#limit-kind'), [['', 'the suite of the filters'], ...kinds.map((x) => [x, x])], kinds.includes(state.limits.kind) ? state.limits.kind : '');
  state.limits.kind = $('#limit-kind').value;
  for (const { key } of LIMITS) if ($(`#limit-${key}`).value !== state.limits[key]) $(`#limit-${key}`).value = state.limits[key];
  $('#limit-latency').parentElement.hidden = !shownLimits().some(({ key }) => key === 'latency');
  $('#limit-folds').checked = state.limits.folds === 'yes';
}
function listenChoice() {
  $('#choice-note').textContent = DATA.draws.note;
  const again = () => { stale(['choice']); remember(); };
  for (const { key } of LIMITS) $(`#limit-${key}`).addEventListener('input', (event) => { state.limits[key] = event.target.value; again(); });
  $('#limit-folds').addEventListener('change', (event) => { state.limits.folds = event.target.checked ? 'yes' : ''; again(); });
  $('#limit-kind').addEventListener('change', (event) => { state.limits.kind = event.target.value; again(); });
  $('#limits').addEventListener('submit', (event) => event.preventDefault());
}
