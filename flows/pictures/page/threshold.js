// One head's scores, and its threshold to be moved: what follows from it moves along.

const BAD = (PAGE.samples ?? []).map((sample) => sample.bad);
const HEADS = (PAGE.heads ?? []).map((head, i) => ({
  ...head, scores: PAGE.samples.map((sample) => sample.scores[i]), now: head.threshold,
}));
/** Called with a head's number when its threshold has moved, and with true when it rests again. */
const MOVED = [];

let waiting = null;
function move(number, value) {
  HEADS[number].now = value;
  waiting ??= requestAnimationFrame(() => { waiting = null; MOVED.forEach((told) => told(number, false)); });
}
function rest(number) {
  MOVED.forEach((told) => told(number, true));
}

function tile(name, label, sign) {
  const number = el('b', { 'data-count': name }, '');
  return { number, whole: el('div', { class: `tile ${name}` }, number, el('span', {}, `${sign} ${label}`)) };
}

function kindTable(head) {
  const kinds = [...new Set(PAGE.samples.map((sample) => sample.kind))].sort();
  const rows = kinds.map((kind) => {
    const own = PAGE.samples.map((sample, i) => (sample.kind === kind ? i : -1)).filter((i) => i >= 0);
    const bar = el('span', { class: 'bar' });
    const text = el('td', {});
    return { own, bar, text, whole: el('tr', {}, el('th', { scope: 'row' }, kind), el('td', { class: 'meter' }, bar), text) };
  });
  const called = PAGE.kind.verdicts[1];
  return {
    whole: el('table', { class: 'kinds' }, el('caption', {}, `Called ${called}, by kind`), el('tbody', {}, rows.map((row) => row.whole))),
    move() {
      for (const row of rows) {
        const many = row.own.filter((i) => head.scores[i] > head.now).length;
        row.bar.style.setProperty('--part', `${100 * many / row.own.length}%`);
        row.text.textContent = `${many} of ${row.own.length}`;
      }
    },
  };
}

