// What the sidecar knows, kept up to date by its server-sent events.
//
// One rule for the beginning, for a gap and for a restart of the sidecar alike: after `reset`, fetch everything. What
// comes by events meanwhile is newer than what is fetched, and stays.

const SILENCE_MS = 25_000; // the sidecar says something every 10 s: after two and a half times that, nobody is there
const RETRY_MS = 3_000;
const PAGES = 5; // of a thousand observations each, at most
const MOST_RECORDS = PAGES * 1000; // of a kind and target: a page may stay open for months
const STORE_MS = 60_000; // no event tells how the store is
const ANSWER_MS = 20_000;

export class Live {
  targets = new Map(); // name -> {summary, advice, observations, outages}
  store = null;
  since = null; // when the sidecar was last heard, in milliseconds; null = never
  connected = false;
  arrived = null; // what events told while everything is being fetched

  /** `changed(target)` is called after every change, with a name or with null for all; `state()` when the line is lost or back. */
  constructor(changed, state) {
    this.changed = changed;
    this.state = state;
    this.connect();
    setInterval(() => this.watch(), 1000);
    setInterval(() => this.askForStore(), STORE_MS);
  }

  connect() {
    this.source?.close();
    this.tried = Date.now();
    const source = (this.source = new EventSource("events"));
    const on = (name, take) =>
      source.addEventListener(name, (event) => {
        this.hear();
        take(JSON.parse(event.data));
      });
    source.addEventListener("open", () => this.hear());
    source.addEventListener("error", () => this.lose());
    on("reset", () => this.fetchAll());
    on("heartbeat", () => {});
    on("target", (summary) => this.update(summary.name, { summary, at: Date.now() }));
    on("recommendation", (advice) => this.update(advice.target, { advice }));
    on("observation", (record) => this.put("observations", record));
    on("outage", (record) => this.put("outages", record));
  }

  hear() {
    this.since = Date.now();
    if (!this.connected) {
      this.connected = true;
      this.state();
    }
  }

  lose() {
    if (this.connected || this.since === null) {
      this.connected = false;
      this.state();
    }
  }

  /** A line may die without a sign, and a browser gives up on an answer that is no stream: both are noticed here. */
  watch() {
    const silent = this.connected && Date.now() - this.since > SILENCE_MS;
    if (silent) this.lose();
    if (silent || (this.source.readyState === EventSource.CLOSED && Date.now() - this.tried > RETRY_MS)) this.connect();
  }

  target(name) {
    if (!this.targets.has(name)) {
      this.targets.set(name, { name, summary: null, advice: null, observations: new Map(), outages: new Map(), at: 0 });
    }
    return this.targets.get(name);
  }

  update(name, news) {
    Object.assign(this.target(name), news);
    this.changed(name);
  }

  put(kind, record) {
    this.arrived?.push([kind, record]);
    keep(this.target(record.target)[kind], record);
    this.changed(record.target);
  }

  /** What was known stays until it can be replaced; targets that are measured no more are forgotten. */
  async fetchAll() {
    const arrived = (this.arrived = []);
    const overtaken = () => this.arrived !== arrived; // by a later `reset`
    try {
      const all = await get("targets");
      if (overtaken()) return;
      this.store = all.store;
      const names = new Set(all.targets.map(({ name }) => name));
      for (const name of this.targets.keys()) if (!names.has(name)) this.targets.delete(name);
      this.changed(null);
      for (const summary of all.targets) {
        const { name } = summary;
        this.target(name).summary ??= summary;
        const [observations, outages] = await Promise.all([this.fetchRecords(name, "observations", "evidence"), this.fetchRecords(name, "outages", "outages")]);
        if (overtaken()) return;
        const target = Object.assign(this.target(name), { observations, outages });
        for (const [kind, record] of arrived) if (record.target === name) keep(target[kind], record);
        this.changed(name);
      }
    } catch (error) {
      if (overtaken()) return;
      this.arrived = null;
      console.warn("not everything could be fetched:", error.message);
      this.source.close();
      this.lose(); // and begin again
      return;
    }
    this.arrived = null;
    this.changed(null);
  }

  async askForStore() {
    if (!this.connected) return;
    try {
      this.store = (await get("targets")).store;
      this.changed(null);
    } catch {} // it is asked again
  }

  async fetchRecords(name, kind, path) {
    const older = [];
    let next = `${path}?target=${encodeURIComponent(name)}&limit=1000`;
    for (let page = 0; next !== null && page < PAGES; page += 1) {
      const answer = await get(next);
      older.push(...answer[kind]);
      next = answer.next?.replace(/^\//, "") ?? null; // relative, so that the page works below any path of a proxy
    }
    return new Map(older.reverse().map((record) => [record.id, record]));
  }
}

function keep(records, record) {
  records.delete(record.id); // to the end: what is judged anew is news
  records.set(record.id, record);
  if (records.size > MOST_RECORDS) records.delete(records.keys().next().value);
}

export async function get(path, accept = "application/json") {
  const response = await fetch(path, { headers: { Accept: accept }, signal: AbortSignal.timeout(ANSWER_MS) });
  if (!response.ok) throw new Error(`${path}: HTTP status ${response.status}`);
  return accept === "application/json" ? response.json() : response.text();
}
