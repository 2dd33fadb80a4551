// Charts of the run's history: lines of means over bands from least to greatest, drawn as SVG. One cursor, moved by
// pointer or by the range input, shows the values of one step in all of them; a table has the numbers.

import { byId, draw, duration, integer, make, number, say } from "./format.js";

const HEIGHT = 150;
const PAD = { left: 52, right: 8, top: 8, bottom: 18 };
/** Points that are kept; twice what is asked for, then the history is fetched anew. */
const POINTS = 600;

const CHARTS = [
  { id: "loss", title: "Loss", series: ["loss"], log: true, bounds: true },
  { id: "levels", title: "Loss per level", series: "levels", log: true },
  { id: "grad", title: "Gradient norm", series: ["grad_norm"] },
  { id: "speed", title: "Images per second", series: ["images_per_s"], zero: true },
  { id: "time", title: "Step time and wait for pictures", series: ["step_s", "data_wait_s"], zero: true, text: duration },
  { id: "lr", title: "Learning rate", series: ["lr"], zero: true },
  { id: "momentum", title: "Momentum of the target", series: ["momentum"] },
];

const NAMES = {
  loss: "loss", grad_norm: "gradient norm", images_per_s: "images/s", step_s: "step time", data_wait_s: "wait for pictures",
  lr: "learning rate", momentum: "momentum",
};

export class Charts {
  history;
  levels = [];
  bounds = {};
  newest = 0;
  #views = [];
  #last;
  #busy = false;
  #again = false;
  #drawn = false;

  constructor() {
    const host = byId("charts");
    for (const chart of CHARTS) {
      const view = new View(chart, (share) => this.#point(share));
      this.#views.push(view);
      host.append(view.figure);
    }
    this.cursor = byId("cursor");
    this.cursor.addEventListener("input", () => this.#showCursor());
    for (const radio of document.getElementsByName("span")) {
      radio.addEventListener("change", () => {
        this.newest = Number(radio.value);
        this.load();
      });
    }
    byId("log").addEventListener("change", () => this.redraw());
    byId("numbers").addEventListener("toggle", () => this.#numbers());
    new ResizeObserver(() => this.redraw()).observe(host);
  }

  /** Fetches the history; asked again meanwhile, once more after. */
  async load() {
    if (this.#busy) {
      this.#again = true;
      return;
    }
    this.#busy = true;
    try {
      const answer = await fetch(`/api/history?points=${POINTS}&newest=${this.newest}`);
      if (answer.ok) this.history = await answer.json();
    } catch {
      // The line says that nobody answers.
    }
    this.#busy = false;
    this.redraw();
    if (this.#again) {
      this.#again = false;
      await this.load();
    }
  }

  /** The state says what levels are called, what bounds the loss has, and whether rows changed under us. */
  describe(state) {
    this.#last = state.last;
    this.levels = state.run?.levels ?? [];
    this.bounds = { chance: state.run?.chance, floor: state.run?.floor };
    const stale = this.history && this.history.revision !== state.history.revision;
    if (!this.history || stale) this.load();
  }

  /** Rows that are new since. */
  grow(points) {
    const h = this.history;
    if (!h || this.#busy) return;
    const follows = h.last.length === 0 || points.first[0] > h.last.at(-1);
    if (h.revision !== points.revision || !follows || h.first.length > 2 * POINTS) {
      this.load();
      return;
    }
    const length = h.first.length;
    for (const key of ["first", "last", "time", "generation", "skipped"]) h[key].push(points[key][0]);
    for (const [name, columns] of Object.entries(points.series)) {
      const own = (h.series[name] ??= { mean: new Array(length).fill(null) });
      if (!own.min) Object.assign(own, { min: [...own.mean], max: [...own.mean] });
      for (const key of ["mean", "min", "max"]) own[key].push(columns[key][0]);
    }
    for (const own of Object.values(h.series)) {
      for (const column of Object.values(own)) while (column.length < h.first.length) column.push(null);
    }
    if (this.newest > 0) this.#forget(h.last.at(-1) - this.newest);
    this.redraw();
  }

  #forget(until) {
    const h = this.history;
    const count = h.last.findIndex((step) => step > until);
    if (count <= 0) return;
    for (const key of ["first", "last", "time", "generation", "skipped"]) h[key].splice(0, count);
    for (const own of Object.values(h.series)) for (const column of Object.values(own)) column.splice(0, count);
  }

  redraw() {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => {
      this.#drawn = false;
      if (!this.history) return;
      const atEnd = Number(this.cursor.value) >= Number(this.cursor.max);
      const last = Math.max(0, this.history.first.length - 1);
      this.cursor.max = last;
      if (atEnd) this.cursor.value = last;
      const log = byId("log").checked;
      for (const view of this.#views) view.render(this.history, this.#seriesOf(view.chart), log, this.bounds);
      this.#showCursor();
      this.#numbers();
    });
  }

  #seriesOf(chart) {
    const level = (name, at) => ({ key: `level_${at}`, name: this.levels[at] ?? `level ${at}` });
    const all = Object.keys(this.history.series).filter((key) => key.startsWith("level_"));
    if (chart.series === "levels") return all.map(level);
    return chart.series.map((key) => ({ key, name: NAMES[key] }));
  }

  #point(share) {
    this.cursor.value = Math.round(share * Number(this.cursor.max));
    this.#showCursor();
  }

  #showCursor() {
    const h = this.history;
    const at = Number(this.cursor.value);
    if (!h || h.first.length === 0) return;
    const [first, last] = [h.first[at], h.last[at]];
    const steps = first === last ? `step ${integer(first)}` : `steps ${integer(first)} to ${integer(last)}`;
    const text = `${steps}, generation ${integer(h.generation[at])}`;
    this.cursor.setAttribute("aria-valuetext", text);
    say(byId("cursor-text"), text);
    for (const view of this.#views) view.point(h, at);
  }

  /** The newest row's own value: the end of a column may be the mean of some rows. */
  #newest(key) {
    const level = key.match(/^level_(\d+)$/);
    return level ? this.#last?.loss_per_level?.[Number(level[1])] : this.#last?.[key];
  }

