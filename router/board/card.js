// A machine as a card that looks like one: what it has, who holds it, and who lives there.

import * as act from "./act.js";
import * as cells from "./cells.js";
import { el, onChange, place, say, set, show } from "./dom.js";
import { speedOf } from "./picture.js";
import * as words from "./words.js";

const FEW = 8; // Sessions that are shown before one asks for all.
const SECONDS = 60; // Of the line of speeds.
const SVG = "http://www.w3.org/2000/svg";

function cell({ held, hue, label, title, share }) {
  const made = el("span", { class: "cell", "data-held": held, "data-hue": hue, title }, label);
  if (share !== undefined) made.style.setProperty("--share", share);
  return made;
}

export class Card {
  constructor(name, board) {
    this.board = board; // {announce, machines(), models(), mayAct(), now()}
    this.speeds = [];
    this.rows = new Map();
    this.replicas = new Map();
    this.whole = false;
    const id = `machine-${name}`;
    this.beat = el("span", { class: "beat", "aria-hidden": "true" });
    this.zone = el("span", { class: "zone" });
    this.standing = el("p", { class: "standing" });
    this.heard = el("p", { class: "heard" });
    this.cores = el("div", { class: "cores", role: "img" });
    this.gpus = el("div", { class: "gpus" });
    this.memory = el("div", { class: "memory", role: "img" });
    this.facts = el("p", { class: "facts" });
    this.number = el("span", { class: "number" });
    this.line = document.createElementNS(SVG, "polyline");
    const spark = document.createElementNS(SVG, "svg");
    for (const [key, value] of [["viewBox", `0 0 ${SECONDS} 20`], ["preserveAspectRatio", "none"], ["class", "spark"], ["aria-hidden", "true"]]) spark.setAttribute(key, value);
    spark.append(this.line);
    this.speed = el("div", { class: "speed" }, el("p", {}, this.number, el("span", { class: "unit" }, " tokens/s")), spark);
    this.fate = el("div", { class: "fate", hidden: true });
    this.list = el("ul", { class: "replicas" });
    this.count = el("span", { class: "count" });
    this.sessions = el("ul", { class: "sessions" });
    this.more = el("button", { type: "button", class: "quiet more", hidden: true, onclick: () => { this.whole = !this.whole; this.redraw(); } });
    this.none = el("p", { class: "none" }, "No session lives here.");
    const button = (text, does) => el("button", { type: "button", class: "quiet", hidden: true, "aria-label": `${text} ${name}`, onclick: does }, text);
    const { announce } = board;
    this.acts = {
      wake: button("Wake", () => act.wake(this.machine, announce)),
      cordon: button("Cordon", () => act.cordon(this.machine, announce)),
      uncordon: button("Uncordon", () => act.uncordon(this.machine, announce)),
      drain: button("Drain", () => act.drain(this.machine, this.mine.length, announce)),
    };
    this.buttons = el("div", { class: "acts", role: "group", "aria-label": `Actions for ${name}`, hidden: true }, ...Object.values(this.acts));
    this.root = el(
      "article", { class: "card machine", "aria-labelledby": id, "data-machine": name },
      el("header", {}, this.beat, el("h3", { id }, el("a", { href: `/desk/${encodeURIComponent(name)}`, title: `the desk of ${name}` }, name)), this.zone, this.heard),
      this.standing, this.fate,
      el("div", { class: "chassis" }, this.cores, this.gpus, this.memory, this.facts),
      this.speed,
      this.list,
      el("h4", {}, "Sessions ", this.count), this.sessions, this.more, this.none, this.buttons,
    );
    this.drawCores = onChange((told) => {
      this.cores.replaceChildren(...told.map(cell));
      set(this.cores, "data-many", told.length > 32 ? "yes" : null);
      set(this.cores, "aria-label", told.length ? `Cores. ${told.map((each) => each.title).join("; ")}.` : "Its cores are not known.");
    });
    this.drawGpus = onChange((told) => {
      this.gpus.replaceChildren(...told.map((gpu) => el(
        "figure", { class: "gpu", "data-ill": gpu.ill ? "yes" : null, title: gpu.uuid },
        el("figcaption", {}, gpu.name || "GPU", gpu.memory ? ` · ${words.bytes(gpu.memory)}` : "", gpu.ill ? ` · ${gpu.ill}` : ""),
        el("div", { class: "parts", role: "img", "aria-label": gpu.parts.map((each) => each.title).join("; ") }, ...gpu.parts.map(cell)),
      )));
    });
    this.drawMemory = onChange((told) => {
      this.memory.replaceChildren(...told.map((each) => cell({ ...each, label: "", title: `${words.bytes(each.bytes)}: ${each.words}` })));
      set(this.memory, "aria-label", `Memory. ${told.map((each) => `${words.bytes(each.bytes)}: ${each.words}`).join("; ") || "Nothing is promised"}.`);
      show(this.memory, told.length > 0);
    });
  }

