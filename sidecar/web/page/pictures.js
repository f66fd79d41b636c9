// The pictures, drawn for the width they get, so that text keeps its size. What each shows is also said in words.
// Kinds differ by shape and by lane, never by colour alone.

import { atLeast, atMost, clock, limit, milliseconds, seconds, shape, span } from "./units.js";
import { DEATHS } from "./words.js";

const LABEL = 6.4; // width of a character of a label, about
const LANE = 40;
const ROW = 17;

// -- survival ---------------------------------------------------------------------------------------------------------

/** Every rest by its length, what is proven by it, and what is known of others. `now` is in milliseconds. */
export function survival(target, knownLimits, width, now) {
  const { advice, summary } = target;
  const found = advice?.idle_limit ?? null;
  const resting = probes(target, now);
  const lanes = byLane([...target.observations.values()].filter((each) => each.arm !== "lifetime")); // that one is about age
  const marks = marksOf(advice, resting);
  const x = logScale(lanes, resting, marks, width);
  const known = labelled(groups(knownLimits, x, found), x, width);

  const top = known.marks.length ? known.rows * ROW + 22 : 2;
  const restingHeight = resting.length ? 20 + resting.length * 8 : 0;
  const bottom = top + lanes.length * LANE + restingHeight;
  const axis = bottom + 4 + marks.length * ROW + 6;
  const height = axis + 24;
  const picture = shape("svg", { class: "picture", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": inWords(lanes, advice, resting) });

  const recycle = advice?.settings.pool_recycle;
  if (recycle) picture.append(shape("rect", { class: "safe", x: x.left, y: top, width: Math.max(0, x(recycle) - x.left), height: bottom - top }));
  if (found?.dead_by_seconds != null) {
    const from = x(Math.max(found.proven_seconds, x.lowest));
    picture.append(shape("rect", { class: "bracket", x: from, y: top, width: Math.max(2, x(found.dead_by_seconds) - from), height: bottom - top }));
  }
  lanes.forEach((lane, index) => picture.append(drawLane(lane, x, top + index * LANE)));
  if (resting.length) picture.append(drawResting(resting, x, top + lanes.length * LANE));
  for (const mark of known.marks) picture.append(drawKnown(mark, top));
  marks.forEach((mark, index) => picture.append(drawMark(mark, x, top, bottom + 4 + index * ROW, width)));
  picture.append(drawAxis(x, axis, width));
  return picture;
}

function probes(target, now) {
  const { summary, at } = target;
  return (summary?.probes ?? []).filter((probe) => probe.state !== "opening").map((probe) => ({
    ...probe,
    idle: probe.idle_seconds + (probe.state === "resting" ? Math.max(0, now - at) / 1000 : 0),
  }));
}

function byLane(observations) {
  const lanes = new Map([["survived", { name: "survived", kind: "survived", rests: [] }]]);
  for (const observation of observations) {
    const { outcome, death, idle_seconds } = observation;
    const key = outcome === "died" ? `died ${death}` : outcome;
    if (!lanes.has(key)) lanes.set(key, { name: outcome === "died" ? (DEATHS[death]?.label ?? "died") : "no testimony", kind: outcome, rests: [] });
    lanes.get(key).rests.push(idle_seconds);
  }
  const order = { survived: 0, died: 1, censored: 2 };
  return [...lanes.values()].sort((one, other) => order[one.kind] - order[other.kind]);
}

function marksOf(advice, resting) {
  const found = advice?.idle_limit ?? null;
  const guard = resting.find((probe) => probe.arm === "guard");
  return [
    advice && { name: "pool_recycle", at: advice.settings.pool_recycle, kind: "recycle" },
    guard?.until_seconds && { name: "guard", at: guard.until_seconds, kind: "guard" },
    found?.proven_seconds > 0 && { name: "proven", at: found.proven_seconds, said: atLeast(found.proven_seconds), kind: "proven" },
    found?.dead_by_seconds != null && { name: "dead by", at: found.dead_by_seconds, said: atMost(found.dead_by_seconds), kind: "dead" },
  ].filter(Boolean);
}

function logScale(lanes, resting, marks, width) {
  const rests = [...lanes.flatMap((lane) => lane.rests), ...resting.map((probe) => probe.until_seconds), ...marks.map((mark) => mark.at)].filter((value) => value > 0);
  const longest = Math.max(...(rests.length ? rests : [60]), ...resting.map((probe) => probe.idle));
  const highest = roundUp(longest * 1.15); // in steps, or the picture would creep while connections rest
  const lowest = Math.max(Math.min(rests.length ? Math.min(...rests) / 1.5 : 1, highest / 20), highest / 3000, 0.05);
  const left = 4, right = width - 14;
  const perLog = (right - left) / Math.log(highest / lowest);
  const x = (value) => Math.min(right, Math.max(left, left + Math.log(value / lowest) * perLog));
  return Object.assign(x, { lowest, highest, left, right });
}

function roundUp(value) {
  const decade = 10 ** Math.floor(Math.log10(value));
  return decade * [1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8, 10].find((step) => value <= step * decade * 1.0001);
}

function drawLane(lane, x, y) {
  const middle = y + 26;
  const group = shape("g", { class: `lane ${lane.kind}` },
    shape("text", { x: x.left + 2, y: y + 13 }, `${lane.name}`, shape("tspan", { class: "count" }, `  ${lane.rests.length}`)),
    shape("line", { class: "rule", x1: x.left, x2: x.right, y1: y + LANE, y2: y + LANE }));
  let path = "";
  const taken = new Map(); // how many marks a place of a few pixels has already: they are stacked, as far as there is room
  for (const rest of [...lane.rests].sort((one, other) => one - other)) {
    const at = x(rest), place = Math.round(at / 6);
    const stacked = taken.get(place) ?? 0;
    taken.set(place, stacked + 1);
    const level = stacked % 5;
    const cy = middle + Math.ceil(level / 2) * 4 * (level % 2 ? -1 : 1);
    path += MARKS[lane.kind](at.toFixed(1), cy);
  }
  if (path) group.append(shape("path", { class: "rests", d: path }));
  return group;
}

const MARKS = {
  survived: (x, y) => `M${x} ${y}h.01`, // a round cap makes it a dot
  died: (x, y) => `M${x} ${y}m-3.5-3.5l7 7m0-7l-7 7`,
  censored: (x, y) => `M${x} ${y}m-3.5 0l3.5-3.5 3.5 3.5-3.5 3.5z`,
};

function drawResting(resting, x, y) {
  const group = shape("g", { class: "lane resting" }, shape("text", { x: x.left + 2, y: y + 13 }, "resting now", shape("tspan", { class: "count" }, `  ${resting.length}`)));
  [...resting].sort((one, other) => other.idle - one.idle).forEach((probe, index) => {
    const level = y + 22 + index * 8;
    const age = x(Math.max(probe.idle, x.lowest));
    group.append(shape("line", { class: "age", x1: x.left, x2: age, y1: level, y2: level }));
    if (probe.until_seconds > probe.idle) {
      const goal = x(probe.until_seconds);
      group.append(shape("line", { class: "to-go", x1: age, x2: goal, y1: level, y2: level }), shape("line", { class: "goal", x1: goal, x2: goal, y1: level - 3, y2: level + 3 }));
    }
    group.append(shape("circle", { class: "head", cx: age, cy: level, r: 2.8 }, shape("title", {}, `${probe.arm}: ${seconds(probe.idle)}${probe.until_seconds ? ` of ${seconds(probe.until_seconds)}` : ""}`)));
  });
  return group;
}

function drawMark(mark, x, top, y, width) {
  const at = x(mark.at);
  const text = `${mark.name} ${seconds(mark.said ?? mark.at)}`;
  const length = text.length * LABEL * 1.1;
  const before = at + 6 + length > width || (mark.kind !== "dead" && mark.kind !== "recycle" && at > length + 6);
  return shape("g", { class: `mark ${mark.kind}` },
    shape("line", { x1: at, x2: at, y1: top, y2: y + ROW - 6 }),
    shape("text", { x: before ? at - 5 : at + 5, y: y + 12, "text-anchor": before ? "end" : "start" }, text));
}

function drawAxis(x, y, width) {
  const group = shape("g", { class: "axis" }, shape("line", { x1: x.left, x2: x.right, y1: y, y2: y }));
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];
  let last = -Infinity;
  for (const step of steps) {
    const at = x(step);
    if (step < x.lowest || step > x.highest) continue;
    group.append(shape("line", { x1: at, x2: at, y1: y, y2: y + 4 }));
    const text = span(step), half = (text.length * LABEL) / 2;
    if (at - half < Math.max(last + 6, 0) || at + half > width) continue;
    group.append(shape("text", { x: at, y: y + 17, "text-anchor": "middle" }, text));
    last = at + half;
  }
  return group;
}

/** Known limits that a connection could meet within the picture; equal ones are one mark. */
function groups(knownLimits, x, found) {
  const likely = new Map((found?.likely ?? []).map((culprit) => [culprit.id, culprit.component]));
  const at = new Map();
  for (const known of knownLimits) {
    const value = known.default_seconds;
    if (known.limits !== "idle" || !value || value < x.lowest * 1.05 || value > x.highest) continue;
    if (!at.has(value)) at.set(value, { value, names: [], likely: false });
    const group = at.get(value);
    if (likely.has(known.id)) {
      group.names.unshift(known.component);
      group.likely = true;
    } else group.names.push(known.component);
  }
  return [...at.values()];
}

/** As many labels as there is room for in three rows: first the likely ones, then those named most. */
function labelled(marks, x, width) {
  const most = width < 560 ? 20 : 34;
  const rows = [[], [], []];
  const ordered = [...marks].sort((one, other) => other.likely - one.likely || other.names.length - one.names.length);
  for (const mark of ordered) {
    mark.x = x(mark.value);
    const rest = mark.names.length - 1;
    const more = rest ? ` +${rest}` : "";
    const name = mark.names[0];
    mark.text = `${span(mark.value)} ${name.length > most ? `${name.slice(0, most - 1)}…` : name}${more}`;
    const length = mark.text.length * LABEL;
    mark.before = mark.x + 4 + length > width;
    const from = mark.before ? mark.x - 4 - length : mark.x - 2, to = mark.before ? mark.x + 2 : mark.x + 4 + length;
    // A label must not lie on another one, nor its stem run through one in a row below it.
    const row = rows.findIndex((row, index) => row.every(([a, b]) => to + 8 < a || from > b + 8) && rows.slice(index + 1).every((below) => below.every(([a, b]) => mark.x < a - 3 || mark.x > b + 3)));
    if (from < 0 || row < 0) continue;
    rows[row].push([from, to]);
    mark.row = row;
  }
  const used = rows.reduce((count, row, index) => (row.length ? index + 1 : count), 0);
  return { marks, rows: used };
}

function drawKnown(mark, top) {
  const foot = top - 4;
  const group = shape("g", { class: `known${mark.likely ? " likely" : ""}` },
    shape("title", {}, `${span(mark.value)}: ${mark.names.join(", ")}`),
    shape("path", { class: "tick", d: `M${mark.x - 4} ${foot - 7}h8l-4 7z` }));
  if (mark.row != null) {
    const y = 10 + mark.row * ROW;
    group.append(shape("line", { x1: mark.x, x2: mark.x, y1: y - 2, y2: foot - 7 }),
      shape("text", { x: mark.before ? mark.x - 4 : mark.x + 4, y: y + 8, "text-anchor": mark.before ? "end" : "start" }, mark.text));
  }
  return group;
}

function inWords(lanes, advice, resting) {
  const told = lanes.map((lane) => `${lane.rests.length} ${lane.name}${lane.rests.length ? `, from ${seconds(Math.min(...lane.rests))} to ${seconds(Math.max(...lane.rests))}` : ""}`);
  const found = advice?.idle_limit;
  if (found) told.push(`proven to live ${limit(atLeast(found.proven_seconds))}`);
  if (found?.dead_by_seconds != null) told.push(`dead by ${limit(atMost(found.dead_by_seconds))}`);
  return `Rests of connections by their length: ${[...told, `${resting.length} resting now`].join("; ")}.`;
}

// -- outages ----------------------------------------------------------------------------------------------------------

const SPELLS = [["connect", "connecting"], ["read", "reading"], ["write", "writing"]];

/** The latest outages on a line of time that ends now. Solid: certainly out; pale: perhaps. */
export function timeline(outages, width, now) {
  const starts = outages.flatMap((outage) => SPELLS.map(([name]) => outage[name] && Date.parse(outage[name].began.after)).filter(Boolean));
  const from = Math.min(now - 600_000, ...starts.map((start) => start - (now - start) * 0.04));
  const left = 66, right = width - 8;
  const x = (at) => left + ((at - from) / (now - from)) * (right - left);
  const height = SPELLS.length * 20 + 28;
  const picture = shape("svg", { class: "picture timeline", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${outages.length} outages on a line of time from ${clock(from)} until now; the list below says the same.` });
  SPELLS.forEach(([name, title], row) => {
    const y = row * 20 + 6;
    picture.append(shape("text", { x: 0, y: y + 9 }, title), shape("line", { class: "rule", x1: left, x2: right, y1: y + 6, y2: y + 6 }));
    for (const outage of outages) {
      const spell = outage[name];
      if (!spell) continue;
      const ended = spell.ended ?? { after: now, until: now };
      const [perhaps, surely, stillSurely, stillPerhaps] = [spell.began.after, spell.began.until, ended.after, ended.until].map((at) => x(typeof at === "number" ? at : Date.parse(at)));
      picture.append(shape("g", { class: `spell${spell.ended ? "" : " lasting"}` },
        shape("title", {}, `${outage.kind.replace("_", " ")}, ${clock(spell.began.until)}`),
        shape("rect", { class: "perhaps", x: perhaps, y: y + 2, width: Math.max(1, stillPerhaps - perhaps), height: 8 }),
        shape("rect", { class: "surely", x: surely - (stillSurely - surely < 3 ? 1.5 : 0), y, width: Math.max(3, stillSurely - surely), height: 12 })));
    }
  });
  const y = SPELLS.length * 20 + 6;
  picture.append(shape("g", { class: "axis" }, shape("line", { x1: left, x2: right, y1: y, y2: y }), ...timeTicks(from, now, x, y, width)));
  return picture;
}

function timeTicks(from, now, x, y, width) {
  const steps = [60, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400, 259200, 604800, 2592000].map((step) => step * 1000);
  const step = steps.find((each) => (now - from) / each <= Math.max(2, width / 110)) ?? steps.at(-1);
  const days = step >= 86_400_000;
  const offset = new Date(now).getTimezoneOffset() * 60_000;
  const ticks = [];
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= now; at += step) {
    const text = days ? new Date(at).toLocaleDateString([], { day: "numeric", month: "short" }) : new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const half = (text.length * LABEL) / 2;
    ticks.push(shape("line", { x1: x(at), x2: x(at), y1: y, y2: y + 4 }));
    if (x(at) + half < width && x(at) - half > 60) ticks.push(shape("text", { x: x(at), y: y + 17, "text-anchor": "middle" }, text));
  }
  return ticks;
}

// -- checkouts --------------------------------------------------------------------------------------------------------

/** Two bars to the median, each with a whisker to the 99th percentile, or to the slowest while there are few. */
export function latency(bars, width) {
  const far = (bar) => bar.p99_ms ?? bar.max_ms;
  const most = Math.max(...bars.map(({ bar }) => far(bar)), 0.001) * 1.08;
  const x = (ms) => (ms / most) * (width - 2);
  const height = bars.length * 46;
  const words = bars.map(({ name, bar }) => `${name}: median ${milliseconds(bar.p50_ms)}, ${bar.p99_ms == null ? "slowest" : "99th percentile"} ${milliseconds(far(bar))}`);
  const picture = shape("svg", { class: "picture latency", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words.join("; ") });
  bars.forEach(({ name, bar, kind }, index) => {
    const y = index * 46;
    picture.append(shape("g", { class: kind },
      shape("text", { x: 0, y: y + 13 }, `${name} `, shape("tspan", { class: "strong" }, milliseconds(bar.p50_ms)), shape("tspan", { class: "count" }, `  ${bar.p99_ms == null ? "slowest" : "p99"} ${milliseconds(far(bar))}`)),
      shape("rect", { class: "median", x: 0, y: y + 20, width: Math.max(2, x(bar.p50_ms)), height: 12 }),
      shape("path", { class: "whisker", d: `M${x(bar.p50_ms)} ${y + 26}H${x(far(bar))}m0-5v10` })));
  });
  return picture;
}
