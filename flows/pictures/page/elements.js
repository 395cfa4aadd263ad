// Elements, numbers and names: all text goes in as text, never as markup.
const SVG = 'http://www.w3.org/2000/svg';
const PAGE = JSON.parse(document.getElementById('data').textContent);

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'vars') for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element; attributes by name, `onclick` a listener, `vars` its styles. */
function el(tag, attributes, ...children) {
  return put(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return put(document.createElementNS(SVG, tag), attributes, children);
}

/** A select with its label; `options` are [value, text]. */
function choice(label, options, onchange) {
  const box = el('select', { onchange: () => onchange(box.value) },
    options.map(([value, text]) => el('option', { value }, text)));
  return { box, whole: el('label', { class: 'field' }, el('span', {}, label), box) };
}

const share = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)} %` : '–');
const figure = (value) => (value === null || value === undefined ? '–' : value.toFixed(3));
const signed = (value) => (value < 0 ? '−' : '+') + Math.abs(value).toFixed(3);
const plural = (count, what) => `${count.toLocaleString('en')} ${what}${count === 1 ? '' : 's'}`;

/** A score to four digits, in plain figures where that is short. */
function score(value) {
  const size = Math.abs(value);
  if (value === 0) return '0';
  return size >= 1e5 || size < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

function section(id, ...children) {
  const whole = document.getElementById(id);
  whole.hidden = false;
  whole.querySelector('.body').append(...children.flat(Infinity).filter(Boolean));
  return whole;
}
