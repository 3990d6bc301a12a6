// ---- all together --------------------------------------------------------------
function update() {
  aggregate();
  drawBoard();
  drawWords();
  drawRanks();
  drawPublished();
  drawPairs();
  drawChoice();
  stale();
}
function change() {
  update();
  remember();
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
listenDownloads();
listenRuns();
listenPairs();
listenChoice();
update();
drawFailures();
$('#pictures').addEventListener('click', enlarge);
window.addEventListener('hashchange', follow);
window.addEventListener('beforeprint', () => print(true));
window.addEventListener('afterprint', () => print(false));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => stale());
// The leaderboard is there by now; plots need what stands below this script.
document.addEventListener('DOMContentLoaded', () => {
  $('dialog.large').addEventListener('click', (event) => event.currentTarget.close());
  watch();
  markSection();
  follow();
  window.mmpetlReport = { drawAll };
  document.documentElement.dataset.busy = '0';
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
});
