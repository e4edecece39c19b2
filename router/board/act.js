// What a person does from the board: each act asks first, and shows the router's own words where it is refused.

import { el, say } from "./dom.js";
import * as key from "./key.js";
import * as words from "./words.js";

const dialog = document.getElementById("ask");
const LONGEST_MS = 45000; // A wake may take that long.

/** The router's answer; throws an Error with its message. */
async function send(method, path, body) {
  const headers = { ...key.headers(), ...(body ? { "content-type": "application/json" } : {}) };
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(LONGEST_MS) });
  } catch (error) {
    throw away(error);
  }
  const told = await answer.json().catch((error) => { if (error.name === "TimeoutError") throw away(error); return {}; });
  if (!answer.ok) throw new Error(told.error?.message ?? `The router answered ${answer.status}.`);
  return told;
}

function away(error) {
  if (error.name !== "TimeoutError") return new Error("The router does not answer. Try again when the board is live.");
  return new Error(`The router has not answered for ${LONGEST_MS / 1000} s. It may be done all the same: look at the board before you try again.`);
}

/** Ask in the dialog. `run` does it and returns what is announced; its error is shown, and one may try again. */
function ask({ title, lines, field = null, confirm, danger = false, cancel = "Cancel", run, announce }) {
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const yes = el("button", { type: "submit", class: danger ? "danger" : "strong" }, confirm);
  const no = cancel ? el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, cancel) : "";
  const form = el(
    "form", { class: "ask", novalidate: true },
    el("h2", { id: "ask-title" }, title),
    ...lines.map((each) => el("p", {}, each)),
    ...(field ? [field] : []), problem, el("div", { class: "buttons" }, no, yes),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (yes.disabled) return;
    yes.disabled = true;
    problem.hidden = true;
    try {
      const said = await run();
      dialog.close();
      if (said) announce(said);
    } catch (error) {
      problem.hidden = false;
      say(problem, error.message);
      say(yes, "Try again");
    } finally {
      yes.disabled = false;
    }
  });
  show(form, !cancel);
  (field?.querySelector("input, select") ?? yes).focus();
}

/** In the dialog, instead of what it shows. Closing it gives the focus back to what had it before the first. */
function show(content, stays = false) {
  dialog.oncancel = stays ? (event) => event.preventDefault() : null;
  dialog.replaceChildren(content);
  if (!dialog.open) dialog.showModal();
  content.querySelector("button")?.focus();
}

/** Ask for a key. `refused`: the router's words about the one before, if there was one. */
export function askKey(message, hadOne, go) {
  const input = el("input", { type: "password", id: "ask-key", name: "key", autocomplete: "off", spellcheck: "false", required: true });
  ask({
    title: "Which key?",
    lines: [
      hadOne ? message : "This router wants a key. Whoever runs homeport makes one with homeport key new NAME.",
      "It is kept in this tab only, and gone when the tab is closed.",
    ],
    field: el("p", { class: "field" }, el("label", { for: "ask-key" }, "Key"), input),
    confirm: "Look",
    cancel: null,
    announce() {},
    async run() {
      if (!input.value.trim()) throw new Error("Write or paste the key first.");
      key.keep(input.value.trim());
      go();
    },
  });
}

const machinePath = (name, act) => `/api/machines/${encodeURIComponent(name)}/${act}`;
const sessionPath = (id, more = "") => `/api/sessions/${encodeURIComponent(id)}${more}`;

export function cordon(machine, announce) {
  ask({
    title: `Cordon ${machine.name}?`,
    lines: ["It takes no new sessions. Those that have their home there are served as before."],
    confirm: "Cordon", announce,
    async run() { await send("POST", machinePath(machine.name, "cordon")); return `${machine.name} is cordoned.`; },
  });
}

export function uncordon(machine, announce) {
  const drains = Boolean(machine.draining);
  ask({
    title: drains ? `Stop draining ${machine.name}?` : `Uncordon ${machine.name}?`,
    lines: [drains ? "The drain ends and it takes new sessions again. Who has moved stays moved." : "It takes new sessions again."],
    confirm: drains ? "Stop draining" : "Uncordon", announce,
    async run() { await send("POST", machinePath(machine.name, "uncordon")); return `${machine.name} takes new sessions again.`; },
  });
}