function headPanel(head, number) {
  const groups = [
    ['kept', 'Normals, out of fold', head.normals],
    ['good', PAGE.kind.name === 'pair' ? 'Test, unchanged' : 'Test, normal', head.scores.filter((_, i) => BAD[i] === false)],
    ['bad', PAGE.kind.name === 'pair' ? 'Test, changed' : 'Test, defective', head.scores.filter((_, i) => BAD[i] === true)],
    ['open', 'Test, truth not known', head.scores.filter((_, i) => BAD[i] === null)],
  ].filter((group) => group[2].length);
  const axis = limits(groups.flatMap((group) => group[2]), head.threshold);
  const at = (value) => Math.max(0, Math.min(1, (value - axis[0]) / (axis[1] - axis[0])));
  const rows = groups.map(([name, text, values]) => {
    const said = el('span', { class: 'muted' });
    return { values, said, whole: el('div', { class: 'group' }, el('p', {}, el('b', {}, text), ' ', said), bars(values, axis, name)) };
  });
  const line = el('span', { class: 'line' });
  const home = el('span', { class: 'line home' });
  home.style.left = `${100 * at(head.threshold)}%`;
  const plots = el('div', { class: 'plots' }, rows.map((row) => row.whole), home, line);
  const slide = el('input', { type: 'range', min: 0, max: 1000, step: 1, 'aria-label': `Threshold of ${head.name}`,
    oninput: () => move(number, axis[0] + (axis[1] - axis[0]) * slide.value / 1000), onchange: () => rest(number) });
  const exact = el('input', { type: 'number', step: 'any', inputmode: 'decimal', onchange: () => {
    if (exact.value !== '' && Number.isFinite(Number(exact.value))) { move(number, Number(exact.value)); rest(number); }
  } });
  const back = el('button', { type: 'button', onclick: () => { move(number, head.threshold); rest(number); } }, 'Back to the model’s own');
  // The bars themselves may be dragged over, too.
  const drag = (event) => {
    const box = plots.getBoundingClientRect();
    const part = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    move(number, axis[0] + (axis[1] - axis[0]) * part);
  };
  plots.addEventListener('pointerdown', (event) => { plots.setPointerCapture(event.pointerId); drag(event); });
  plots.addEventListener('pointermove', (event) => { if (plots.hasPointerCapture(event.pointerId)) drag(event); });
  plots.addEventListener('pointerup', () => rest(number));
  const far = groups.flatMap((group) => group[2]).filter((value) => value > axis[1]).length;

  const tiles = { tp: tile('tp', 'found', '✓'), fn: tile('fn', 'missed', '✕'), fp: tile('fp', 'false alarms', '✕'), tn: tile('tn', 'passed', '✓') };
  const rates = Object.fromEntries(['recall', 'alarms', 'precision', 'f1'].map((name) => [name, el('dd', { 'data-rate': name })]));
  const labels = { recall: 'recall', alarms: 'false alarm rate', precision: 'precision', f1: 'F1' };
  const found = curve(head.scores, BAD);
  const both = found.positives && found.negatives;
  const roc = both ? rocChart(found) : null;
  const precision = found.positives ? precisionChart(found) : null;
  const kinds = kindTable(head);
  const use = el('code', {});
  const moved = el('p', { class: 'moved note', hidden: true },
    'Moved by hand, with the test labels in view: these counts are an oracle’s and promise nothing. To use it: ', use);

  const show = () => {
    const n = counts(head.scores, BAD, head.now);
    for (const name of ['tp', 'fn', 'fp', 'tn']) tiles[name].number.textContent = n[name];
    rates.recall.textContent = share(n.tp, n.tp + n.fn);
    rates.alarms.textContent = share(n.fp, n.fp + n.tn);
    rates.precision.textContent = share(n.tp, n.tp + n.fp);
    rates.f1.textContent = share(2 * n.tp, 2 * n.tp + n.fp + n.fn);
    for (const row of rows) row.said.textContent = `${row.values.filter((value) => value > head.now).length} of ${row.values.length} above`;
    line.style.left = `${100 * at(head.now)}%`;
    slide.value = Math.round(1000 * at(head.now));
    exact.value = Number(head.now.toPrecision(6));
    const recall = n.tp / (n.tp + n.fn);
    slide.setAttribute('aria-valuetext', `${score(head.now)}: ${n.tp} of ${n.tp + n.fn} found, ${n.fp} of ${n.fp + n.tn} false alarms`);
    roc?.move([n.fp / (n.fp + n.tn), recall], `at the threshold: recall ${rates.recall.textContent}, false alarms ${rates.alarms.textContent}`);
    precision?.move(n.tp + n.fp ? [recall, n.tp / (n.tp + n.fp)] : null, `at the threshold: precision ${rates.precision.textContent}`);
    kinds.move();
    moved.hidden = head.now === head.threshold;
    back.disabled = moved.hidden;
    if (!moved.hidden) {
      use.textContent = `headwater predict ${PAGE.set} --head ${head.head} --version ${head.version} --threshold=${Number(head.now.toPrecision(6))} IMAGES`;
    }
  };
  MOVED.push((which) => { if (which === number) show(); });
  show();
  return el('div', { role: 'tabpanel', id: `panel-${number}`, 'aria-labelledby': `tab-${number}`, hidden: number > 0 },
    el('p', { class: 'promise' }, head.promise.join(' ')),
    el('div', { class: 'two' },
      el('div', { class: 'card' }, plots,
        el('div', { class: 'slide' }, slide),
        el('div', { class: 'ends muted' }, el('span', {}, score(axis[0])),
          el('span', {}, `score${far ? `; ${far} above ${score(axis[1])} in the last bars` : ''}`), el('span', {}, score(axis[1]))),
        el('div', { class: 'controls' }, el('label', { class: 'field' }, el('span', {}, 'Threshold'), exact), back)),
      el('div', { class: 'card' },
        el('div', { class: 'tiles' }, Object.values(tiles).map((one) => one.whole)),
        el('dl', { class: 'rates' }, Object.entries(rates).map(([name, value]) => el('div', {}, el('dt', {}, labels[name]), value))),
        kinds.whole)),
    moved,
    el('div', { class: 'charts' }, roc?.whole, precision?.whole));
}

function showThreshold() {
  const panels = HEADS.map(headPanel);
  const tabs = HEADS.map((head, i) => el('button', {
    type: 'button', role: 'tab', id: `tab-${i}`, 'aria-controls': `panel-${i}`, 'aria-selected': String(i === 0), tabindex: i ? -1 : 0,
    onclick: () => pick(i),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) { pick((i + step + tabs.length) % tabs.length); event.preventDefault(); }
    },
  }, head.name));
  function pick(number) {
    tabs.forEach((tab, i) => { tab.setAttribute('aria-selected', String(i === number)); tab.tabIndex = i === number ? 0 : -1; });
    panels.forEach((panel, i) => { panel.hidden = i !== number; });
    tabs[number].focus();
  }
  section('threshold', el('div', { class: 'tabs', role: 'tablist', 'aria-label': 'Models' }, tabs), panels);
}