  #numbers() {
    if (!byId("numbers").open || !this.history) return;
    const rows = this.#views.flatMap((view) => {
      const text = view.chart.text ?? number;
      return this.#seriesOf(view.chart).map(({ key, name }) => {
        const own = this.history.series[key] ?? { mean: [] };
        const means = own.mean.filter((v) => v !== null);
        const sum = means.reduce((a, b) => a + b, 0);
        const cells = [this.#newest(key) ?? means.at(-1), means.length ? sum / means.length : undefined, least(own.min ?? means), greatest(own.max ?? means)];
        const title = view.chart.series === "levels" ? `loss, ${name}` : name;
        return make("tr", {}, make("th", { scope: "row" }, title), ...cells.map((v) => make("td", {}, text(v))));
      });
    });
    byId("numbers-body").replaceChildren(...rows);
  }
}

const least = (values) => extreme(values, Math.min);
const greatest = (values) => extreme(values, Math.max);

function extreme(values, of) {
  let found;
  for (const v of values) if (v !== null && v !== undefined) found = found === undefined ? v : of(found, v);
  return found;
}

class View {
  constructor(chart, pointed) {
    this.chart = chart;
    this.svg = draw("svg", { role: "img", height: HEIGHT });
    this.caption = make("figcaption", {}, make("strong", {}, chart.title), " ");
    this.readout = make("span", { class: "readout" });
    this.caption.append(this.readout);
    this.figure = make("figure", { id: `chart-${chart.id}` }, this.caption, this.svg);
    this.line = draw("line", { class: "cursor-line", y1: PAD.top, y2: HEIGHT - PAD.bottom });
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      const share = (event.clientX - box.left - PAD.left) / (box.width - PAD.left - PAD.right);
      pointed(Math.min(1, Math.max(0, share)));
    });
  }

  render(history, series, log, bounds) {
    const width = Math.max(200, this.svg.clientWidth || this.figure.clientWidth);
    this.series = series;
    this.width = width;
    const parts = [];
    const columns = series.map(({ key }) => history.series[key]).filter(Boolean);
    const scale = vertical(this.chart, columns, log && this.chart.log, this.chart.bounds ? bounds : {});
    this.steps = { from: history.first[0] ?? 0, to: history.last.at(-1) ?? 1 };
    const x = (at) => this.#x((history.first[at] + history.last[at]) / 2);
    for (const value of scale.ticks) {
      const y = scale.y(value).toFixed(1);
      parts.push(draw("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: y, y2: y }));
      parts.push(text((this.chart.text ?? tick)(value), PAD.left - 4, Number(y) + 4, "end"));
    }
    for (const [name, value] of Object.entries(this.chart.bounds ? bounds : {})) {
      if (value === undefined || !scale.holds(value)) continue;
      const y = scale.y(value).toFixed(1);
      parts.push(draw("line", { class: "bound", x1: PAD.left, x2: width - PAD.right, y1: y, y2: y }));
      parts.push(text(name, width - PAD.right - 2, Number(y) - 3, "end"));
    }
    for (let at = 1; at < history.first.length; at += 1) {
      if (history.generation[at] !== history.generation[at - 1]) {
        const place = this.#x(history.first[at]).toFixed(1);
        parts.push(draw("line", { class: "generation", x1: place, x2: place, y1: HEIGHT - PAD.bottom - 6, y2: HEIGHT - PAD.bottom }));
      }
      if (history.skipped[at] > 0) {
        const place = x(at).toFixed(1);
        parts.push(draw("line", { class: "skipped", x1: place, x2: place, y1: PAD.top, y2: PAD.top + 6 }));
      }
    }
    series.forEach(({ key }, index) => {
      const own = history.series[key];
      if (!own) return;
      const tone = `tone-${index % 6}`;
      if (own.min) parts.push(draw("path", { class: `band ${tone}`, d: band(own, x, scale.y) }));
      parts.push(draw("path", { class: `mean ${tone}`, d: path(own.mean, x, scale.y) }));
    });
    parts.push(text(integer(this.steps.from), PAD.left, HEIGHT - 4, "start"));
    parts.push(text(`step ${integer(this.steps.to)}`, width - PAD.right, HEIGHT - 4, "end"));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...parts, this.line);
    this.#describe(history);
  }

  /** The values of one point. */
  point(history, at) {
    if (!this.series) return;
    const place = this.#x((history.first[at] + history.last[at]) / 2).toFixed(1);
    this.line.setAttribute("x1", place);
    this.line.setAttribute("x2", place);
    const show = this.chart.text ?? number;
    const values = this.series.map(({ key, name }, index) => {
      const value = history.series[key]?.mean[at];
      const label = this.series.length > 1 ? `${name} ` : "";
      return make("span", { class: `value tone-${index % 6}` }, label, make("b", {}, show(value ?? undefined)));
    });
    this.readout.replaceChildren(...values);
  }

  #x(step) {
    const span = Math.max(1, this.steps.to - this.steps.from);
    return PAD.left + ((step - this.steps.from) / span) * (this.width - PAD.left - PAD.right);
  }

  #describe(history) {
    const show = this.chart.text ?? number;
    const parts = (this.series ?? []).map(({ key, name }) => {
      const own = history.series[key] ?? { mean: [] };
      const means = own.mean.filter((v) => v !== null);
      return `${name} from ${show(means[0])} to ${show(means.at(-1))}, least ${show(least(own.min ?? means))}, greatest ${show(greatest(own.max ?? means))}`;
    });
    const steps = `steps ${integer(this.steps.from)} to ${integer(this.steps.to)}`;
    this.svg.setAttribute("aria-label", `${this.chart.title}, ${steps}: ${parts.join("; ") || "no steps yet"}`);
  }
}