export function drain(machine, sessions, announce) {
  const input = el("input", { type: "number", id: "ask-minutes", min: "0", max: "10080", step: "1", value: "10", inputmode: "numeric" });
  ask({
    title: `Drain ${machine.name}?`,
    lines: [
      `It takes no new sessions, and its ${words.many(sessions, "session")} move within zone ${machine.zone}, with their contexts where these can go along.`,
      "Until the deadline only those move that lose nothing by it; at the deadline turns that run are ended.",
    ],
    field: el("p", { class: "field" }, el("label", { for: "ask-minutes" }, "Deadline, in minutes"), input),
    confirm: "Drain", danger: true, announce,
    async run() {
      const minutes = Number(input.value);
      if (input.value.trim() === "" || !Number.isFinite(minutes) || minutes < 0) throw new Error("Say in how many minutes it is to be empty: 0 or more.");
      await send("POST", machinePath(machine.name, "drain"), { within_s: minutes * 60 });
      return `${machine.name} is being drained.`;
    },
  });
}

export function wake(machine, announce) {
  ask({
    title: `Wake ${machine.name}?`,
    lines: ["It is woken as the config says: by a packet from a machine of its network, or by a command."],
    confirm: "Wake", announce,
    async run() {
      const told = await send("POST", machinePath(machine.name, "wake"));
      return told.awake ? `${machine.name} is awake already.` : `${machine.name} is being woken.`;
    },
  });
}

/** One session: what is known of it, and what may be done with it. */
export function session(each, machines, announce, now) {
  const facts = [
    ["Model", each.model],
    ["Home", each.replica || "none yet"],
    ["State", words.session(each, now)],
    ["Context", each.context_tokens ? words.many(each.context_tokens, "token") : "none"],
    ["Since", each.created_s === null ? "now" : words.clock(each.created_s, now)],
    ["Child of", each.parent],
    ["Named by", each.source],
  ].filter(([, value]) => value);
  show(el(
    "div", { class: "ask" },
    el("h2", { id: "ask-title" }, "Session ", el("code", {}, each.id)),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el(
      "div", { class: "buttons" },
      el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close"),
      each.machine ? el("button", { type: "button", onclick: () => move(each, machines, announce) }, "Move …") : "",
      el("button", { type: "button", onclick: () => end(each, announce) }, "End …"),
    ),
  ));
}

function end(session, announce) {
  ask({
    title: "End this session?",
    lines: [`${session.id} (${session.model}) loses its home and its context at ${session.replica || "the router"}; a turn that runs is ended.`, "Its name begins a new session then."],
    confirm: "End it", danger: true, announce,
    async run() { await send("DELETE", sessionPath(session.id)); return "The session was ended."; },
  });
}

function move(session, machines, announce) {
  const home = machines.find((each) => each.name === session.machine);
  const others = machines.filter((each) => each.name !== session.machine && (!home || each.zone === home.zone));
  const select = el("select", { id: "ask-machine" }, ...others.map((each) => el("option", { value: each.name }, `${each.name} (${each.state})`)));
  const lines = [`${session.id} (${session.model}) has its home at ${session.replica}.`];
  if (others.length) lines.push("Its context goes along where the engines agree; else it is evaluated anew at its next turn.");
  else lines.push(`There is no other machine in zone ${home?.zone ?? "of its own"}, and no session leaves its zone.`);
  ask({
    title: "Move this session?", lines,
    field: others.length ? el("p", { class: "field" }, el("label", { for: "ask-machine" }, "To"), select) : null,
    confirm: others.length ? "Move it" : "Understood", announce,
    async run() {
      if (!others.length) return "";
      const told = await send("POST", sessionPath(session.id, "/move"), { machine: select.value });
      const context = told.context === "carried" ? "its context went along" : told.context === "kept" ? "it was there already" : `its context is evaluated anew: ${told.why ?? "it could not go along"}`;
      return `The session lives at ${told.replicas.join(", ")} now; ${context}.`;
    },
  });
}
