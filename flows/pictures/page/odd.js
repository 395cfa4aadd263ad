// Normals that look least normal, and how to settle them.

function copied(text) {
  const code = el('code', {}, text);
  const button = el('button', { type: 'button', class: 'small', onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = 'Selected';
    }
  } }, 'Copy');
  return el('div', { class: 'command' }, code, button);
}

function oddCard(row, heads) {
  const p = (i) => row.by[i] && el('span', { class: 'muted' }, `p ${row.by[i].p_value.toFixed(3)}, fold ${row.by[i].fold + 1}`);
  const made = panels(row, heads, p);
  const sign = { accepted: '✓', rejected: '✕' };
  const whole = el('article', { class: 'sample' },
    el('header', {}, el('b', {}, row.name),
      row.out ? el('span', { class: 'tag warn' }, '▲ stands out') : null,
      row.p === null ? null : el('span', { class: 'muted' }, `lowest p ${row.p.toFixed(3)}`)),
    el('div', { class: 'views' }, [...made.plain, ...made.heads].map((one) => one.whole)),
    row.said ? el('p', { class: 'said' }, el('b', {}, `${sign[row.said[0]] ?? ''} ${row.said[0]}`), ` by ${row.said[1]}, ${row.said[2]}`) : null,
    copied(row.accept), copied(row.reject));
  later(whole, made.fill);
  return whole;
}

/** A picture that the model in service judged, and what to type to say what it is. */
function servedCard(row) {
  const made = panels(row, [], null);
  const whole = el('article', { class: 'sample' },
    el('header', {}, el('b', {}, row.name), el('span', { class: 'tag' }, 'served'), el('span', { class: 'muted' }, row.said)),
    el('div', { class: 'views' }, made.plain.map((one) => one.whole)),
    row.answers.map(copied));
  later(whole, made.fill);
  return whole;
}

function showOdd() {
  const { rows, heads, normals, worth, sheets, served } = PAGE.odd;
  section('odd',
    served.length ? el('p', {}, 'Pictures of service of which nobody has said what they are, those first that would teach most.') : null,
    served.length ? el('div', { class: 'samples', vars: { '--views': '1', '--more': '8rem' } }, served.map(servedCard)) : null,
    el('p', {}, `${plural(worth, 'normal')} of ${normals} worth a look: out-of-fold scores among the highest. `
      + 'An accepted one counts for the thresholds however odd it is; of a rejected one nothing learns. Either holds from the next training on.'),
    rows.length < worth ? el('p', { class: 'muted' }, `The first ${rows.length} are shown.`) : null,
    rows.length ? el('div', { class: 'samples', vars: { '--views': String(PAGE.kind.images.length + heads.length), '--more': '5rem' } }, rows.map((row) => oddCard(row, heads))) : null,
    sheets.map((src) => el('img', { src, alt: 'The oddest normals with their heat maps', class: 'sheet', loading: 'lazy' })));
}
