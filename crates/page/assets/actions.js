// What a person may do to the job: each asks first, and shows the token. The token is kept in this variable alone.

import { byId, integer, say } from "./format.js";

let token = "";

const WISHES = {
  pause: {
    title: "Pause the job?",
    text: () => "The step in flight is finished and a checkpoint is made. Processes stay ready; Resume goes on.",
    yes: "Pause",
  },
  resume: { title: "Resume the job?", text: () => "It goes on where it was paused.", yes: "Resume" },
  drain: {
    title: "Drain the job?",
    text: () => "The step in flight is finished, a checkpoint is made, and the job stops. The same job, handed in again, goes on from there.",
    yes: "Drain",
  },
  cancel: {
    title: "Cancel the job?",
    text: (state) => {
      const step = state.last_checkpoint;
      const kept = step === undefined ? "There is no checkpoint yet: all of it is lost." : `What came after the checkpoint of step ${integer(step)} is lost.`;
      return `It stops at once, for good, without another checkpoint. ${kept}`;
    },
    yes: "Cancel the job",
  },
};

/** Which wishes make sense now. */
const SENSIBLE = {
  pause: (s) => ["training", "forming", "waiting"].includes(s.phase) && !s.held,
  resume: (s) => s.held || s.phase === "draining",
  drain: (s) => ["training", "forming", "waiting", "draining"].includes(s.phase),
  cancel: (s) => ["training", "forming", "waiting", "draining"].includes(s.phase),
};

export class Actions {
  #wish;
  #run;

  constructor(current) {
    this.current = current;
    this.dialog = byId("ask");
    for (const button of byId("actions").querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => this.ask(button.dataset.action));
    }
    byId("ask-no").addEventListener("click", () => this.dialog.close());
    byId("forget").addEventListener("click", () => {
      token = "";
      byId("forget").hidden = true;
    });
    this.dialog.addEventListener("close", () => {
      byId("token").value = "";
    });
    this.dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#act();
    });
  }

  show(state) {
    byId("actions").hidden = !state.actions;
    for (const button of byId("actions").querySelectorAll("[data-action]")) {
      button.disabled = !SENSIBLE[button.dataset.action](state);
    }
  }

  /** Asks before anything is done; `run`: a job that waits, to be cancelled. */
  ask(name, run) {
    this.#wish = name;
    this.#run = run;
    const wish = WISHES[name];
    say(byId("ask-title"), run ? `Take ${run} out of the queue?` : wish.title);
    say(byId("ask-text"), run ? "It has not begun." : wish.text(this.current()));
    say(byId("ask-yes"), run ? "Take it out" : wish.yes);
    say(byId("ask-error"), "");
    byId("ask-secret").hidden = token !== "";
    this.dialog.showModal();
    (token === "" ? byId("token") : byId("ask-no")).focus();
  }

  async #act() {
    const shown = token === "" ? byId("token").value.trim() : token;
    if (shown === "") {
      say(byId("ask-error"), "The token is missing.");
      byId("token").focus();
      return;
    }
    byId("ask-yes").disabled = true;
    const problem = await post(this.#wish, this.#run, shown);
    byId("ask-yes").disabled = false;
    if (problem?.token) {
      token = "";
      byId("ask-secret").hidden = false;
      byId("token").focus();
    } else {
      token = shown;
      byId("forget").hidden = false;
    }
    if (problem) say(byId("ask-error"), problem.text);
    else this.dialog.close();
  }
}

/** None where it went well. */
async function post(name, run, shown) {
  try {
    const answer = await fetch(`/api/actions/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${shown}` },
      body: JSON.stringify(run ? { run } : {}),
    });
    if (answer.ok) return undefined;
    const { error } = await answer.json();
    return { text: error, token: answer.status === 401 };
  } catch {
    return { text: "The coordinator does not answer.", token: false };
  }
}
