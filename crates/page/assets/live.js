// The state document, kept current: the whole of it first, then merge patches over an event stream. Where the stream
// has no place for us, the document is asked for now and then.

const POLL = 5000;
const TRY_STREAM = 30000;

/** RFC 7396: what changed, and null for what is gone. */
export function merge(target, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const merged = target !== null && typeof target === "object" && !Array.isArray(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete merged[key];
    else merged[key] = merge(merged[key], value);
  }
  return merged;
}

export class Live {
  state = {};
  /** The server's clock less ours, seconds. */
  skew = 0;
  #source;
  #timer;
  #tried = 0;

  /** Calls `changed(state)`, `grown(points)` and `line(state, since)`. */
  constructor({ changed, grown, line }) {
    this.changed = changed;
    this.grown = grown;
    this.line = line;
    this.heard = Date.now();
  }

  now() {
    return Date.now() / 1000 + this.skew;
  }

  async start() {
    this.line("connecting");
    await this.#ask();
    this.#stream();
  }

  async #ask() {
    try {
      const answer = await fetch("/api/state");
      if (!answer.ok) throw new Error(answer.statusText);
      const state = await answer.json();
      this.skew = state.now - Date.now() / 1000;
      delete state.now;
      this.#take(state);
      return true;
    } catch {
      this.line("away", this.heard);
      return false;
    }
  }

  #take(state) {
    this.heard = Date.now();
    this.state = state;
    this.changed(state);
  }

  #stream() {
    this.#tried = Date.now();
    const source = new EventSource("/api/live");
    this.#source = source;
    source.addEventListener("open", () => this.line("live"));
    source.addEventListener("state", (event) => this.#take(JSON.parse(event.data)));
    source.addEventListener("patch", (event) => {
      const { state, points } = JSON.parse(event.data);
      this.#take(merge(this.state, state));
      if (points) this.grown(points);
    });
    source.addEventListener("error", () => {
      // Closed: refused, all places are taken. Else the browser comes back by itself.
      if (source.readyState === EventSource.CLOSED) this.#poll();
      else this.line("away", this.heard);
    });
  }

  #poll() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(async () => {
      const there = await this.#ask();
      if (there) this.line("polling");
      if (there && Date.now() - this.#tried > TRY_STREAM) this.#stream();
      else this.#poll();
    }, POLL);
  }
}
