// The desk of one machine: its parts put together. What it says and when it asks again is decided in desk/words.js.

import { Composer } from "./desk/composer.js";
import * as conversations from "./desk/conversation.js";
import { askKey, openList, openSettings, theme } from "./desk/dialogs.js";
import { button, make, say } from "./desk/dom.js";
import { Log } from "./desk/log.js";
import * as machines from "./desk/machine.js";
import { Forgetful, Store } from "./desk/store.js";
import { run } from "./desk/turn.js";
import { Waiting } from "./desk/waiting.js";
import { load, loadWords, standing } from "./desk/words.js";

const at = (id) => document.getElementById(id);
const NAME = decoded(location.pathname.split("/")[2] ?? "");
const SAVE_MS = 1000;

/** What cannot be decoded is no machine's name: it is left as it is. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Randomness also where the page came over plain HTTP. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

class Desk {
  #store;
  #conversation;
  #machine = null;
  #isUnknown = false;
  #models = [];
  #contexts = {};
  #stop = null;
  #running = null;
  #trouble = "";
  #unkept = "";
  #deleted = new Set();
  #lastOne = null;
  #log = new Log(at("log"), (act) => (act === "edit" ? this.#composer.edit() : this.#retry()));
  #composer = new Composer({
    send: (question) => this.#send(question),
    stop: () => this.#stop?.abort(),
    last: () => this.#conversation.turns[conversations.lastAsked(this.#conversation)] ?? null,
  });
  #waiting = new Waiting(
    { line: at("waiting"), words: at("why"), clock: at("clock"), bar: at("progress"), now: at("ask-now") },
    NAME,
  );

  async start() {
    theme();
    at("machine").textContent = NAME;
    at("title").textContent = `The desk of ${NAME}`;
    document.title = `${NAME} · desk`;
    try {
      this.#store = await Store.open();
    } catch {
      this.#store = new Forgetful();
      this.#unkept = "This browser keeps nothing here: conversations are gone with this tab.";
    }
    at("to-new").addEventListener("click", () => void this.#open(this.#new()));
    at("to-list").addEventListener("click", () => void this.#list());
    at("to-settings").addEventListener("click", () => this.#settings());
    at("model").addEventListener("change", (event) => this.#change({ model: event.target.value }));
    document.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("hashchange", () => void this.#openNamed());
    document.addEventListener("visibilitychange", () => void this.#renew());
    this.#conversation = this.#new();
    await this.#openNamed();
    const again = machines.watch({
      told: (picture, ahead) => this.#told(picture, ahead),
      away: (why) => this.#away(why),
      refused: (message) => void askKey(message).then(() => again()),
    });
  }

  #new() {
    return conversations.begun(newId(), NAME, this.#conversation?.model ?? this.#models[0] ?? "", Date.now());
  }

  /** The conversation that the address names, else a new one. */
  async #openNamed() {
    const id = location.hash.slice(1);
    if (id !== "" && id === this.#conversation.id) return;
    try {
      const found = id === "" ? undefined : await this.#store.get(id);
      [this.#lastOne = null] = await this.#store.all(NAME);
      await this.#open(found?.machine === NAME ? found : this.#new());
    } catch (error) {
      await this.#unshown(error);
    }
  }

  /** What is kept is damaged: the desk begins anew, and what is kept stays. */
  async #unshown(error) {
    this.#lastOne = null;
    await this.#open(this.#new());
    const told = `What is kept here cannot be shown: ${error.message}. Go on with a new conversation; the list deletes old ones.`;
    this.#log.tell(make("div", { class: "empty" }, make("p", { text: told })));
  }

  /** Takes what another tab has made of the conversation meanwhile. */
  async #renew() {
    if (document.hidden || this.#stop !== null) return;
    const found = await this.#store.get(this.#conversation.id);
    if (found === undefined || found.updated <= this.#conversation.updated || this.#stop !== null) return;
    this.#conversation = found;
    this.#show();
  }

  async #open(conversation) {
    await this.#ended();
    this.#conversation = conversation;
    history.replaceState(null, "", conversation.turns.length > 0 ? `#${conversation.id}` : location.pathname);
    this.#composer.clear();
    this.#show();
    this.#composer.focus();
  }

  /** No turn runs any more. */
  async #ended() {
    this.#stop?.abort();
    await this.#running;
  }

  #show() {
    this.#showModels();
    this.#log.show(this.#conversation, this.#empty());
  }

  #empty() {
    const goOn = this.#lastOne?.turns.length ? this.#lastOne : null;
    return [
      make(
        "div",
        { class: "empty" },
        make("p", { class: "large", text: NAME }),
        make("p", { text: `What you say here is answered on ${NAME}, and waits there for you.` }),
        goOn ? button(`Go on with “${goOn.title}”`, () => void this.#open(goOn), { class: "quiet" }) : null,
      ),
    ];
  }

  #showModels() {
    const chosen = this.#conversation.model;
    const names = [...new Set([...this.#models, ...(chosen ? [chosen] : [])])];
    const select = at("model");
    if (select.options.length !== names.length || names.some((name, each) => select.options[each].value !== name)) {
      select.replaceChildren(...names.map((name) => make("option", { value: name, text: name })));
    }
    select.value = chosen;
    select.hidden = names.length < 2;
    this.#composer.context = this.#contexts[chosen] ?? null;
  }

  #change(what) {
    this.#conversation = { ...this.#conversation, ...what };
    this.#showModels();
    if (this.#conversation.turns.length > 0) this.#save();
  }

  #save(conversation = this.#conversation) {
    if (this.#deleted.has(conversation.id)) return;
    this.#store.put(conversation).catch((error) => {
      this.#unkept = `This conversation cannot be kept in this browser: ${error.message}`;
      this.#notice();
    });
  }

  /** Takes a question, if one can be asked now. */
  #send({ text, files, edits }) {
    if (this.#stop !== null) return false;
    const said = edits ? conversations.edited : conversations.asked;
    this.#conversation = said(this.#conversation, text, files, Date.now());
    history.replaceState(null, "", `#${this.#conversation.id}`);
    this.#running = this.#ask();
    return true;
  }

  #retry() {
    if (this.#stop !== null) return;
    this.#composer.clear();
    this.#conversation = conversations.reopened(this.#conversation, Date.now());
    this.#running = this.#ask();
  }

  /** Has the last question answered. */
  async #ask() {
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    this.#composer.busy = true;
    this.#save();
    this.#log.show(this.#conversation);
    const answer = this.#log.begin(this.#conversation.model);
    this.#waiting.begin();
    const saving = setInterval(() => this.#saveSoFar(answer), SAVE_MS);
    signal.addEventListener("abort", () => this.#waiting.askNow());
    let outcome;
    try {
      outcome = await run(this.#conversation, {
        hear: (event) => this.#hear(event, answer),
        signal,
        pause: (plan) => this.#waiting.pause(plan),
      });
    } finally {
      clearInterval(saving);
      this.#waiting.end();
      answer.end();
      this.#stop = null;
      this.#composer.busy = false;
    }
    this.#take(outcome, answer);
    if (outcome.error?.status === 401) {
      await askKey(outcome.error.message);
      this.#retry();
    }
  }

  #take(outcome, answer) {
    const { text, reasoning } = answer;
    if (text || reasoning || outcome.error || outcome.ended === null) {
      this.#conversation = conversations.answered(this.#conversation, { text, reasoning, ...outcome }, Date.now());
    }
    this.#save();
    this.#log.show(this.#conversation);
    this.#composer.focus();
  }

  #saveSoFar({ text, reasoning }) {
    if (!text && !reasoning) return;
    const soFar = { text, reasoning, ended: "broke", about: null, waitedMs: 0, error: null };
    this.#save(conversations.answered(this.#conversation, soFar, Date.now()));
  }

  #hear(event, answer) {
    switch (event.kind) {
      case "head":
        if (event.id && event.id !== this.#conversation.public) this.#change({ public: event.id });
        break;
      case "sign":
        this.#waiting.know({ sign: event.words });
        break;
      case "progress":
          if (event.done < event.total) this.#waiting.know({ progress: event });
        break;
      case "text":
      case "reasoning":
          this.#waiting.end();
        answer.add(event.kind, event.text);
        break;
      default:
        this.#waiting.know({ sign: "", progress: null });
    }
  }

  #told(picture, ahead) {
    const before = this.#machine?.state;
    const machine = picture.machines.get(NAME) ?? null;
    this.#machine = machine;
    if (machine === null) {
      if (!this.#isUnknown) void this.#unknown([...picture.machines.keys()]);
      return;
    }
    const of = load(machine);
    const came = this.#models.length === 0;
    this.#models = of.models;
    this.#contexts = Object.fromEntries(picture.fleet.models.map((model) => [model.name, model.context]));
    this.#trouble = "";
    say(at("zone"), machine.zone);
    say(at("load"), loadWords(of));
    at("edge").replaceChildren(...of.places.map((state) => make("i", { class: state })));
    at("edge").classList.toggle("line", of.waiting > 0);
    const session = picture.sessions.get(`${this.#conversation.public} ${this.#conversation.model}`) ?? null;
    this.#waiting.know({ load: of, session, ahead });
    this.#notice();
    if (came && this.#conversation.model === "" && of.models.length > 0) this.#change({ model: of.models[0] });
    else this.#showModels();
    if (this.#isUnknown) this.#known();
    if (this.#waiting.pauses && before !== machine.state && machine.state === "ready") this.#waiting.askNow();
  }

  #notice() {
    const told = this.#machine ? standing(this.#machine, Date.now() / 1000) : "";
    say(at("notice"), [this.#unkept, this.#trouble, told].filter(Boolean).join(" "));
  }

  /** No machine of that name: which ones there are. */
  async #unknown(names) {
    this.#isUnknown = true;
    this.#composer.off = true;
    for (const id of ["zone", "load"]) say(at(id), "");
    at("edge").replaceChildren();
    const why = await machines.whyNone(NAME);
    const links = names.map((name) =>
      make("li", {}, make("a", { href: `/desk/${encodeURIComponent(name)}`, text: name })),
    );
    this.#log.tell(make("div", { class: "empty" }, make("p", { text: why }), make("ul", {}, ...links)));
  }

  #known() {
    this.#isUnknown = false;
    this.#composer.off = false;
    this.#show();
  }

  #away(why) {
    this.#trouble = `${why} The desk goes on asking it.`;
    this.#notice();
  }

  async #list() {
    await openList(this.#store, NAME, this.#conversation.id, {
      open: (conversation) => void this.#open(conversation),
      removed: (id) => {
        this.#deleted.add(id);
        this.#lastOne = null;
        if (id === this.#conversation.id) void this.#open(this.#new());
      },
    });
  }

  #settings() {
    openSettings(this.#conversation, (system) => this.#change({ system }));
  }

  #key(event) {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (this.#stop === null) this.#composer.leave();
    else this.#stop.abort();
  }
}

void new Desk().start();
