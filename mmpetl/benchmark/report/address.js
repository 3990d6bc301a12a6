// ---- the state of the page in its address ---------------------------------------
// `#?key=value&...` is a state, any other hash a place of the page.
function address(at) {
  const words = new URLSearchParams();
  for (const key of ['protocol', 'suite', 'group', 'backbone', 'text', 'pair', 'run']) if (state[key]) words.set(key, state[key]);
  if (!state.backbone) words.set('backbone', '*');
  if (state.budget !== Infinity) words.set('budget', String(state.budget));
  for (const family of [...state.off].sort()) words.append('off', family);
  words.set('sort', `${state.sort.key}.${state.sort.down ? 'down' : 'up'}`);
  words.set('heat', state.heat);
  for (const [key, value] of Object.entries(state.curve)) if (value) words.set(`curve-${key}`, value);
  for (const [key, value] of Object.entries(state.limits)) if (value !== '') words.set(`limit-${key}`, value);
  if (at) words.set('at', at);
  return `#?${words}`;
}
let touched = false;
function remember() {
  touched = true;
  history.replaceState(null, '', address());
}
// The state of a link; what this page does not have is said, and left as it is.
function recall(hash) {
  const words = new URLSearchParams(hash.slice(2)), missing = [];
  reset();
  const take = (key, known) => {
    const value = words.get(key);
    if (value === null) return null;
    if (known(value)) return value;
    missing.push(`${key} ${value}`);
    return null;
  };
  const one = (key, runs, extra = '') => {
    const value = take(key, (text) => (extra && text === extra) || runs.some((run) => run[key] === text));
    if (value !== null) state[key] = value === extra ? '' : value;
  };
  one('protocol', RUNS);
  const kept = RUNS.filter((run) => run.protocol === state.protocol);
  if (!kept.some((run) => run.suite === state.suite)) state.suite = commonest(kept.map((run) => run.suite));
  one('suite', kept);
  one('backbone', RUNS.filter(inScope), '*');
  const group = take('group', (text) => DATA.suites[state.suite].tasks.some(([, name]) => name === text));
  if (group !== null) state.group = group;
  state.text = words.get('text') || '';
  const budget = take('budget', (text) => /^\d+(\.\d+)?$/.test(text));
  if (budget !== null) state.budget = Number(budget);
  for (const family of words.getAll('off')) {
    if (FAMILIES.includes(family)) state.off.add(family); else missing.push(`family ${family}`);
  }
  const sort = take('sort', (text) => /^\w+\.(up|down)$/.test(text));
  if (sort !== null) state.sort = { key: sort.split('.')[0], down: sort.endsWith('.down') };
  const heat = take('heat', (text) => [...$('#heat-mode').options].some((option) => option.value === text));
  if (heat !== null) state.heat = heat;
  for (const key of Object.keys(state.curve)) state.curve[key] = words.get(`curve-${key}`) ?? state.curve[key];
  for (const key of Object.keys(state.limits)) state.limits[key] = words.get(`limit-${key}`) ?? state.limits[key];
  state.pair = words.get('pair') || '';
  const run = take('run', (text) => RUNS.some((item) => item.id === text));
  if (run !== null) state.run = run;
  drawFilters();
  update();
  if (missing.length) $('#status').textContent += ` The link asks for what this page does not have: ${missing.join(', ')}.`;
  if (state.run) openRun(state.run); else if ($('#runs').open) $('#runs').close();
  const at = words.get('at'), place = at && document.getElementById(at);
  if (place) place.scrollIntoView();
}
// A place of the page, or a state.
function follow() {
  if (location.hash.startsWith('#?')) { recall(location.hash); return; }
  const id = decodeURIComponent(location.hash.slice(1)), place = id && document.getElementById(id);
  if (place && place.tagName === 'DETAILS') { place.open = true; place.scrollIntoView(); }
  // The address keeps what was chosen, with the place.
  if (touched && place) history.replaceState(null, '', address(id));
}
async function copyLink() {
  remember();
  const field = $('#link');
  field.value = location.href;
  field.hidden = false;
  field.select();
  let copied = true;
  // Some browsers refuse it to pages that come from a file; the field holds it then.
  try { await navigator.clipboard.writeText(location.href); } catch { copied = false; }
  $('#said').textContent = copied ? 'The link of this view is copied.' : 'This is the link of this view; copy it from the field.';
}