  update(machine, mine) {
    this.machine = machine;
    this.mine = mine;
    this.redraw();
  }

  redraw() {
    const { machine, mine } = this, now = this.board.now();
    const holds = cells.holders(machine, mine);
    set(this.root, "data-state", machine.state);
    say(this.zone, machine.zone);
    this.drawCores(cells.cores(machine, holds));
    this.drawGpus(cells.gpus(machine, holds));
    this.drawMemory(cells.memory(machine, holds));
    say(this.facts, facts(machine));
    say(this.number, words.speed(speedOf(machine)));
    show(this.speed, !words.AWAY.has(machine.state));
    const perSecond = machine.replicas.filter((each) => each.tokens_per_s);
    set(this.number.parentNode, "title", perSecond.map((each) => `${each.name}: ${words.speed(each.tokens_per_s)} tokens/s`).join("\n") || null);
    this.drawFate();
    place(this.list, machine.replicas.map((each) => this.replica(each, holds.get(each.name), now)));
    this.drawSessions(now, holds);
    this.drawActs();
    this.tick(now);
  }

  drawFate() {
    const lines = [words.drained(this.machine), ...words.fate(this.machine, this.board.models())];
    if (this.machine.unlisted) lines.push("It is off Ray's list: it serves its sessions and takes no new ones.");
    for (const { name, foreign = [] } of this.machine.replicas) {
      if (foreign.length) lines.push(`On the cores of ${name}: ${foreign.map((each) => `${each.program} ${Math.round(each.share * 100)} % of a core`).join(", ")}.`);
    }
    const said = lines.filter(Boolean);
    place(this.fate, said.map((line, number) => { const p = this.fate.children[number] ?? el("p"); say(p, line); return p; }));
    show(this.fate, said.length > 0);
  }

  replica(each, holder, now) {
    let row = this.replicas.get(each.name);
    if (!row) {
      const parts = { mark: el("span", { class: "cell" }), model: el("span", { class: "model" }), state: el("span", { class: "state" }), line: el("span", { class: "line" }), speed: el("span", { class: "made" }) };
      row = { root: el("li", { "data-replica": each.name }, ...Object.values(parts)), parts };
      this.replicas.set(each.name, row);
    }
    const { parts } = row;
    say(parts.mark, String(holder.slot));
    set(parts.mark, "data-hue", holder.hue);
    set(parts.mark, "data-held", holder.held);
    set(parts.mark, "title", holder.words);
    say(parts.model, each.model);
    const plain = each.reach === "up" && each.state === "ready";
    say(parts.state, plain ? (holder.held === "busy" ? "answering" : holder.held === "warm" ? "warm" : "ready") : words.replica(each, now));
    set(parts.state, "data-state", each.reach === "out" ? "out" : each.state);
    say(parts.line, each.waiting ? `${each.waiting} in line` : "");
    say(parts.speed, each.tokens_per_s ? `${words.speed(each.tokens_per_s)}/s` : "");
    return row.root;
  }

  drawSessions(now, holds) {
    const shown = this.whole ? this.mine : this.mine.slice(0, FEW);
    place(this.sessions, shown.map((each) => this.session(each, now, holds)));
    const there = new Set(this.mine.map((each) => `${each.id} ${each.model}`));
    for (const name of this.rows.keys()) if (!there.has(name)) this.rows.delete(name);
    say(this.count, this.mine.length ? String(this.mine.length) : "");
    show(this.none, this.mine.length === 0);
    show(this.more, this.mine.length > FEW);
    say(this.more, this.whole ? "Show fewer" : `Show all ${this.mine.length}`);
    set(this.more, "aria-expanded", this.whole);
  }

  session(each, now, holds) {
    const name = `${each.id} ${each.model}`;
    const row = this.rows.get(name) ?? sessionRow(each, this.board);
    this.rows.set(name, row);
    const { replicas } = this.machine;
    const holder = replicas.length > 1 ? holds.get(each.replica) : null;
    row.update(each, now, holder, new Set(replicas.map((other) => other.model)).size, this.board.mayAct());
    return row.root;
  }