function text(content, x, y, anchor) {
  const element = draw("text", { x, y, "text-anchor": anchor });
  element.textContent = content;
  return element;
}

const tick = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 }));

/** From values to places, with three to five ticks. */
function vertical(chart, columns, log, bounds) {
  let low = least(columns.flatMap((c) => [least(c.min ?? c.mean)]));
  let high = greatest(columns.flatMap((c) => [greatest(c.max ?? c.mean)]));
  if (low === undefined) [low, high] = [0, 1];
  // Chance is where training begins: seeing it says how far it has come.
  if (bounds.chance !== undefined && high > bounds.chance / 2) high = Math.max(high, bounds.chance);
  if (chart.zero && low > 0) low = 0;
  const onLog = log && low > 0;
  if (high - low < 1e-12 * Math.abs(high) || high === low) {
    const room = Math.abs(high) * 0.1 || 1;
    [low, high] = [onLog ? low / 1.1 : low - (chart.zero ? 0 : room), high + room];
  }
  const room = HEIGHT - PAD.top - PAD.bottom;
  const into = onLog ? Math.log : (v) => v;
  const [from, to] = [into(low), into(high)];
  const y = (v) => PAD.top + (1 - (into(Math.max(v, onLog ? low : v)) - from) / (to - from)) * room;
  return { y, ticks: onLog ? logTicks(low, high) : ticks(low, high), holds: (v) => v >= low && v <= high };
}

function ticks(low, high) {
  const raw = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= raw) ?? 10);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const m of [1, 2, 5]) {
      const v = m * 10 ** power;
      if (v >= low && v <= high) found.push(v);
    }
  }
  return found.length > 6 ? found.filter((v) => Number.isInteger(Math.log10(v))) : found.length < 2 ? ticks(low, high) : found;
}

function path(values, x, y) {
  let d = "";
  let open = false;
  values.forEach((value, at) => {
    if (value === null || value === undefined) {
      open = false;
      return;
    }
    d += `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    open = true;
  });
  return d;
}

function band(own, x, y) {
  const there = own.min.map((_, at) => at).filter((at) => own.min[at] !== null && own.max[at] !== null);
  if (there.length < 2) return "";
  const up = there.map((at) => `${x(at).toFixed(1)} ${y(own.max[at]).toFixed(1)}`);
  const down = there.reverse().map((at) => `${x(at).toFixed(1)} ${y(own.min[at]).toFixed(1)}`);
  return `M${up.join("L")}L${down.join("L")}Z`;
}
