// The page: what is known of every target, the one answer first.

import { Live, get } from "./live.js";
import { latency, survival, timeline } from "./pictures.js";
import { atLeast, atMost, clock, element, limit, milliseconds, seconds, span } from "./units.js";
import { DEATHS, STATUSES } from "./words.js";

const STATUS_MEANS = {
  measuring: "No limit found yet. pool_recycle grows with the longest rest survived; pre-ping and the socket options protect meanwhile.",
  provisional: "The limit is bracketed to a few percent, by one chain of observations.",
  confirmed: "A second, independent connection died at the same rest.",
  verified: "A whole volley of fresh connections just below the limit survived.",
};
const FORMAT_NAMES = {
  json: "JSON", sqlalchemy: "SQLAlchemy arguments", python: "Python, SQLAlchemy", env: "Environment", psycopg: "psycopg_pool", asyncpg: "asyncpg",
  django: "Django", hikaricp: "HikariCP", pgx: "Go, pgxpool", "database-sql": "Go, database/sql", "node-postgres": "node-postgres", npgsql: "Npgsql",
  rails: "Rails", pgbouncer: "PgBouncer",
};
const VERDICTS = { protected: "✓ Protected", exposed: "✕ Exposed", unknown: "? Unknown" };
const SHOWN_OUTAGES = 8, SHOWN_RESTS = 100;

const byId = (id) => document.getElementById(id);
const sections = new Map();
let formats = [];
let knownLimits = [];

// -- one target -------------------------------------------------------------------------------------------------------

