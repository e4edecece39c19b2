// The line above the composer: what the desk waits for, since when, and what happens next.
//
// Its words are read out when they change; the seconds beside them are for eyes only.

import { say } from "./dom.js";
import { span, why } from "./words.js";

/** Before that nothing is said: most answers begin sooner. */
const QUIET_S = 1;

export class Waiting {
  #parts;
  #machine;
  #known = {};
  #since = 0;
  #ticking = 0;
  #later = null;

  /** `parts`: {line, words, clock, bar, now}, the line's elements; `now` is the button that asks at once. */
  constructor(parts, machine) {
    this.#parts = parts;
    this.#machine = machine;
    parts.now.addEventListener("click", () => this.askNow());
  }

  /** A question is out. */
  begin() {
    this.#known = { load: this.#known.load, ahead: this.#known.ahead };
    this.#since = performance.now();
    clearInterval(this.#ticking);
    this.#ticking = setInterval(() => this.#show(), 500);
    this.#show();
  }

  /** Something more is known of why: `sign`, `session`, `load`, `progress`, `ahead` (of this clock, the router's);
   * each stays until it is told anew. */
  know(more) {
    Object.assign(this.#known, more);
    if (this.#ticking) this.#show();
  }

  /** Resolves when it is time to ask again, or `askNow` was called. */
  pause({ againS, words }) {
    return new Promise((resolve) => {
      this.#later = { at: performance.now() + againS * 1000, words, resolve };
      this.#show();
    });
  }

  /** Whether it is only waited for the time to ask again. */
  get pauses() {
    return this.#later !== null;
  }

  askNow() {
    const later = this.#later;
    this.#later = null;
    later?.resolve();
  }

  end() {
    clearInterval(this.#ticking);
    this.#ticking = 0;
    this.askNow();
    this.#parts.line.hidden = true;
    say(this.#parts.words, "");
  }

  #show() {
    const { line, words, clock, bar, now } = this.#parts;
    const waited = (performance.now() - this.#since) / 1000;
    const later = this.#later;
    if (later !== null && performance.now() >= later.at) {
      this.askNow();
      return;
    }
    const { progress } = this.#known;
    line.hidden = later === null && waited < QUIET_S;
    line.classList.toggle("later", later !== null);
    now.hidden = later === null;
    bar.hidden = later !== null || !progress;
    if (progress) Object.assign(bar, { max: progress.total, value: progress.done });
    if (line.hidden) return;
    if (later !== null) {
      say(words, later.words);
      clock.textContent = `Asks again in ${span((later.at - performance.now()) / 1000)}.`;
      return;
    }
    const told = progress
      ? `${this.#machine} reads the question: ${progress.done} of ${progress.total} tokens`
      : why(this.#machine, this.#known, Date.now() / 1000 + (this.#known.ahead ?? 0));
    say(words, told);
    clock.textContent = `${span(waited)} so far`;
  }
}
