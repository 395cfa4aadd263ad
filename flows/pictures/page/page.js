// The page as a whole: its title, its sections, its colours.

function keep(name, value) {
  // Storage is refused to pages in a frame without an origin, as MLflow shows them.
  try { return value === undefined ? localStorage.getItem(name) : localStorage.setItem(name, value); } catch { return null; }
}

function themed() {
  const box = document.getElementById('theme');
  const set = (value) => { if (value) document.documentElement.dataset.theme = value; else delete document.documentElement.dataset.theme; };
  box.value = keep('headwater-theme') ?? '';
  set(box.value);
  box.addEventListener('change', () => { set(box.value); keep('headwater-theme', box.value); });
}

function showTop() {
  document.getElementById('title').textContent = PAGE.set;
  const parts = [];
  if (PAGE.samples?.length) {
    const bad = PAGE.samples.filter((sample) => sample.bad === true).length;
    const kinds = new Set(PAGE.samples.filter((sample) => sample.bad).map((sample) => sample.kind)).size;
    parts.push(`${plural(PAGE.samples.length, `test ${PAGE.kind.name}`)}, ${bad} of them ${PAGE.kind.name === 'pair' ? 'changed' : 'defective'}${kinds > 1 ? ` in ${kinds} kinds` : ''}`);
  }
  if (PAGE.heads?.length) parts.push(plural(PAGE.heads.length, 'model'));
  parts.push(`made ${PAGE.made.slice(0, 16).replace('T', ' ')} UTC with Headwater ${PAGE.headwater}`);
  document.getElementById('about').textContent = parts.join(' · ');
  document.getElementById('notes').append(...PAGE.notes.map((note) => el('p', { class: 'note' }, note)));
  document.getElementById('foot').textContent = 'This page is one file. It asks for nothing from anywhere, and nothing in it leaves your machine.';
}

showTop();
themed();
if (PAGE.boards) showBoard();
if (HEADS.length) showThreshold();
if (HEADS.length && PAGE.samples.length) showPictures();
if (PAGE.odd) showOdd();
if (PAGE.grids?.length) showGrids();
if (PAGE.origin?.length) showOrigin();
document.getElementById('sections').append(...[...document.querySelectorAll('main > section:not([hidden])')].map((one) =>
  el('a', { href: `#${one.id}` }, one.querySelector('h2').textContent)));
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach((one) => { one.open = true; }));
document.documentElement.dataset.ready = 'yes';
