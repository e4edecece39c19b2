// The conversation on the screen. Knows nothing of how an answer comes about.
//
// Turns do not change once they are said, and keep their elements, so that a screen reader hears each once: an answer
// when it is whole.

import { button, copy, make } from "./dom.js";
import { Written } from "./markdown.js";
import { bytes, meta } from "./words.js";

const NEAR = 80;
const FRAME_MS = 16;
const SAID_MS = 1500;
/** What is said of an answer that is not whole, where no error says more. */
const NOTES = {
  length: "The answer was cut here: the model's context or its limit is full.",
  stopped: "Stopped.",
  broke: "The answer broke off here.",
};

export class Log {
  #log;
  #act;
  #stays = true;
  #shown = new WeakMap();

  /** `act`: called with "retry" or "edit". */
  constructor(log, act) {
    this.#log = log;
    this.#act = act;
    log.addEventListener("scroll", () => {
      this.#stays = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
    });
    log.addEventListener("click", (event) => {
      const asked = event.target.closest("[data-act=copy-code]");
      if (asked) void copied(asked, asked.closest("figure").querySelector("pre").textContent);
    });
  }

  /** The whole conversation; `empty`: what stands there as long as nothing was said. */
  show(conversation, empty = []) {
    const { turns, model } = conversation;
    const asked = turns.findLastIndex((turn) => turn.role === "user");
    const elements = turns.map((turn, at) => {
      const element = this.#elementOf(turn, model);
      for (const each of element.querySelectorAll("[data-last]")) {
        const last = at === (each.dataset.last === "question" ? asked : turns.length - 1);
        each.hidden = !last;
      }
      return element;
    });
    this.#put(elements.length > 0 ? elements : empty);
    this.#stays = true;
    this.follow();
  }

  /** Something else than a conversation. */
  tell(...elements) {
    this.#put(elements);
  }

  /** Stay at the end, unless its person has scrolled away from there. */
  follow() {
    if (this.#stays) this.#log.scrollTop = this.#log.scrollHeight;
  }

  /** An answer that begins; `end` of it takes it away. */
  begin(model) {
    for (const each of this.#log.querySelectorAll("[data-last]")) each.hidden = true;
    const answer = new Growing(model, () => this.follow());
    this.#log.append(answer.element);
    this.#stays = true;
    this.follow();
    return answer;
  }

  #put(elements) {
    elements.forEach((element, at) => {
      const there = this.#log.children[at];
      if (there !== element) this.#log.insertBefore(element, there ?? null);
    });
    while (this.#log.children.length > elements.length) this.#log.lastElementChild.remove();
  }

  #elementOf(turn, model) {
    const found = this.#shown.get(turn) ?? (turn.role === "user" ? this.#asked(turn) : this.#answered(turn, model));
    this.#shown.set(turn, found);
    return found;
  }

  #asked(turn) {
    const files = turn.files.map((file) =>
      make(
        "details",
        { class: "file" },
        make("summary", {}, make("span", { text: file.name }), make("small", { text: bytes(file.bytes) })),
        make("pre", { text: file.text, tabindex: 0, role: "region", "aria-label": file.name }),
      ),
    );
    const words = turn.text === "" ? null : make("p", { class: "words", text: turn.text });
    return make(
      "article",
      { class: "asked", "aria-label": "You" },
      make("div", { class: "bubble" }, words, ...files),
      make("p", { class: "acts" }, this.#button("Ask again", "retry", "turn"), this.#button("Edit", "edit", "question")),
    );
  }

  #answered(turn, model) {
    const words = make("div", { class: "words" });
    new Written(words).show(turn.text);
    const note = turn.error?.message ?? NOTES[turn.ended] ?? "";
    const told = meta(turn.about, turn.waitedMs);
    const copies = (event) => void copied(event.currentTarget, turn.text);
    return make(
      "article",
      { class: "answered", "aria-label": model },
      turn.reasoning ? reasoning(turn.reasoning) : null,
      words,
      note ? make("p", { class: turn.error ? "trouble" : "note", text: note }) : null,
      make(
        "p",
        { class: "acts" },
        turn.text ? button("Copy", copies, { class: "quiet" }) : null,
        this.#button("Ask again", "retry", "turn"),
        told ? make("span", { class: "meta", text: told }) : null,
      ),
    );
  }

  /** One that is there on the last turn, or on the last question, only. */
  #button(text, act, last) {
    return button(text, () => this.#act(act), { class: "quiet", "data-last": last });
  }
}

/** An answer while it comes. Shows what came once a frame, and less often where it is long: that takes a fifth of the time
 * at most. */
class Growing {
  text = "";
  reasoning = "";
  #due = 0;
  #next = 0;
  #written;
  #thought = null;
  #shown;

  constructor(model, shown) {
    this.#shown = shown;
    const words = make("div", { class: "words" });
    this.#written = new Written(words);
    this.element = make("article", { class: "answered growing", "aria-label": model, "aria-busy": "true" }, words);
  }

  /** `kind`: text or reasoning. */
  add(kind, text) {
    this[kind] += text;
    this.#due ||= setTimeout(() => this.#show(), Math.max(FRAME_MS, this.#next - performance.now()));
  }

  end() {
    clearTimeout(this.#due);
    this.element.remove();
  }

  #show() {
    const began = performance.now();
    this.#due = 0;
    if (this.reasoning && this.#thought === null) {
      this.#thought = reasoning("");
      this.element.prepend(this.#thought);
    }
    if (this.#thought) this.#thought.lastElementChild.textContent = this.reasoning;
    this.#written.show(this.text);
    this.element.classList.toggle("begun", this.text !== "" || this.reasoning !== "");
    this.#shown();
    this.#next = began + 5 * (performance.now() - began);
  }
}

function reasoning(text) {
  return make("details", { class: "reasoning" }, make("summary", { text: "Reasoning" }), make("p", { text }));
}

async function copied(asked, text) {
  const before = asked.textContent;
  asked.textContent = (await copy(text)) ? "Copied" : "Not copied: the browser refuses";
  setTimeout(() => {
    asked.textContent = before;
  }, SAID_MS);
}
