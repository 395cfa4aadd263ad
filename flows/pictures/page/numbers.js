// What follows from scores and a threshold. A sample is called anomalous where its score is greater.

/** How many are found, missed, falsely called and passed; samples of unknown truth do not count. */
function counts(scores, bad, threshold) {
  const found = { tp: 0, fn: 0, fp: 0, tn: 0 };
  scores.forEach((value, i) => {
    if (bad[i] === null) return;
    found[bad[i] ? (value > threshold ? 'tp' : 'fn') : (value > threshold ? 'fp' : 'tn')] += 1;
  });
  return found;
}

/** Points of the curves, from a threshold above all scores down: {t, fpr, recall, precision}. */
function curve(scores, bad) {
  const known = scores.map((value, i) => [value, bad[i]]).filter((pair) => pair[1] !== null);
  known.sort((a, b) => b[0] - a[0]);
  const positives = known.filter((pair) => pair[1]).length;
  const negatives = known.length - positives;
  const points = [{ fpr: 0, recall: 0, precision: null }];
  let tp = 0;
  let fp = 0;
  known.forEach(([value, isBad], i) => {
    if (isBad) tp += 1; else fp += 1;
    if (i + 1 < known.length && known[i + 1][0] === value) return;
    points.push({ fpr: fp / negatives, recall: tp / positives, precision: tp / (tp + fp) });
  });
  return { points, positives, negatives };
}

/** What a sample is at a threshold: found, missed, alarm, passed; flagged, quiet if unknown. */
function outcome(flagged, isBad) {
  if (isBad === null) return flagged ? 'flagged' : 'quiet';
  return isBad ? (flagged ? 'found' : 'missed') : (flagged ? 'alarm' : 'passed');
}

const WORDS = {
  found: ['✓', 'found'], missed: ['✕', 'missed'],
  alarm: ['✕', 'false alarm'], passed: ['✓', 'passed'],
  flagged: ['●', PAGE.kind.verdicts[1]], quiet: ['○', PAGE.kind.verdicts[0]],
};
const isWrong = (name) => name === 'missed' || name === 'alarm';

/** Limits of an axis: the bulk and the threshold show; a few far scores do not flatten it. */
function limits(values, threshold) {
  const sorted = [...values].sort((a, b) => a - b);
  const low = Math.min(sorted[0], threshold);
  const bulk = Math.max(sorted[Math.floor(0.98 * (sorted.length - 1))], threshold);
  const high = Math.min(Math.max(sorted[sorted.length - 1], threshold), bulk + 0.6 * (bulk - low));
  const pad = 0.02 * (high - low) || Math.max(Math.abs(high), 1) * 0.02;
  return [low - pad, high + pad];
}

/** The share of values below each one, ties in the middle: makes scores of heads comparable. */
function ranks(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const first = new Map();
  const last = new Map();
  sorted.forEach((value, i) => { if (!first.has(value)) first.set(value, i); last.set(value, i); });
  return values.map((value) => (first.get(value) + last.get(value)) / 2 / Math.max(1, values.length - 1));
}
