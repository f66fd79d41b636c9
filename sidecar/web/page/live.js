// What the sidecar knows, kept up to date by its server-sent events.
//
// One rule for the beginning, for a gap and for a restart of the sidecar alike: after `reset`, fetch everything. What
// comes by events meanwhile is newer than what is fetched, and stays.

const SILENCE_MS = 25_000; // the sidecar says something every 10 s: after two and a half times that, nobody is there
const RETRY_MS = 3_000;
const PAGES = 5; // of a thousand observations each, at most

export class Live {
  targets = new Map(); // name -> {summary, advice, observations, outages}
  store = null;
  since = null; // when the sidecar was last heard, in milliseconds; null = never
  connected = false;

  /** `changed(target)` is called after every change, with a name or with null for all; `state()` when the line is lost or back. */
  constructor(changed, state) {
    this.changed = changed;
    this.state = state;
    this.connect();
    setInterval(() => this.watch(), 1000);
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
    const records = this.target(record.target)[kind];
    records.delete(record.id); // to the end: what is judged anew is news
    records.set(record.id, record);
    this.changed(record.target);
  }

  async fetchAll() {
    for (const target of this.targets.values()) {
      target.observations = new Map();
      target.outages = new Map();
    }
    try {
      const all = await get("targets");
      this.store = all.store;
      for (const summary of all.targets) {
        this.target(summary.name).summary ??= summary;
        await Promise.all([this.fetchRecords(summary.name, "observations", "evidence"), this.fetchRecords(summary.name, "outages", "outages")]);
        this.changed(summary.name);
      }
    } catch (error) {
      console.warn("not everything could be fetched:", error.message);
      this.source.close();
      this.lose(); // and begin again
      return;
    }
    this.changed(null);
  }

  async fetchRecords(name, kind, path) {
    const older = [];
    let next = `${path}?target=${encodeURIComponent(name)}&limit=1000`;
    for (let page = 0; next !== null && page < PAGES; page += 1) {
      const answer = await get(next);
      older.push(...answer[kind]);
      next = answer.next?.replace(/^\//, "") ?? null; // relative, so that the page works below any path of a proxy
    }
    const target = this.target(name);
    const newer = target[kind];
    target[kind] = new Map(older.reverse().map((record) => [record.id, record]));
    for (const [id, record] of newer) target[kind].set(id, record);
  }
}

export async function get(path, accept = "application/json") {
  const response = await fetch(path, { headers: { Accept: accept } });
  if (!response.ok) throw new Error(`${path}: HTTP status ${response.status}`);
  return accept === "application/json" ? response.json() : response.text();
}
