// The board: follows the fleet and keeps a card for each machine.

import { askKey } from "./act.js";
import { Card, sessionRow } from "./card.js";
import { el, place, say, set, show } from "./dom.js";
import * as key from "./key.js";
import { blank, byMachine, inOrder, lay, sums } from "./picture.js";
import { follow } from "./stream.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const picture = blank();
const cards = new Map();
const lobby = new Map();
let isLive = false, ahead = 0, since = null, againAt = 0, why = "";

const now = () => Date.now() / 1000 - ahead;

const board = {
  now,
  announce: (text) => { $("said").append(el("p", {}, text)); while ($("said").children.length > 3) $("said").firstChild.remove(); },
  machines: () => [...picture.machines.values()],
  models: () => picture.fleet.models ?? [],
  mayAct: () => picture.fleet.role === "admin",
  isLive: () => isLive,
};

// What is drawn.

function draw(touched) {
  const sessions = byMachine(picture.sessions.values());
  for (const [name, card] of cards) if (!picture.machines.has(name)) { card.root.remove(); cards.delete(name); }
  for (const machine of picture.machines.values()) {
    const is = cards.has(machine.name);
    if (is && touched && !touched.has(machine.name)) continue;
    const card = cards.get(machine.name) ?? new Card(machine.name, board);
    tellChange(card.machine, machine);
    cards.set(machine.name, card);
    card.update(machine, sessions.get(machine.name) ?? []);
  }
  place($("cards"), inOrder(picture.machines.values()).map((each) => cards.get(each.name).root));
  drawLobby(sessions.get("") ?? []);
  drawNotes();
  drawSum();
  show($("nobody"), picture.machines.size === 0);
  say($("nobody"), picture.fleet.role ? "No machine is known yet. It appears here as soon as its keeper has reported." : "");
}

function drawSum() {
  const told = sums(picture);
  const parts = [words.many(told.machines, "machine"), words.many(told.sessions, "session")];
  if (told.running) parts.push(`${told.running} answering`);
  if (told.waiting) parts.push(`${told.waiting} waiting`);
  if (told.perSecond) parts.push(`${words.speed(told.perSecond)} tokens/s`);
  say($("sum"), parts.join(" · "));
}

function drawLobby(waiting) {
  for (const name of lobby.keys()) if (!waiting.some((each) => `${each.id} ${each.model}` === name)) lobby.delete(name);
  place($("lobby-sessions"), waiting.map((each) => {
    const name = `${each.id} ${each.model}`;
    const row = lobby.get(name) ?? sessionRow(each, board);
    lobby.set(name, row);
    row.update(each, now(), null, 2, board.mayAct());
    return row.root;
  }));
  show($("lobby"), waiting.length > 0);
}

function drawNotes() {
  const said = [];
  if (picture.fleet.controller?.reachable === false) said.push("The controller does not answer: this is what was known last, and nobody is moved until it is back.");
  for (const [model, reasons] of Object.entries(picture.fleet.problems ?? {})) {
    for (const [where, reason] of Object.entries(reasons)) said.push(`${model} does not run${where ? ` on ${where}` : ""}: ${reason}`);
  }
  place($("notes"), said.map((line, number) => { const p = $("notes").children[number] ?? el("p"); say(p, line); return p; }));
  show($("notes"), said.length > 0);
}

/** Tell a person who does not see the cards of what matters, and of nothing else. */
function tellChange(before, after) {
  if (!before || before.state === after.state) return;
  const back = words.AWAY.has(before.state) && !words.AWAY.has(after.state);
  board.announce(back ? `${after.name} is back.` : `${after.name}: ${words.standing(after, now())}. ${words.fate(after, board.models()).join(" ")}`);
}

// Whether it is live.

function drawLive() {
  set($("live"), "data-live", isLive ? "yes" : "no");
  set(document.documentElement, "data-live", isLive ? "yes" : "no");
  if (isLive) return say($("live-text"), "Live");
  if (since === null) return say($("live-text"), why || "Connecting …");
  const wait = Math.max(0, Math.ceil((againAt - Date.now()) / 1000));
  say($("live-text"), `Not live since ${words.clock(since, now())}: ${why} ${wait ? `Next try in ${wait} s.` : "Trying …"}`);
}

function live() {
  if (!isLive && since !== null) board.announce("The board is live again.");
  isLive = true;
  since = null;
  drawLive();
}

function lost(reason, againMs) {
  if (isLive) board.announce(`The board is not live: ${reason}`);
  if (isLive || since === null) since = now();
  isLive = false;
  why = reason;
  againAt = Date.now() + againMs;
  drawLive();
  for (const card of cards.values()) card.tick(now());
}

function refused(status, message) {
  isLive = false;
  waitsForKey = true;
  why = status === 401 ? "It needs a key." : message;
  since = null;
  drawLive();
  const had = Boolean(key.read());
  key.forget();
  show($("leave"), false);
  Object.assign(picture, blank());
  draw(null);
  askKey(message, had, again);
}

// It follows while somebody looks: a browser opens six connections to a router, whatever the number of its tabs.

let stream = null, waitsForKey = false;

function begin() {
  stream ??= follow("/api/fleet?watch", key.headers, {
    event(name, told) {
      ahead = Date.now() / 1000 - told.now_s;
      draw(lay(picture, name, told));
      show($("leave"), Boolean(key.read()));
    },
    live, lost, refused,
  });
}

/** Nobody looks: nothing is wrong, and what is shown is old once somebody does. */
function rest() {
  if (waitsForKey) return;
  stream?.stop();
  stream = null;
  isLive = false;
  since = null;
  why = "";
  drawLive();
}

/** Asks at once, with the key that there is now. */
function again() {
  waitsForKey = false;
  if (stream) stream.now();
  else if (!document.hidden) begin();
}

setInterval(() => {
  const at = now();
  for (const card of cards.values()) { card.tick(at); if (isLive) card.beatOnce(); }
  for (const row of lobby.values()) row.tick(at);
  if (!isLive) drawLive();
}, 1000);

addEventListener("online", () => { if (!isLive && since !== null) again(); });
document.addEventListener("visibilitychange", () => (document.hidden ? rest() : begin()));
if (!document.hidden) begin();

$("leave").addEventListener("click", () => { key.forget(); again(); });

// Light and dark.

$("theme").value = document.documentElement.dataset.theme ?? "";
$("theme").addEventListener("change", ({ target }) => {
  if (target.value) document.documentElement.dataset.theme = target.value;
  else delete document.documentElement.dataset.theme;
  try { localStorage.setItem("homeport.theme", target.value); } catch { /* then it holds until a reload */ }
});
