// The page: what the state document says, put where people look for it.

import { Actions } from "./actions.js";
import { Charts } from "./charts.js";
import { byId, duration, integer, make, moment, number, percent, say } from "./format.js";
import { Live } from "./live.js";
import { tables } from "./tables.js";

/** Milliseconds between two askings for a montage sheet while it is looked at. */
const SHEET = 15000;

const MARKS = {
  idle: "M6 5h4v14H6zM14 5h4v14h-4z",
  good: "M4 12.5 9.5 18 20 6.5 17.6 4.2 9.4 13.2 6.2 10.2z",
  watch: "M12 3 22 21H2zM11 9v6h2V9zM11 16.5v2h2v-2z",
  bad: "M7 3h10l5 5v8l-5 5H7l-5-5V8zM11 7v7h2V7zM11 15.5v2h2v-2z",
};

const charts = new Charts();
const actions = new Actions(() => live.state);
const renewTables = tables((what) => !byId(`panel-${what}`).hidden);
const live = new Live({ changed: show, grown: (points) => charts.grow(points), line });

function show(state) {
  document.title = `${state.verdict.headline}: ${state.run?.name ?? "mcl"}`;
  say(byId("run"), state.run?.name ?? "no job");
  say(byId("build"), `mcl ${state.build}, term ${state.term}`);
  verdict(state);
  tiles(state);
  cluster(state);
  actions.show(state);
  charts.describe(state);
}

function verdict(state) {
  const { level, headline, notes } = state.verdict;
  byId("verdict").dataset.level = level;
  byId("mark").setAttribute("d", MARKS[level]);
  say(byId("headline"), headline);
  say(byId("reason"), `${state.phase}: ${state.reason}`);
  byId("notes").hidden = notes.length === 0;
  const shown = [...byId("notes").children].map((li) => li.textContent);
  if (shown.join("\n") !== notes.join("\n")) byId("notes").replaceChildren(...notes.map((n) => make("li", {}, n)));
  // Said aloud only where it means something new: a reason may count seconds.
  say(byId("said"), `${headline}. ${notes.map((n) => n.replace(/[\d.]+ s$/, "a while")).join(". ")}`);

  const share = state.total > 0 ? state.committed / state.total : 0;
  byId("progress").value = share;
  const left = state.steps_per_s ? (state.total - state.committed) / state.steps_per_s : undefined;
  const parts = [`${integer(state.committed)} of ${integer(state.total)} steps (${percent(share)})`];
  if (state.last) parts.push(`epoch ${integer(state.last.epoch)}`);
  if (left !== undefined && state.committed < state.total) parts.push(`about ${duration(left)} left`);
  say(byId("progress-text"), state.total > 0 ? parts.join(", ") : "");
}

/** One number: its name, its text, what it means exactly, a remark. */
const TILES = [
  ["loss", "loss", (s) => [number(s.last?.loss, 5), s.last?.loss, gap(s)]],
  ["images_per_s", "images/s", (s) => [number(s.last?.images_per_s, 4), s.last?.images_per_s, s.steps_per_s ? `${number(s.steps_per_s, 3)} steps/s` : ""]],
  ["step_s", "step", (s) => [duration(s.last?.step_s), s.last?.step_s, spread(s)]],
  ["data_wait", "waits for pictures", (s) => [percent(s.last ? s.data_wait_share : undefined), s.data_wait_share, `last step ${duration(s.last?.data_wait_s)}`]],
  ["grad_norm", "gradient norm", (s) => [number(s.last?.grad_norm, 4), s.last?.grad_norm, s.skipped > 0 ? `${integer(s.skipped)} updates skipped` : ""]],
  ["lr", "learning rate", (s) => [number(s.last?.lr, 4), s.last?.lr, ""]],
  ["momentum", "momentum", (s) => [number(s.last?.momentum, 5), s.last?.momentum, ""]],
  ["workers", "workers", (s) => [integer(s.workers.connected), s.workers.connected, states(s)]],
  ["ranks", "ranks", (s) => [integer(s.ranks.count), s.ranks.count, s.run ? `${integer(s.run.lanes)} lanes of ${integer(s.run.images_per_lane)}` : ""]],
  ["generation", "generation", (s) => [integer(s.generation), s.generation, s.generations[0] ? `since ${moment(s.generations[0].since)}` : ""]],
  ["checkpoint", "newest checkpoint", (s) => [s.last_checkpoint === undefined ? "none" : `step ${integer(s.last_checkpoint)}`, s.last_checkpoint, since(s)]],
];

function gap(s) {
  const { chance, floor } = s.run ?? {};
  if (s.last?.loss === undefined || chance === undefined || floor === undefined) return "";
  return `${percent((chance - s.last.loss) / (chance - floor))} from chance to floor`;
}

function spread(s) {
  const { count, fastest_s, slowest_s, stragglers } = s.ranks;
  if (count < 2 || !(slowest_s > 0)) return "";
  const slow = stragglers > 0 ? `, ${integer(stragglers)} slow` : "";
  return `ranks ${duration(fastest_s)} to ${duration(slowest_s)}${slow}`;
}

const states = (s) =>
  Object.entries(s.workers.by_state).map(([state, count]) => `${integer(count)} ${state}`).join(", ");

function since(s) {
  const newest = s.checkpoints[0];
  return newest?.time ? `${duration(live.now() - newest.time)} ago` : "";
}

