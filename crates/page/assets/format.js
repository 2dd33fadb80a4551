// Numbers, times and elements as the page shows them. No state.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const integer = (n) => (n === undefined ? "–" : whole.format(n));

/** So many significant digits, never more than needed. */
export function number(value, digits = 4) {
  if (value === undefined || value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(Math.max(0, digits - 2));
  if (size >= 10 ** (digits - 1)) return whole.format(value);
  return value.toPrecision(digits);
}

export const percent = (share) =>
  share === undefined ? "–" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** A length of time in its two largest units. */
export function duration(seconds) {
  if (seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 0.9995) return `${number(1000 * s, 3)} ms`;
  if (s < 60) return `${number(s, 3)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A moment; the day only where it is not today. */
export function moment(seconds) {
  if (seconds === undefined) return "–";
  const at = new Date(1000 * seconds);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toISOString().slice(0, 10)} ${time}`;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only where it changed, so that nothing is announced or laid out for nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An element with attributes and children. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((c) => c !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function draw(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
