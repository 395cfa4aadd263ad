// The test samples with all heads' maps beside each other; filled when they come into view.

/** A picture with layers over it. `maps` is {at, src}: what lies where, in percent. */
function view(picture, layers, label, aspect) {
  // Its room is known before the picture is there: nothing jumps as one scrolls.
  const frame = el('div', { class: 'frame', vars: { 'aspect-ratio': String(aspect ?? 1) } });
  const fill = () => {
    if (!picture) { frame.append(el('span', { class: 'muted' }, 'no picture')); return; }
    const base = el('img', { src: picture, alt: label, decoding: 'async' });
    frame.append(base);
    for (const layer of layers) {
      if (!layer?.src) continue;
      const [left, top, width, height] = layer.at;
      frame.append(el('img', { src: layer.src, alt: '', decoding: 'async', class: `layer ${layer.class ?? 'heat'}`,
        vars: { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` } }));
    }
  };
  return { frame, fill };
}

const WHOLE = [0, 0, 100, 100];

/** The panels of a sample: its pictures, then the map of each head over the first. */
function panels(sample, names, words) {
  const outline = sample.mask && { at: WHOLE, src: sample.mask, class: 'outline' };
  const titles = PAGE.kind.name === 'pair' ? PAGE.kind.images : ['picture'];
  const plain = titles.map((title, i) => {
    const made = view(sample.pictures?.[i], i ? [] : [outline], `${title} ${sample.name}`, sample.aspect);
    return { ...made, whole: el('figure', { class: 'view' }, made.frame, el('figcaption', {}, el('span', {}, title))) };
  });
  const heads = names.map((name, i) => {
    const made = view(sample.pictures?.[0], [sample.maps[i], outline], `heat map of ${name}`, sample.aspect);
    made.frame.classList.add('over');
    const said = el('span', { class: 'verdict' });
    return { ...made, said, whole: el('figure', { class: 'view' }, made.frame, el('figcaption', {}, el('span', { class: 'by' }, name), said, words?.(i))) };
  });
  return { plain, heads, fill: () => [...plain, ...heads].forEach((one) => one.fill()) };
}

/** Fills what comes near the window, once. */
function whenSeen(filled) {
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      filled.get(entry.target)?.();
      filled.delete(entry.target);
    }
  }, { rootMargin: '800px' });
  return watch;
}
const FILL = new Map();
const WATCH = whenSeen(FILL);
function later(node, fill) {
  FILL.set(node, fill);
  WATCH.observe(node);
}
addEventListener('beforeprint', () => {
  for (const [node, fill] of FILL) if (!node.hidden) { fill(); FILL.delete(node); WATCH.unobserve(node); }
});

function card(sample) {
  const names = HEADS.map((head) => head.name);
  const made = panels(sample, names, (i) => el('span', { class: 'muted' }, score(sample.scores[i])));
  const whole = el('article', { class: 'sample' },
    el('header', {}, el('button', { type: 'button', class: 'open', onclick: () => enlarge(sample) }, sample.name),
      el('span', { class: 'tag' }, sample.kind)),
    el('div', { class: 'views' }, [...made.plain, ...made.heads].map((one) => one.whole)));
  later(whole, made.fill);
  const outcomes = HEADS.map(() => null);
  return {
    sample, whole, outcomes,
    /** Say what head i makes of it at its threshold. */
    tell(i) {
      const name = outcome(sample.scores[i] > HEADS[i].now, sample.bad);
      if (name === outcomes[i]) return;
      outcomes[i] = name;
      made.heads[i].said.textContent = WORDS[name].join(' ');
      made.heads[i].whole.dataset.outcome = name;
    },
  };
}

let CARDS = [];
let SHOWN = [];

function orders() {
  const rank = HEADS.map((head) => ranks(head.scores));
  const deviation = HEADS.map((head) => {
    const mean = head.scores.reduce((a, b) => a + b, 0) / head.scores.length;
    return Math.sqrt(head.scores.reduce((a, b) => a + (b - mean) ** 2, 0) / head.scores.length) || 1;
  });
  CARDS.forEach((one, i) => {
    const own = rank.map((values) => values[i]);
    one.spread = Math.max(...own) - Math.min(...own);
    one.rank = own;
    one.beyond = (h) => (one.sample.scores[h] - HEADS[h].now) / deviation[h] * (one.sample.bad ? -1 : 1);
  });
  const mean = (numbers, value) => numbers.reduce((sum, h) => sum + value(h), 0) / numbers.length;
  const wrong = (one, eyes) => eyes.filter((h) => isWrong(one.outcomes[h])).length;
  const split = (one) => {
    const yes = one.sample.scores.filter((value, h) => value > HEADS[h].now).length;
    return Math.min(yes, HEADS.length - yes);
  };
  const rankOf = (one, eyes) => mean(eyes, (h) => one.rank[h]);
  return {
    mistake: (eyes) => (a, b) => wrong(b, eyes) - wrong(a, eyes) || mean(eyes, b.beyond) - mean(eyes, a.beyond),
    disagreement: () => (a, b) => split(b) - split(a) || b.spread - a.spread,
    high: (eyes) => (a, b) => rankOf(b, eyes) - rankOf(a, eyes),
    low: (eyes) => (a, b) => rankOf(a, eyes) - rankOf(b, eyes),
    name: () => (a, b) => a.sample.name.localeCompare(b.sample.name, 'en', { numeric: true }),
  };
}

function showPictures() {
  CARDS = PAGE.samples.filter((sample) => sample.pictures !== null).map(card);
  CARDS.forEach((one) => HEADS.forEach((_, i) => one.tell(i)));
  const order = orders();
  const grid = el('div', { class: 'samples', vars: { '--views': String(PAGE.kind.images.length + HEADS.length) } }, CARDS.map((one) => one.whole));
  const said = el('p', { class: 'muted', role: 'status' });
  const kinds = [...new Set(CARDS.map((one) => one.sample.kind))].sort();
  const sortings = [['mistake', 'mistakes first'], ...(HEADS.length > 1 ? [['disagreement', 'disagreement of heads']] : []),
    ['high', 'score, high to low'], ['low', 'score, low to high'], ['name', 'name']];
  const verdicts = [['', 'all'], ['wrong', 'mistakes'], ['missed', 'missed'], ['alarm', 'false alarms'], ['found', 'found'], ['passed', 'passed'],
    ...(CARDS.some((one) => one.sample.bad === null) ? [['flagged', `${PAGE.kind.verdicts[1]}, truth not known`]] : []),
    ...(HEADS.length > 1 ? [['split', 'heads differ']] : [])];
  const fields = {
    eyes: choice('Seen by', [['', HEADS.length > 1 ? 'all heads' : HEADS[0].name], ...(HEADS.length > 1 ? HEADS.map((head, i) => [String(i), head.name]) : [])], arrange),
    sort: choice('Sort by', sortings, arrange),
    kind: choice('Kind', [['', 'all'], ...kinds.map((kind) => [kind, kind])], arrange),
    verdict: choice('Verdict', verdicts, arrange),
  };
  const toggle = (text, name) => el('label', { class: 'check' }, el('input', { type: 'checkbox', checked: true,
    onchange: (event) => document.body.classList.toggle(name, !event.target.checked) }), text);

  function arrange() {
    const eyes = fields.eyes.box.value === '' ? HEADS.map((_, i) => i) : [Number(fields.eyes.box.value)];
    const wanted = fields.verdict.box.value;
    const fits = (one) => {
      if (fields.kind.box.value && one.sample.kind !== fields.kind.box.value) return false;
      if (!wanted) return true;
      const names = eyes.map((h) => one.outcomes[h]);
      if (wanted === 'wrong') return names.some(isWrong);
      if (wanted === 'split') return new Set(one.sample.scores.map((value, h) => value > HEADS[h].now)).size > 1;
      return names.includes(wanted);
    };
    SHOWN = CARDS.filter(fits).sort(order[fields.sort.box.value](eyes));
    const kept = new Set(SHOWN);
    CARDS.forEach((one) => { one.whole.hidden = !kept.has(one); });
    grid.append(...SHOWN.map((one) => one.whole));
    const left = PAGE.samples.length - CARDS.length;
    said.textContent = `${SHOWN.length} of ${plural(CARDS.length, PAGE.kind.name)}${left ? `; ${left} more count above and have no picture here (--most)` : ''}`;
  }
  MOVED.push((number, resting) => {
    CARDS.forEach((one) => one.tell(number));
    // What is looked at stays where it is while the threshold moves.
    if (resting) arrange();
  });
  arrange();
  section('pictures', el('div', { class: 'bar-of-fields' }, Object.values(fields).map((one) => one.whole), toggle('Heat maps', 'no-heat'), toggle('Outlines', 'no-outline')), said, grid);
}

// --- one sample, large ---

const LARGE = {
  sample: null,
  head: el('header', {}),
  views: el('div', { class: 'views' }),
  before: el('button', { type: 'button', onclick: () => step(-1) }, '← Previous'),
  after: el('button', { type: 'button', onclick: () => step(1) }, 'Next →'),
};
LARGE.dialog = el('dialog', { class: 'large', 'aria-label': 'One sample', tabindex: -1, onkeydown: (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
} }, LARGE.head, LARGE.views, el('div', { class: 'controls' }, LARGE.before, LARGE.after,
  el('button', { type: 'button', onclick: () => LARGE.dialog.close() }, 'Close')));
document.body.append(LARGE.dialog);

function step(by) {
  const next = SHOWN[SHOWN.findIndex((one) => one.sample === LARGE.sample) + by];
  if (next) enlarge(next.sample);
}

function enlarge(sample) {
  LARGE.sample = sample;
  const at = SHOWN.findIndex((one) => one.sample === sample);
  const made = panels(sample, HEADS.map((head) => head.name), (i) =>
    el('span', { class: 'muted' }, `${score(sample.scores[i])}, threshold ${score(HEADS[i].now)}`));
  made.heads.forEach((one, i) => {
    const name = outcome(sample.scores[i] > HEADS[i].now, sample.bad);
    one.said.textContent = WORDS[name].join(' ');
    one.whole.dataset.outcome = name;
  });
  LARGE.head.replaceChildren(el('h3', {}, sample.name), el('span', { class: 'tag' }, sample.kind),
    el('span', { class: 'muted' }, `${at + 1} of ${SHOWN.length}`));
  LARGE.views.replaceChildren(...[...made.plain, ...made.heads].map((one) => one.whole));
  made.fill();
  LARGE.before.disabled = at <= 0;
  LARGE.after.disabled = at + 1 >= SHOWN.length;
  if (!LARGE.dialog.open) LARGE.dialog.showModal();
  // A button that can be used no more would keep the keys to itself.
  if (!LARGE.dialog.contains(document.activeElement) || document.activeElement.disabled) LARGE.dialog.focus();
}
