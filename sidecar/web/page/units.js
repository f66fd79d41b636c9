// Numbers and instants as people read them. A number that is not known is null, and is shown as a dash.

export const UNKNOWN = "–";

/** Seconds, exact enough for a setting: 9 s, 346.5 s. */
export function seconds(value) {
  if (value == null) return UNKNOWN;
  if (value < 1) return `${trim((value * 1000).toFixed(0))} ms`;
  return `${trim(value.toFixed(value < 1000 ? 1 : 0))} s`;
}

// Bounds are rounded away from the limit between them: no digit claims more than was seen.

const step = (value) => (value < 1 ? 1 : value < 1000 ? 100 : 1000); // milliseconds, as `seconds` shows them
export const atLeast = (value) => value == null ? value : (Math.floor(Math.round(value * 1000) / step(value)) * step(value)) / 1000;
export const atMost = (value) => value == null ? value : (Math.ceil(Math.round(value * 1000) / step(value)) * step(value)) / 1000;

/** A span of time in the words of everyday: 45 s, 5 min 50 s, 2 h. */
export function span(value) {
  if (value == null) return UNKNOWN;
  if (value < 120) return seconds(value);
  const whole = Math.round(value);
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const said = [];
  let rest = whole;
  for (const [unit, size] of parts) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count || said.length) said.push([count, unit]);
    if (said.length === 2) break;
  }
  return said.filter(([count]) => count).map(([count, unit]) => `${count} ${unit}`).join(" ");
}

/** Seconds, and beside them the same as a span where that is easier to grasp. */
export function limit(value) {
  return value != null && value >= 120 ? `${seconds(value)} (${span(value)})` : seconds(value);
}

export function milliseconds(value) {
  if (value == null) return UNKNOWN;
  return `${trim(value.toFixed(value < 1 ? 2 : value < 10 ? 1 : 0))} ms`;
}

function trim(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** The time of day, with the date where it is not today's. */
export function clock(instant) {
  const at = new Date(instant);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const today = at.toDateString() === new Date().toDateString();
  return today ? time : `${at.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

/** An element with attributes and children. Text becomes text nodes: nothing of what is shown is ever parsed as HTML. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value != null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}
