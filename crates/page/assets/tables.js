// Tables of workers and ranks: a page at a time from the server, which sorts and filters, so that thousands of rows cost
// a browser fifty.

import { byId, duration, integer, make, say } from "./format.js";

const ROWS = 50;
/** Milliseconds between two looks at a table that is seen. */
const RENEW = 3000;

const WORKERS = {
  what: "workers",
  caption: "Workers; those that need attention come first",
  find: "Find a worker by name or address",
  states: ["lost", "leaving", "connected", "preparing", "ready", "training"],
  columns: [
    { key: "name", title: "worker", cell: (w) => w.name },
    { key: "state", title: "state", cell: (w) => badge(w.state) },
    { key: "ranks", title: "ranks", number: true, cell: (w) => span(w.ranks, w.rank_count) },
    { key: "lanes", title: "lanes", number: true, cell: (w) => integer(w.lanes) },
    { key: "step", title: "step time", number: true, cell: (w) => duration(w.step_s) },
    { key: "data", title: "wait for pictures", number: true, cell: (w) => duration(w.data_s) },
    { key: "silent", title: "silent for", number: true, cell: (w) => duration(w.silent_s) },
    { key: "address", title: "address", cell: (w) => w.address },
  ],
  odd: (w) => w.straggler || w.state === "lost" || w.state === "leaving",
  remark: (w) => (w.straggler ? "the others wait for it" : ""),
};

const RANKS = {
  what: "ranks",
  caption: "Ranks of the live generation, means over about 20 steps; those that the others wait for come first",
  find: "Find a rank by number, worker or device",
  states: ["straggler"],
  columns: [
    { key: "rank", title: "rank", number: true, cell: (r) => integer(r.rank) },
    { key: "worker", title: "worker", cell: (r) => r.worker },
    { key: "device", title: "device", cell: (r) => r.device },
    { key: "lanes", title: "lanes", number: true, cell: (r) => lanes(r) },
    { key: "step", title: "step", number: true, cell: (r) => duration(r.step_s) },
    { key: undefined, title: "split up", cell: (r) => split(r) },
    { key: "data", title: "pictures", number: true, cell: (r) => duration(r.data_s) },
    { key: "forward", title: "forward", number: true, cell: (r) => duration(r.forward_s) },
    { key: "backward", title: "backward", number: true, cell: (r) => duration(r.backward_s) },
    { key: "collective", title: "of it in collectives", number: true, cell: (r) => duration(r.collective_s) },
    { key: "last_step", title: "last step", number: true, cell: (r) => integer(r.last_step) },
  ],
  odd: (r) => r.straggler,
  remark: (r) => (r.straggler ? "the others wait for it" : ""),
};

const badge = (state) => make("span", { class: `badge ${state}` }, state);

/** 0–7, or 0, 2, 5 and 3 more. */
function span(list, count) {
  if (count === 0) return "–";
  const run = list.every((r, at) => r === list[0] + at);
  if (run) return count === 1 ? `${list[0]}` : `${list[0]}–${list[0] + count - 1}`;
  return list.join(", ") + (count > list.length ? ` and ${count - list.length} more` : "");
}

function lanes(rank) {
  if (rank.lanes === 0) return "–";
  return rank.lanes === 1 ? `${rank.first_lane}` : `${rank.first_lane}–${rank.first_lane + rank.lanes - 1}`;
}

/** A bar of what a step is made of; the numbers stand beside it. */
function split(rank) {
  const bar = make("span", { class: "split", "aria-hidden": "true" });
  const own = rank.forward_s + rank.backward_s - rank.collective_s;
  const rest = rank.step_s - rank.data_s - rank.forward_s - rank.backward_s;
  for (const [name, seconds] of [["data", rank.data_s], ["own", own], ["collective", rank.collective_s], ["rest", rest]]) {
    const part = make("i", { class: name });
    part.style.flexGrow = Math.max(0, seconds / Math.max(rank.step_s, 1e-9)).toFixed(3);
    bar.append(part);
  }
  return bar;
}

class Table {
  constructor(spec) {
    this.spec = spec;
    this.sort = "";
    this.desc = false;
    this.page = 0;
    this.#build();
  }

