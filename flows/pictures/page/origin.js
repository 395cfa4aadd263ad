// F²R's map over its two factors, and what each model was trained from.

function gridMap(grid, title, key) {
  const value = new Map(grid.points.map((point) => [`${point.alpha} ${point.beta}`, point[key]]));
  const alphas = [...new Set(grid.points.map((point) => point.alpha))].sort((a, b) => a - b);
  const betas = [...new Set(grid.points.map((point) => point.beta))].sort((a, b) => a - b);
  const all = [...value.values()].sort((a, b) => a - b);
  // (0, 0) makes all features one and the same: its 0.5 must not use up the colours.
  const low = all[Math.floor(0.05 * (all.length - 1))];
  const high = all[all.length - 1];
  const best = grid.points.reduce((a, b) => (b[key] > a[key] ? b : a));
  const marks = [[`${best.alpha} ${best.beta}`, '★', `best on the test labels (oracle): ${figure(best[key])} at α ${best.alpha}, β ${best.beta}`],
    ['1 1', '□', `plain gallery (1, 1): ${figure(value.get('1 1'))}`],
    ...(grid.own ? [[grid.own.join(' '), '△', `the model’s own, chosen without labels (${grid.own.join(', ')}): ${figure(value.get(grid.own.join(' ')))}`]] : [])];
  const said = el('p', { class: 'muted', role: 'status' }, 'Point at a cell to read it.');
  const cells = [...alphas].reverse().flatMap((alpha) => [
    el('span', { class: 'tick' }, String(alpha)),
    ...betas.map((beta) => {
      const at = `${alpha} ${beta}`;
      const part = Math.max(0, Math.min(1, (value.get(at) - low) / (high - low || 1)));
      const cell = el('span', { class: 'cell', vars: { '--part': `${(8 + 92 * part).toFixed(0)}%` } }, marks.filter((mark) => mark[0] === at).map((mark) => mark[1]).join(''));
      cell.classList.toggle('full', part > 0.55);
      cell.addEventListener('pointerenter', () => { said.textContent = `α ${alpha}, β ${beta}: ${figure(value.get(at))}`; });
      return cell;
    })]);
  return el('figure', { class: 'chart grid' }, el('figcaption', {}, el('b', {}, title), el('span', { class: 'said' }, `colours from ${figure(low)} to ${figure(high)}; α up, β to the right`)),
    el('div', { class: 'cells', role: 'img', 'aria-label': `${title} over α and β; ${marks.map((mark) => mark[2]).join('; ')}`, vars: { '--across': String(betas.length) } },
      cells, el('span', { class: 'tick' }), betas.map((beta) => el('span', { class: 'tick' }, String(beta)))),
    said, el('ul', { class: 'legend' }, marks.map((mark) => el('li', {}, `${mark[1]} ${mark[2]}`))));
}

function showGrids() {
  section('grid', el('p', {}, 'Every point is the same model with other factors, scored on the test images: what is best here was chosen on their labels.'),
    PAGE.grids.map((grid) => [el('h3', {}, grid.name), el('div', { class: 'charts' }, Object.entries(grid.metrics).map(([title, key]) => gridMap(grid, title, key)))]));
}

function showOrigin() {
  const differs = (title, name) => new Set(PAGE.origin.map((one) => one.parts[title]?.[name])).size > 1;
  const block = (one) => el('details', {}, el('summary', {}, one.name),
    Object.entries(one.parts).map(([title, part]) => [el('h4', {}, title), el('dl', { class: 'facts' },
      Object.entries(part).map(([name, value]) => {
        const other = title === 'Data and net' && name !== 'run' && name !== 'made' && name !== 'training key' && PAGE.origin.length > 1 && differs(title, name);
        return el('div', {}, el('dt', {}, name), el('dd', {}, value, other ? el('span', { class: 'tag' }, '≠ differs') : null));
      }))]));
  section('origin', PAGE.origin.map(block));
}
