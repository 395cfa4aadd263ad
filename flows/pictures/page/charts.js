// Curves and bars as SVG that scales with its box; words stand beside it as text.

/** Bars of one group of scores; what is beyond the axis stands in the last bar. */
function bars(values, [low, high], name) {
  const count = 60;
  const bins = new Array(count).fill(0);
  for (const value of values) {
    const at = Math.floor((value - low) / (high - low) * count);
    bins[Math.max(0, Math.min(count - 1, at))] += 1;
  }
  const top = Math.max(...bins, 1);
  const shown = bins.map((n, i) => n && svg('rect', {
    x: i * 1000 / count + 1, width: 1000 / count - 2, y: 56 - 54 * n / top, height: 54 * n / top,
  }));
  return svg('svg', { class: `bars ${name}`, viewBox: '0 0 1000 56', preserveAspectRatio: 'none',
    'aria-hidden': 'true' }, shown.filter(Boolean));
}

/** A square chart with both axes from 0 to 1; `path` its line in these units. */
function square(title, x, y, path, extra) {
  const to = ([a, b]) => `${(100 * a).toFixed(2)} ${(100 - 100 * b).toFixed(2)}`;
  const line = path.map((point, i) => (i ? 'L' : 'M') + to(point)).join('');
  const dot = svg('circle', { r: 2.6, class: 'dot' });
  const picture = svg('svg', { viewBox: '-3 -3 106 106', role: 'img', class: 'square' },
    [25, 50, 75].map((at) => svg('path', { d: `M0 ${at}H100M${at} 0V100`, class: 'faint' })),
    svg('path', { d: 'M0 0V100H100', class: 'axis' }), extra,
    svg('path', { d: line, class: 'curve' }), dot);
  const said = el('span', { class: 'said' });
  const axis = (which, name) => el('span', { class: which }, ['0', name, '1'].map((text) => el('span', {}, text)));
  const whole = el('figure', { class: 'chart' },
    el('figcaption', {}, el('b', {}, title), said),
    el('div', { class: 'plot' }, axis('y', y), picture, axis('x', x)));
  return {
    whole,
    /** Move the point of the threshold; nowhere where there is none. */
    move(point, text) {
      dot.toggleAttribute('hidden', !point);
      if (point) dot.setAttribute('transform', `translate(${to(point)})`);
      said.textContent = text;
      picture.setAttribute('aria-label', `${title}: ${text}`);
    },
  };
}

function rocChart(found) {
  const path = found.points.map((p) => [p.fpr, p.recall]);
  return square('ROC', 'false alarm rate', 'recall', path, svg('path', { d: 'M0 100L100 0', class: 'faint' }));
}

/** Precision over recall in steps; the picture begins at the first point's height. */
function precisionChart(found) {
  const points = found.points.slice(1);
  const path = points.length ? [[0, points[0].precision]] : [];
  points.forEach((p, i) => {
    if (i) path.push([points[i - 1].recall, p.precision]);
    path.push([p.recall, p.precision]);
  });
  const base = 100 - 100 * found.positives / (found.positives + found.negatives);
  return square('Precision over recall', 'recall', 'precision', path,
    svg('path', { d: `M0 ${base}H100`, class: 'faint' }));
}

/** A figure and its 95 % interval between `low` and 1. */
function whisker(value, [from, to], low) {
  const at = (x) => (100 * (x - low) / (1 - low || 1)).toFixed(2);
  return svg('svg', { class: 'whisker', viewBox: '-2 0 104 12', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    svg('path', { d: 'M0 6H100', class: 'faint' }),
    svg('path', { d: `M${at(from)} 6H${at(to)}`, class: 'range' }),
    svg('path', { d: `M${at(value)} 1V11`, class: 'value' }));
}