class Section {
  constructor(name) {
    this.name = name;
    this.format = "sqlalchemy";
    this.parts = {};
    const part = (key, tag, attributes = {}) => (this.parts[key] = element(tag, attributes));
    const id = `target-${encodeURIComponent(name)}`;
    const card = (title, attributes, ...content) => {
      const heading = element("h3", { id: `${id}-${title.replace(/\W+/g, "-")}` }, title);
      return element("section", { "aria-labelledby": heading.id, ...attributes, class: `card ${attributes.class ?? ""}` }, heading, content);
    };
    this.node = element("article", { id, "aria-labelledby": `${id}-name` },
      element("header", { class: "target" }, element("h2", { id: `${id}-name` }, name), part("database", "p", { class: "database" }), part("readiness", "p", { class: "readiness" }), part("measuring", "p", { class: "measuring" })),
      element("div", { class: "answer" },
        card("What to set", { class: "set" }, part("settings", "dl", { class: "settings" }), part("sockets", "dl", { class: "settings small" }), part("status", "ol", { class: "status", "aria-label": "How far the evidence reaches" }), part("means", "p", { class: "means" })),
        card("What it stands on", { class: "stands" }, part("found", "div"))),
      part("warnings", "div", { class: "warnings" }),
      card("Copy it", { class: "copy" }, element("div", { class: "formats", role: "group", "aria-label": "Copy the advice for" }, formats.map((format) => this.copyButton(format))),
        element("div", { class: "preview" }, part("previewTitle", "p", { class: "hint" }), part("preview", "pre", { tabindex: "0", "aria-label": "The advice in the format chosen last" }))),
      card("Survival by idle time", {}, element("figure", {}, part("survival", "div", { class: "canvas" }), this.legend()),
        element("details", {}, element("summary", {}, "The newest observations as a table"), part("table", "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Observations" }))),
      element("div", { class: "pair" },
        card("Outages", {}, part("outages", "div")),
        element("div", { class: "stack" }, card("Your application", {}, part("application", "div")), card("Time of a checkout", {}, part("latency", "div")))),
      card("Why", {}, part("reasons", "ul", { class: "reasons" }), this.links()));
    this.parts.table.closest("details").addEventListener("toggle", () => this.draw(true));
    this.resized = new ResizeObserver(() => this.draw(true));
    this.resized.observe(this.parts.survival);
  }

  remove() {
    this.resized.disconnect();
    this.node.remove();
  }

  links() {
    const link = (path) => element("a", { href: `${path}?target=${encodeURIComponent(this.name)}` }, path);
    return element("p", { class: "hint" }, "All of it: ", link("recommendation"), " · ", link("evidence"), " · ", link("outages"));
  }

  legend() {
    const item = (kind, text) => element("li", { class: kind }, text);
    return element("figcaption", {}, element("ul", { class: "legend" },
      item("key-safe", "younger than pool_recycle: all that is handed out"), item("key-bracket", "the limit lies in here"), item("key-known", "a known limit; filled: fits what was measured")));
  }

  copyButton(format) {
    const label = FORMAT_NAMES[format] ?? format;
    return element("button", { type: "button", "data-format": format, "aria-pressed": String(format === this.format), onclick: (event) => this.copy(format, label, event.currentTarget) }, label);
  }

  async copy(format, label, button) {
    try {
      const text = await this.show(format);
      const copied = await toClipboard(text, this.parts.preview);
      say(copied ? `${label}: copied` : `${label}: shown and selected; this browser leaves the copying to you`);
      button.dataset.done = copied ? "copied" : "selected";
    } catch (error) {
      say(`${label}: could not be fetched`);
      button.dataset.done = "failed";
    }
    setTimeout(() => delete button.dataset.done, 2000);
  }

  async show(format) {
    this.format = format;
    const address = `recommendation?target=${encodeURIComponent(this.name)}&format=${format}`;
    const text = await get(address, "*/*");
    if (this.format === format) {
      if (this.parts.preview.textContent !== text) this.parts.preview.textContent = text;
      replace(this.parts.previewTitle, [element("a", { href: address }, `/${address}`)]);
      for (const button of this.node.querySelectorAll("[data-format]")) button.setAttribute("aria-pressed", String(button.dataset.format === format));
    }
    return text;
  }

  /** Bring the words up to date; the pictures follow. */
  update(target) {
    this.target = target;
    const { summary, advice } = target;
    if (!summary || !advice) return;
    const { parts } = this;
    replace(parts.database, [summary.database]);
    parts.readiness.dataset.ready = String(summary.readiness.ready);
    replace(parts.readiness, [element("strong", {}, summary.readiness.ready ? "Ready" : "Not ready"), `: ${summary.readiness.reason}`]);
    this.tellSettings(advice);
    replace(parts.found, this.found(summary, advice));
    const hindered = advice.warnings.filter(({ code }) => code.startsWith("measuring_is_")); // a matter of the state, not of the path
    replace(parts.measuring, hindered.map(({ text }) => text));
    replace(parts.warnings, advice.warnings.filter((warning) => !hindered.includes(warning)).map((warning) => element("p", { class: "warning" }, element("strong", {}, "Warning: "), warning.text)));
    replace(parts.reasons, advice.reasons.map((reason) => element("li", {}, reason.text)));
    replace(parts.application, this.application(advice));
    this.tellChanges(summary, advice);
    if (this.shownAdvice !== JSON.stringify(advice)) {
      this.shownAdvice = JSON.stringify(advice);
      this.show(this.format).catch(() => {}); // the next change, or a click, tries again
    }
    this.draw(true);
  }

  tellSettings({ settings, socket, status }) {
    const ping = !settings.pool_pre_ping && settings.selective_pre_ping_after == null ? "off" : settings.selective_pre_ping_after == null ? "on" : `after ${seconds(settings.selective_pre_ping_after)}`;
    const setting = (name, value, attributes = {}) => element("div", {}, element("dt", {}, name), element("dd", attributes, value));
    replace(this.parts.settings, [
      setting("pool_recycle", [String(settings.pool_recycle), element("span", { class: "unit" }, " s")], { class: "recycle" }),
      setting(settings.selective_pre_ping_after == null ? "pool_pre_ping" : "selective pre-ping", ping),
    ]);
    const { keepalive, user_timeout_ms: userTimeout } = socket;
    replace(this.parts.sockets, [
      keepalive && setting("TCP keepalive", `after ${keepalive.idle} s, ${keepalive.count} × every ${keepalive.interval} s`),
      userTimeout != null && setting("TCP_USER_TIMEOUT", `${userTimeout} ms`),
    ].filter(Boolean));
    const reached = STATUSES.indexOf(status);
    replace(this.parts.status, STATUSES.map((stage, index) => element("li", { class: index < reached ? "past" : index === reached ? "now" : "ahead", "aria-current": index === reached ? "step" : null }, stage)));
    replace(this.parts.means, [STATUS_MEANS[status] ?? ""]);
  }

  found(summary, { idle_limit: found, lifetime_limit: lifetime, verification, status, reasons }) {
    const rows = [];
    const row = (name, ...value) => rows.push(element("div", {}, element("dt", {}, name), element("dd", {}, ...value)));
    let headline;
    if (found?.estimate_seconds != null && status !== "measuring") {
      headline = element("p", { class: "headline" }, "Idle connections die after ", element("strong", { class: "limit" }, limit(found.estimate_seconds)), ".");
    } else if (found?.dead_by_seconds != null) {
      headline = element("p", { class: "headline" }, "A limit shows between ", element("strong", {}, seconds(atLeast(found.proven_seconds))), " and ", element("strong", {}, seconds(atMost(found.dead_by_seconds))), "; it is being narrowed down.");
    } else if (lifetime) {
      headline = element("p", { class: "headline" }, "Connections die at the age of ", element("strong", { class: "limit" }, limit(lifetime.estimate_seconds ?? atMost(lifetime.dead_by_seconds))), ", however busy they are.");
    } else if (found) {
      headline = element("p", { class: "headline" }, "Connections survived ", element("strong", {}, limit(atLeast(found.proven_seconds))), " of rest so far; none has died of it.");
    } else {
      headline = element("p", { class: "headline" }, reasons.find(({ code }) => code === "measuring")?.text ?? "Nothing is known yet.");
    }
    if (found) row("proven to live", limit(atLeast(found.proven_seconds)));
    if (found?.dead_by_seconds != null) row("dead by", limit(atMost(found.dead_by_seconds)));
    if (found?.death) row("how they die", DEATHS[found.death]?.byItself ?? found.death, found.sqlstate ? ` (SQLSTATE ${found.sqlstate})` : "");
    if (found?.likely.length) row("probably", found.likely.map((culprit) => culprit.component).join("; or "));
    if (found?.keepalive_helps != null) row("TCP keepalive", found.keepalive_helps ? "holds connections open beyond the limit" : "does not help against this limit");
    if (lifetime) {
      row("lifetime limit", `${limit(atLeast(lifetime.proven_seconds))} proven${lifetime.dead_by_seconds == null ? "" : `, dead by ${limit(atMost(lifetime.dead_by_seconds))}`}`);
      if (lifetime.death) row("of age they die", DEATHS[lifetime.death]?.byItself ?? lifetime.death);
      if (lifetime.likely.length) row("probably", lifetime.likely.map((culprit) => culprit.component).join("; or "));
    }
    if (verification) {
      row("tried out", verification.outcome === "ok" ? "✓ " : "✕ ", `a pool with these settings rested ${seconds(verification.idle_seconds)} on this path, and ${verification.outcome === "ok" ? `its checkout took ${milliseconds(verification.checkout_ms)}` : "its checkout failed"} (${clock(verification.at)})`);
    }
    if (summary.suspect) row("in doubt", "a fresh connection died below the limit; that is being looked into");
    return [headline, element("dl", { class: "facts" }, rows)];
  }

  application({ application }) {
    const verdict = application?.verdict ?? "unknown";
    return [element("p", { class: `verdict ${verdict}` }, VERDICTS[verdict] ?? verdict), element("p", {}, application?.because ?? "The application's settings are not known (targets.*.application).")];
  }

  /** What a screen reader should hear without being asked. */
  tellChanges(summary, { status, settings }) {
    const now = `${this.name}: ${status}, pool_recycle ${settings.pool_recycle} seconds, ${summary.readiness.ready ? "ready" : "not ready"}`;
    const news = `${status} ${summary.readiness.ready}`;
    if (this.news !== undefined && this.news !== news) say(now);
    this.news = news;
  }

  /** The pictures, and the words that count time; every second only as far as something moves. */
  draw(changed) {
    if (!this.target?.summary || !this.target.advice) return;
    const { parts, target } = this;
    const width = Math.floor(parts.survival.clientWidth);
    if (!width) return;
    const now = live.connected ? Date.now() : live.since; // what is not known to go on stands still
    if (changed || (live.connected && target.summary.probes.length)) replace(parts.survival, [survival(target, knownLimits, width, now)]);
    const outages = [...target.outages.values()].reverse();
    const lasting = outages.some((outage) => SPELLS.some((name) => outage[name] && !outage[name].ended));
    if (changed || (live.connected && lasting)) replace(parts.outages, this.outages(outages, now));
    if (!changed) return;
    replace(parts.latency, this.latency());
    if (parts.table.closest("details").open) replace(parts.table, [table([...target.observations.values()].reverse().slice(0, SHOWN_RESTS))]);
  }

  outages(outages, now) {
    const { failover } = this.target.advice;
    if (!outages.length) return [element("p", { class: "quiet" }, "None seen so far.")];
    const width = Math.floor(this.parts.outages.clientWidth);
    const shown = outages.slice(0, SHOWN_OUTAGES);
    const aged = outages.filter((outage) => outage.kind === "lifetime").length; // the database was there: no outage of it
    const counted = outages.length - aged;
    const figures = [failover?.outage_seconds && `half of them within ${span(failover.outage_seconds.p50)}, the longest ${span(failover.outage_seconds.max)}`, failover?.write_outage_seconds && `no writes for ${span(failover.write_outage_seconds.max)} at most`].filter(Boolean);
    return [
      element("p", { class: "figures" }, element("strong", {}, `${counted} ${counted === 1 ? "outage" : "outages"}`), figures.length ? `: ${figures.join("; ")}` : "", aged ? `. Beside them, connections that ended at the limit on age: ${aged}` : ""),
      timeline(outages.slice(0, 200), width, now),
      element("ol", { class: "outages", reversed: true, start: outages.length }, shown.map((outage) => outageItem(outage, now))),
      outages.length > shown.length && element("p", {}, element("a", { href: `outages?target=${encodeURIComponent(this.name)}` }, `all ${outages.length}`)),
    ].filter(Boolean);
  }

  latency() {
    const { checkout, checkout_with_ping: pinged } = this.target.summary;
    const cost = this.target.advice.pre_ping_cost;
    const bars = [checkout && { name: "without ping", bar: checkout, kind: "without" }, pinged && { name: "with ping", bar: pinged, kind: "with" }].filter(Boolean);
    if (!bars.length) return [element("p", { class: "quiet" }, "Not measured yet.")];
    const said = [];
    if (cost?.round_trips != null) said.push(`A ping takes ${cost.round_trips} round trips`);
    if (cost?.overhead_ratio != null) said.push(`${Math.round(cost.overhead_ratio * 100)} % of a turn with one query is the ping`);
    return [latency(bars, Math.floor(this.parts.latency.clientWidth)), element("p", { class: "hint" }, said.length ? `${said.join("; ")}. ` : "", `Latest ${bars.map(({ bar }) => bar.count).join(" and ")} checkouts of the pool the sidecar holds.`)];
  }
}

