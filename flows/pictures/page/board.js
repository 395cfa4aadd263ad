// The leaderboard: models of one set of test samples in a table, best first.

const FIGURES = PAGE.kind.name === 'pair'
  ? [['f1', 'F1'], ['precision', 'precision'], ['recall', 'recall'], ['iou', 'IoU'], ['auc', 'AUC']]
  : [['image_auroc', 'image AUROC'], ['pixel_auroc', 'pixel AUROC'], ['aupro', 'AUPRO'],
    ['f1', 'F1'], ['recall', 'recall'], ['false_positive_rate', 'false alarms']];

function standing(behind) {
  if (!behind) return el('span', { class: 'muted' }, 'best');
  const p = behind.p === null ? '' : ` (p ${Number(behind.p.toPrecision(2))})`;
  const word = behind.level === null ? null
    : el('b', { class: behind.level ? 'level' : 'worse' }, behind.level ? '≈ level ' : '↓ worse ');
  return el('span', {}, word, signed(behind.difference) + p);
}

function boardTable(board, title) {
  const [first, ...others] = FIGURES;
  const lows = board.rows.map((row) => row.intervals[first[0]]?.[0]).filter((x) => x !== undefined);
  const low = Math.max(0, Math.floor(10 * Math.min(0.95, ...lows)) / 10);
  const cell = (label, ...content) => el('td', { 'data-label': label }, ...content);
  const rows = board.rows.map((row) => {
    const value = row.metrics[first[0]];
    const range = row.intervals[first[0]];
    const lead = [el('b', {}, figure(value))];
    if (range) lead.push(' ', el('span', { class: 'muted' }, `${figure(range[0])} to ${figure(range[1])}`), whisker(value, range, low));
    return el('tr', {},
      el('th', { scope: 'row' }, `${row.head} v${row.version}`,
        row.aliases.map((name) => el('span', { class: 'tag' }, name)),
        row.full ? el('span', { class: 'tag on' }, 'shown below') : null,
        el('span', { class: 'about muted' }, [row.backbone, row.input_size && `${row.input_size} px`, row.seed && `seed ${row.seed}`,
          row.seconds !== null && `fit ${row.seconds.toFixed(1)} s`, row.created.slice(0, 10)].filter(Boolean).join(' · '))),
      cell(first[1], ...lead), cell('against the best', standing(row.behind)),
      others.map(([key, text]) => cell(text, figure(row.metrics[key]))));
  });
  const heads = ['model', first[1], 'against the best', ...others.map((pair) => pair[1])];
  return el('div', { class: 'scroll' }, el('table', { class: 'board' }, el('caption', {}, title),
    el('thead', {}, el('tr', {}, heads.map((name) => el('th', { scope: 'col' }, name)))),
    el('tbody', {}, rows)));
}

function showBoard() {
  const several = PAGE.boards.length > 1;
  const tables = PAGE.boards.map((board) => boardTable(board, board.test
    ? `${plural(board.test.images, `test ${PAGE.kind.name}`)}${several ? ` (${board.test.digest.slice(0, 8)})` : ''}`
    : 'test images not known'));
  section('leaderboard', tables,
    several ? el('p', { class: 'muted' }, 'Models that were tested on other images are not ranked with each other.') : null,
    PAGE.kind.name === 'pair' ? null : el('p', { class: 'muted' },
      'Ranges are 95 % intervals over the test images drawn anew. “Level” models differ from the best by no more than chance (DeLong’s test, p ≥ 0.05).'));
}