  drawActs() {
    const { machine } = this, may = this.board.mayAct();
    const closed = machine.cordoned || Boolean(machine.draining);
    show(this.acts.wake, machine.wakes && (machine.state === "asleep" || machine.state === "lost"));
    show(this.acts.cordon, !closed);
    show(this.acts.uncordon, closed || machine.unlisted);
    show(this.acts.drain, !machine.draining);
    const text = machine.draining ? "Stop draining" : "Uncordon";
    say(this.acts.uncordon, text);
    set(this.acts.uncordon, "aria-label", `${text} ${machine.name}`);
    show(this.buttons, may);
  }

  /** What only time changes. */
  tick(now) {
    const { machine } = this;
    const standing = words.standing(machine, now);
    say(this.standing, standing);
    show(this.standing, standing !== "ready");
    const away = words.AWAY.has(machine.state);
    const silent = machine.replicas.filter((each) => each.heard_s && each.reach !== "up");
    const latest = away ? machine.heard_s : silent.length ? Math.min(...silent.map((each) => each.heard_s)) : now;
    const beat = away ? "out" : silent.some((each) => each.reach === "out") ? "out" : silent.length ? "late" : "up";
    set(this.beat, "data-beat", this.board.isLive() ? beat : "unknown");
    say(this.heard, !this.board.isLive() ? "" : beat === "up" ? `${standing === "ready" ? "ready, " : ""}heard now` : latest ? `heard ${words.age(now - latest)} ago` : "");
    for (const each of machine.replicas) {
      const row = this.replicas.get(each.name);
      if (row && each.reach !== "up" && each.heard_s) say(row.parts.state, words.replica(each, now));
    }
    for (const row of this.rows.values()) row.tick(now);
  }

  /** A second has passed: the line of speeds moves on. */
  beatOnce() {
    const made = speedOf(this.machine);
    if (made === null && !this.speeds.length) return;
    this.speeds.push(made ?? 0);
    if (this.speeds.length > SECONDS) this.speeds.shift();
    const top = Math.max(10, ...this.speeds);
    const from = SECONDS - this.speeds.length;
    this.line.setAttribute("points", this.speeds.map((each, number) => `${from + number},${(19 - (each / top) * 18).toFixed(1)}`).join(" "));
  }
}

export function sessionRow(first, board) {
  let each = first;
  const mark = el("span", { class: "mark", "aria-hidden": "true" });
  const name = el("span", { class: "id", title: each.id }, words.short(each.id));
  const model = el("span", { class: "model" });
  const state = el("span", { class: "state" });
  const tokens = el("span", { class: "tokens" });
  const slot = el("span", { class: "cell slot", hidden: true });
  const does = el("button", { type: "button", class: "quiet does", hidden: true, "aria-label": `Act on session ${words.short(each.id)}`, onclick: () => act.session(each, board.machines(), board.announce, board.now()) }, "⋯");
  const root = el("li", { "data-session": each.id }, mark, name, slot, model, state, tokens, does);
  return {
    root,
    update(told, now, holder, models, may) {
      each = told;
      set(root, "data-state", told.state);
      show(slot, Boolean(holder));
      if (holder) {
        say(slot, String(holder.slot));
        set(slot, "data-hue", holder.hue);
        set(slot, "data-held", told.state === "running" ? "busy" : told.state === "resident" ? "warm" : "idle");
        set(slot, "title", `at ${told.replica}`);
      }
      say(model, models > 1 ? told.model : "");
      say(tokens, told.context_tokens ? words.many(told.context_tokens, "token") : "");
      set(name, "title", [told.id, told.parent ? `child of ${told.parent}` : "", told.source ? `named by ${told.source}` : "", told.created_s === null ? "" : `since ${words.clock(told.created_s, now)}`].filter(Boolean).join("\n"));
      show(does, may);
      this.tick(now);
    },
    tick(now) { say(state, words.session(each, now)); },
  };
}

function facts(machine) {
  const hardware = machine.hardware;
  if (!hardware?.cores?.length) return "Its hardware is not known yet.";
  const said = [words.many(hardware.cores.length, "core"), words.bytes(hardware.memory_bytes)];
  if (hardware.gpus.length) said.push(words.many(hardware.gpus.length, "GPU"));
  if (hardware.simulated) said.push("simulated");
  return said.join(" · ");
}
