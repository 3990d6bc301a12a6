// ---- what is shown, as a file ----------------------------------------------------
// What a column of the leaderboard holds, unrounded: names and values.
function rawOf(column, row) {
  const value = column.get(row);
  if (column.key === 'label') return [['method', row.label]];
  if (column.key === 'plain') return [[column.label, value], [`${column.label} spread`, row.complete ? row.spread : null], ['seeds', row.n]];
  if (column.key === 'trainable') return [['trainable', value], ['trainable_min', row.range ? row.range[0] : null], ['trainable_max', row.range ? row.range[1] : null]];
  if (column.key === 'memory') return [['peak_memory_bytes', value]];
  if (column.key === 'step') return [['step_seconds', value]];
  if (column.key === 'tasks') return [['tasks', row.done], ['of', row.of], ['failed_runs', row.failed]];
  return [[column.key === 'position' ? 'position' : column.label, value]];
}
function shortest(value) {
  if (value === null || value === undefined) return '';
  return typeof value === 'number' ? String(+value.toPrecision(6) === value || Number.isInteger(value) ? value : +value.toPrecision(6)) : String(value);
}
const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
function csvText() {
  const columns = boardColumns(), lines = [];
  const notes = [...document.querySelectorAll('#board-warnings li')].map((item) => item.textContent).join(' ');
  for (const row of rows) {
    const cells = [['protocol', state.protocol], ['suite', state.suite], ['group', state.group || 'all'], ['backbone', row.backbone],
      ['metric', DATA.suites[state.suite].metric], ...columns.filter((column) => column.key !== 'backbone').flatMap((column) => rawOf(column, row)), ['verified', row.verified], ['marks', row.marks.join('; ')], ['warnings', notes]];
    if (!lines.length) lines.push(cells.map(([name]) => quoted(name)).join(','));
    lines.push(cells.map(([, value]) => quoted(shortest(value))).join(','));
  }
  return `${lines.join('\n')}\n`;
}
// As mmpetl.benchmark.latex escapes: letters of Latin scripts stay, others become codes.
function tex(text) {
  return [...String(text).replace(/\s+/g, ' ').trim()].map((char) => {
    if (DATA.tex[char] !== undefined) return DATA.tex[char];
    const code = char.codePointAt(0);
    if (code < 0x20 || code === 0x7f) return '';
    if (code < 0x7f || (code < 0x180 && /\p{L}/u.test(char))) return char;
    const flat = char.normalize('NFKC');
    if (/^[ -~]+$/.test(flat)) return [...flat].map((one) => DATA.tex[one] ?? one).join('');
    return `{[}U+${code.toString(16).toUpperCase().padStart(4, '0')}{]}`;
  }).join('');
}
// A booktabs table of what is shown; the best of each mean is bold.
function texText() {
  const columns = boardColumns().filter((column) => !['position', 'tasks', 'family'].includes(column.key));
  const scored = (column) => column.key === 'ppt' || ['plain', 'group'].includes(column.key) || /^g\d/.test(column.key);
  const tops = new Map(columns.filter(scored).map((column) => [column, Math.max(...rows.filter((row) => row.fair && column.get(row) !== null)
    .map((row) => +column.get(row).toFixed(column.key === 'ppt' ? 3 : 2)))]));
  const cell = (column, row) => {
    const value = column.get(row);
    if (column.key === 'label') return tex(row.label) + (row.marks.length ? '$^\\ddagger$' : '');
    if (value === null) return '--';
    if (column.text) { if (!tops.has(column)) return tex(column.text(row)); }
    if (column.key === 'trainable') return tex(count(value));
    const digits = column.key === 'ppt' ? 3 : 2, text = value.toFixed(digits);
    let words = row.fair && +text === tops.get(column) ? `\\textbf{${text}}` : text;
    if (column.key === 'plain' && row.complete && row.spread !== null) words += ` {\\scriptsize$\\pm$ ${row.spread.toFixed(2)}}`;
    return row.complete ? words : `\\textit{${words}} {\\scriptsize(${row.done}/${row.of})}`;
  };
  const star = columns.length > 6 ? '*' : '';
  const notes = [...document.querySelectorAll('#board-warnings li')].map((item) => item.textContent);
  const complete = rows.filter((row) => row.complete), seeds = complete.length ? fromTo(complete.map((row) => row.n)) : 'no';
  notes.unshift(`±: sample standard deviation over ${seeds} seeds. Bold: the best of a column, which is no test.`);
  const name = [state.suite, state.group, state.backbone, state.protocol].filter(Boolean).join('-').replace(/[^A-Za-z0-9]+/g, '-').toLowerCase();
  const title = `${state.suite}${state.group ? `, ${state.group}` : ''}, ${state.backbone || 'all backbones'}: ${DATA.suites[state.suite].metric}, percent, ${state.protocol} protocol`;
  // Wider than its column, the table is scaled down to it; never up.
  return ['% needs \\usepackage{booktabs} and \\usepackage{graphicx}', `\\begin{table${star}}[t]`, '\\centering', `\\caption{${tex(title)}}`, `\\label{tab:${name}}`,
    '\\footnotesize', '\\setlength{\\tabcolsep}{3pt}', '\\sbox0{%', `\\begin{tabular}{@{}${columns.map((column) => (column.left ? 'l' : 'r')).join('')}@{}}`, '\\toprule',
    `${columns.map((column) => tex(column.label)).join(' & ')} \\\\`, '\\midrule',
    ...rows.map((row) => `${columns.map((column) => cell(column, row)).join(' & ')} \\\\`), '\\bottomrule', '\\end{tabular}}%',
    '\\ifdim\\wd0>\\linewidth', '\\resizebox{\\linewidth}{!}{\\usebox0}%', '\\else', '\\usebox0 %', '\\fi', '', '\\smallskip',
    '\\parbox{\\linewidth}{\\scriptsize\\raggedright', ...notes.map((note) => `${tex(note)}\\par`), '}', `\\end{table${star}}`, ''].join('\n');
}
function save(name, text, kind) {
  const url = URL.createObjectURL(new Blob([text], { type: `${kind};charset=utf-8` }));
  el('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
function listenDownloads() {
  const stem = () => [state.suite, state.group, state.backbone, state.protocol].filter(Boolean).join('-').replace(/[^A-Za-z0-9.-]+/g, '_');
  $('#save-csv').addEventListener('click', () => save(`${stem()}.csv`, csvText(), 'text/csv'));
  $('#save-tex').addEventListener('click', () => save(`${stem()}.tex`, texText(), 'text/plain'));
  $('#copy-link').addEventListener('click', copyLink);
}