  #build() {
    const { what, find, states, columns, caption } = this.spec;
    this.search = make("input", { type: "search", id: `${what}-find`, "aria-label": find, placeholder: find });
    const options = states.map((s) => make("option", { value: s }, s));
    this.state = make("select", { id: `${what}-state`, "aria-label": `Show ${what} of one state` }, make("option", { value: "" }, "all"), ...options);
    this.summary = make("p", { class: "faint", role: "status", id: `${what}-summary` });
    this.first = make("button", { type: "button" }, "Attention first");
    const heads = columns.map((column) => this.#head(column));
    this.body = make("tbody", { id: `${what}-body` });
    const table = make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads, make("th", { scope: "col" }, "remark"))), this.body);
    this.previous = make("button", { type: "button" }, "Previous page");
    this.next = make("button", { type: "button" }, "Next page");
    byId(`panel-${what}`).append(
      make("div", { class: "bar" }, this.search, this.state, this.first, this.summary),
      make("div", { class: "scroll" }, table),
      make("div", { class: "bar pages" }, this.previous, this.next),
    );
    let wait;
    this.search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => this.#turn(0), 200);
    });
    this.state.addEventListener("change", () => this.#turn(0));
    this.first.addEventListener("click", () => {
      this.sort = "";
      this.desc = false;
      this.#turn(0);
    });
    this.previous.addEventListener("click", () => this.#turn(this.page - 1));
    this.next.addEventListener("click", () => this.#turn(this.page + 1));
  }

  #head(column) {
    const head = make("th", { scope: "col", class: column.number ? "number" : undefined });
    if (!column.key) {
      head.append(column.title);
      return head;
    }
    const button = make("button", { type: "button", "data-sort": column.key }, column.title);
    button.addEventListener("click", () => {
      this.desc = this.sort === column.key ? !this.desc : false;
      this.sort = column.key;
      this.#turn(0);
    });
    column.head = head;
    head.append(button);
    return head;
  }

  #turn(page) {
    this.page = Math.max(0, page);
    this.load();
  }

  async load() {
    const asked = (this.asked = (this.asked ?? 0) + 1);
    const query = new URLSearchParams({ rows: ROWS, page: this.page, sort: this.sort, desc: this.desc, q: this.search.value.trim(), state: this.state.value });
    let found;
    try {
      const answer = await fetch(`/api/${this.spec.what}?${query}`);
      if (!answer.ok) return;
      found = await answer.json();
    } catch {
      return;
    }
    if (asked === this.asked) this.#show(found);
  }

  #show(found) {
    const { columns, odd, remark, what } = this.spec;
    this.page = found.page;
    for (const { key, head } of columns) {
      if (!head) continue;
      if (key === this.sort) head.setAttribute("aria-sort", this.desc ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const rows = found.rows.map((row) => {
      const cells = columns.map(({ cell, number }, at) => {
        const name = at === 0 ? "th" : "td";
        return make(name, { scope: at === 0 ? "row" : undefined, class: number ? "number" : undefined }, cell(row));
      });
      return make("tr", { class: odd(row) ? "odd" : undefined }, ...cells, make("td", {}, remark(row)));
    });
    if (rows.length === 0) rows.push(make("tr", {}, make("td", { colspan: columns.length + 1 }, `no ${what}`)));
    this.body.replaceChildren(...rows);
    const shown = found.found === found.all ? `${integer(found.all)} ${what}` : `${integer(found.found)} of ${integer(found.all)} ${what}`;
    say(this.summary, found.pages > 1 ? `${shown}, page ${found.page + 1} of ${found.pages}` : shown);
    this.previous.disabled = found.page === 0;
    this.next.disabled = found.page + 1 >= found.pages;
    this.previous.parentElement.hidden = found.pages <= 1;
  }
}

/** The tables, each renewed as long as its tab is seen. */
export function tables(isShown) {
  const all = [new Table(WORKERS), new Table(RANKS)];
  const renew = () => {
    if (document.visibilityState !== "visible") return;
    for (const table of all) if (isShown(table.spec.what)) table.load();
  };
  setInterval(renew, RENEW);
  document.addEventListener("visibilitychange", renew);
  return renew;
}
