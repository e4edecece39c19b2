// One turn: asks, reads the stream, and asks again for as long as that makes sense. Shows nothing.

import { ask, Refused } from "./api.js";
import { SseReader } from "../sse.js";
import { messages } from "./conversation.js";
import { planned } from "./words.js";

/** Runs until the answer has ended, `signal` says stop, or its person must decide.
 *
 * `hear` is told, in order: `{kind: "asked"}` at each try; `{kind: "head", id, waitedMs}`; `{kind: "sign", words}`, why
 * nothing is said yet; `{kind: "progress", done, total}` of the prompt, in tokens; `{kind: "text" | "reasoning", text}`;
 * `{kind: "later", code}`. `pause({againS, words})` resolves when it is time to ask again.
 *
 * Resolves to `{ended, about, waitedMs, error}`, `ended` as in conversation.js; rejects with nothing but faults.
 */
export async function run(conversation, { hear, signal, pause }) {
  for (let tries = 0; ; tries += 1) {
    const attempt = new Attempt(conversation, hear, signal);
    let plan;
    hear({ kind: "asked" });
    try {
      return await attempt.run();
    } catch (error) {
      if (signal.aborted) return attempt.outcome("stopped", null);
      if (!(error instanceof Refused)) throw error;
      plan = planned(error, attempt.said, tries);
      const told = { status: error.status, code: error.code, message: plan.words };
      if (plan.againS === null) return attempt.outcome(attempt.said ? "broke" : "failed", told);
      hear({ kind: "later", code: error.code });
    }
    await pause(plan);
    if (signal.aborted) return attempt.outcome("stopped", null);
  }
}

class Attempt {
  said = false;
  #conversation;
  #hear;
  #signal;
  #about = null;
  #waitedMs = 0;
  #finish = null;
  #done = false;

  constructor(conversation, hear, signal) {
    this.#conversation = conversation;
    this.#hear = hear;
    this.#signal = signal;
  }

  outcome(ended, error) {
    return { ended, about: this.#about, waitedMs: this.#waitedMs, error };
  }

  async run() {
    const { machine, model, session } = this.#conversation;
    const response = await ask("POST", `/m/${encodeURIComponent(machine)}/v1/chat/completions`, {
      headers: { "x-homeport-session": session },
      signal: this.#signal,
      body: {
        model,
        messages: messages(this.#conversation),
        stream: true,
        stream_options: { include_usage: true },
        return_progress: true,
      },
    });
    this.#head(response.headers);
    await this.#read(response.body.getReader());
    if (!this.#done) throw new Refused(0, "broke_off", "The answer broke off");
    return this.outcome(this.#finish === "length" ? "length" : null, null);
  }

  #head(headers) {
    this.#waitedMs = Number.parseInt(headers.get("x-homeport-waited-ms") ?? "0", 10) || 0;
    this.#hear({ kind: "head", id: headers.get("x-homeport-session"), waitedMs: this.#waitedMs });
  }

  async #read(reader) {
    const events = new SseReader();
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (this.#signal.aborted) throw error;
        throw new Refused(0, "broke_off", "The answer broke off");
      });
      if (done) return;
      for (const event of events.push(value)) this.#event(event);
    }
  }

  #event({ comment, data }) {
    if (comment !== undefined) {
      this.#hear({ kind: "sign", words: comment });
      return;
    }
    if (data === "[DONE]") {
      this.#done = true;
      return;
    }
    const told = JSON.parse(data);
    if (told.error) {
      throw new Refused(200, told.error.code, told.error.message);
    }
    this.#about = told.homeport ?? this.#about;
    const progress = told.prompt_progress;
    if (progress) this.#hear({ kind: "progress", done: progress.processed, total: progress.total });
    for (const choice of told.choices ?? []) this.#choice(choice);
  }

  #choice({ delta, finish_reason: finish }) {
    this.#finish = finish ?? this.#finish;
    for (const [kind, text] of [["reasoning", delta?.reasoning_content], ["text", delta?.content]]) {
      if (!text) continue;
      this.said = true;
      this.#hear({ kind, text });
    }
  }
}