const SPELLS = ["connect", "read", "write"];

function outageItem(outage, now) {
  const spells = SPELLS.map((name) => outage[name] && [name, outage[name]]).filter(Boolean);
  const began = spells.length ? Math.min(...spells.map(([, spell]) => Date.parse(spell.began.until))) : null;
  const length = (spell) => spell.ended ? between(spell.shortest_seconds, spell.longest_seconds) + (spell.watched ? "" : ", unwatched") : `${span(Math.max(0, Math.floor((now - Date.parse(spell.began.until)) / 1000)))} so far`;
  const lasting = spells.some(([, spell]) => !spell.ended);
  return element("li", { class: lasting ? "lasting" : null },
    element("strong", {}, outage.kind.replaceAll("_", " ")), outage.detail ? ` (${outage.detail})` : "", " ",
    began !== null && element("time", { datetime: new Date(began).toISOString() }, clock(began)), lasting ? element("span", { class: "badge" }, "going on") : "",
    element("span", { class: "spells" }, spells.map(([name, spell]) => `no ${{ connect: "connecting", read: "reading", write: "writing" }[name]}: ${length(spell)}`).join(" · ")));
}

function between(shortest, longest) {
  if (!shortest) return `at most ${seconds(longest)}`;
  return seconds(shortest) === seconds(longest) ? seconds(longest) : `${seconds(shortest)} to ${seconds(longest)}`;
}