function tiles(state) {
  const host = byId("tiles");
  if (host.children.length === 0) {
    for (const [id, title] of TILES) {
      host.append(make("div", { id: `tile-${id}` }, make("dt", {}, title), make("dd", { class: "big" }), make("dd", { class: "faint" })));
    }
  }
  for (const [id, , of] of TILES) {
    const [text, exact, remark] = of(state);
    const [, big, small] = byId(`tile-${id}`).children;
    say(big, text);
    big.dataset.value = exact ?? "";
    say(small, remark ?? "");
  }
}

function cluster(state) {
  say(byId("count-workers"), integer(state.workers.known));
  say(byId("count-ranks"), integer(state.ranks.count));
  say(byId("count-generations"), integer(state.generations.length + state.generations_forgotten));
  say(byId("count-checkpoints"), integer(state.checkpoints.length));
  say(byId("count-evaluations"), integer(state.evaluations.length));
  say(byId("count-jobs"), integer(state.queue_len));
  rows("generations", state.generations, (g) => [
    integer(g.generation),
    g.why ?? "not known: it came before this coordinator",
    integer(g.workers),
    integer(g.ranks),
    integer(g.first_step),
    integer(g.steps),
    moment(g.since),
    g.until === undefined ? "goes on" : duration(g.until - g.since),
  ]);
  const rest = state.generations_forgotten;
  say(byId("generations-rest"), rest > 0 ? `and ${integer(rest)} before these` : "");
  rows("checkpoints", state.checkpoints, (c) => [
    `step ${integer(c.step)}`,
    c.time === undefined ? "before this coordinator" : moment(c.time),
    c.time === undefined ? "–" : duration(live.now() - c.time),
  ]);
  const verdicts = state.evaluations.flatMap((e) => e.accuracies.map((a) => ({ ...e, ...a })));
  rows("evaluations", verdicts, (v) => [
    `step ${integer(v.step)}`,
    v.probe,
    v.on,
    percent(v.trained),
    percent(v.random),
    percent(v.pixels),
    v.encoder,
    moment(v.time),
    duration(v.seconds),
  ]);
  rows("queue", state.queue, (q) => {
    const button = make("button", { type: "button", "aria-label": `Take ${q.run} out of the queue` }, "Take out…");
    button.addEventListener("click", () => actions.ask("cancel", q.run));
    return [q.run, moment(q.since), state.actions ? button : ""];
  });
  rows("past", state.past, (p) => [p.run, p.outcome, moment(p.until)]);
  sheetText(state);
}

/** A body of few rows; left alone where it says the same, so that focus and selection stay. */
function rows(id, list, cells) {
  const body = byId(id);
  const made = list.map((entry) => make("tr", {}, ...cells(entry).map((cell, at) => (at === 0 ? make("th", { scope: "row" }, cell) : make("td", {}, cell)))));
  if (made.length === 0) {
    const columns = body.parentElement.querySelectorAll("thead th").length;
    made.push(make("tr", {}, make("td", { colspan: columns }, "none")));
  }
  const same = made.length === body.children.length && made.every((row, at) => row.isEqualNode(body.children[at]));
  if (!same) body.replaceChildren(...made);
}

function line(state, heard) {
  const element = byId("line");
  element.dataset.state = state;
  const texts = { connecting: "connecting", live: "live", polling: "renewed every 5 s: all places for live viewers are taken" };
  const text = texts[state] ?? `nobody answers since ${moment(heard / 1000)}: what is shown is what was known then`;
  say(element, text);
  if (state === "away") say(byId("said"), text);
}

function sheetText(state) {
  const { step, drawing, failed } = state.sheet;
  const image = byId("sheet");
  if (step !== undefined && image.dataset.step !== String(step) && !byId("panel-montages").hidden) {
    image.dataset.step = step;
    image.src = `/api/sheet?step=${step}`;
    image.alt = `Montages of lane 0 in step ${step}: a row for each level and side, tiles numbered by picture`;
    image.hidden = false;
  }
  const parts = [];
  if (step !== undefined) parts.push(`Lane 0 in step ${integer(step)}: what the network saw. A row for each level and side; a picture keeps its number and colour.`);
  if (drawing) parts.push("A newer sheet is being drawn.");
  if (failed !== undefined) parts.push(`It cannot be drawn: ${failed}`);
  if (parts.length === 0) parts.push(state.last ? "No sheet yet." : "No step yet: there is nothing to draw.");
  say(byId("sheet-text"), parts.join(" "));
}

/** Asking has one drawn, where it is time; the state says when it is there. */
function askSheet() {
  if (byId("panel-montages").hidden || document.visibilityState !== "visible") return;
  fetch("/api/sheet", { method: "HEAD" }).catch(() => {});
  if (live.state.sheet) sheetText(live.state);
}

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    renewTables();
    askSheet();
  };
  all.forEach((tab, at) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      all[to % all.length].focus();
      select(all[to % all.length]);
    });
  });
}

function theme() {
  const button = byId("theme");
  const kinds = { system: "as the system has them", light: "light", dark: "dark" };
  const apply = (kind) => {
    if (kind === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = kind;
    button.dataset.kind = kind;
    say(button, `Colours: ${kind}`);
    button.setAttribute("aria-label", `Colours: ${kinds[kind]}`);
  };
  const kept = localStorage.getItem("mcl-theme");
  apply(kept in kinds ? kept : "system");
  button.addEventListener("click", () => {
    const all = Object.keys(kinds);
    const next = all[(all.indexOf(button.dataset.kind) + 1) % all.length];
    localStorage.setItem("mcl-theme", next);
    apply(next);
    charts.redraw();
  });
}

theme();
tabs();
setInterval(askSheet, SHEET);
await live.start();
renewTables();