function table(observations) {
  const heads = ["when", "rested", "outcome", "how, why", "for"];
  return element("table", {}, element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, observations.map((each) => element("tr", {},
      element("td", {}, clock(each.at)), element("td", { class: "number" }, seconds(each.idle_seconds)), element("td", {}, each.outcome),
      element("td", {}, [each.death, each.cause, each.sqlstate].filter(Boolean).join(", ").replaceAll("_", " ")), element("td", {}, each.arm)))));
}

// -- helpers ----------------------------------------------------------------------------------------------------------

/** Whoever is at a link in there with the keyboard stays at it. */
function replace(node, children) {
  const held = node.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  node.replaceChildren(...children);
  if (held !== null) node.querySelector(`a[href="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
}

function say(text) {
  byId("said").textContent = text;
}

/** Where the page came over plain HTTP from another machine, browsers have no clipboard for it: then the old way. */
async function toClipboard(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(shown);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }
}

// -- all of it --------------------------------------------------------------------------------------------------------

const pending = new Set();

function changed(name) {
  if (name !== null) pending.add(name);
  if (!changed.asked) changed.asked = setTimeout(render, 60); // what comes together is drawn once
}

function render() {
  changed.asked = null;
  if (!formats.length) return; // `begin` calls again
  byId("waiting").hidden = live.targets.size > 0;
  for (const [name, section] of sections) {
    if (live.targets.has(name)) continue;
    section.remove();
    sections.delete(name);
    tellNames();
  }
  const pendingNow = [...pending];
  pending.clear();
  for (const name of pendingNow) {
    if (!live.targets.has(name)) continue;
    if (!sections.has(name)) addSection(name);
    sections.get(name).update(live.targets.get(name));
  }
  const warning = live.store?.warning;
  byId("store").hidden = !warning;
  byId("store").textContent = warning ? `Evidence is kept in memory only: ${warning}` : "";
}

function addSection(name) {
  const section = new Section(name);
  sections.set(name, section);
  const ordered = [...sections.keys()].sort();
  byId("targets").insertBefore(section.node, sections.get(ordered[ordered.indexOf(name) + 1])?.node ?? null);
  tellNames();
}

function tellNames() {
  const ordered = [...sections.keys()].sort();
  replace(byId("jump"), ordered.map((each) => element("a", { href: `#target-${encodeURIComponent(each)}` }, each)));
  byId("jump").hidden = ordered.length < 2;
}

function tellState() {
  const { connected, since } = live;
  byId("live").dataset.state = connected ? "live" : "lost";
  byId("live-text").textContent = connected ? "Live" : since === null ? "No answer" : "Not live";
  const stale = byId("stale");
  stale.hidden = connected;
  stale.textContent = since === null ? "The sidecar does not answer. Trying again …" : `Not live since ${clock(since)}: this is what was known then. Trying again …`;
  document.body.classList.toggle("is-stale", !connected);
}

async function begin() {
  try {
    const [index, known] = await Promise.all([get("./"), get("known-limits")]);
    formats = index.formats;
    knownLimits = known.limits;
    byId("version").textContent = `${index.service} ${index.version}`;
    render();
  } catch {
    setTimeout(begin, 3000);
  }
}

const live = new Live(changed, () => tellState());
setInterval(() => {
  for (const section of sections.values()) section.draw(false);
}, 1000);
begin();
