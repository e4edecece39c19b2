// Server-sent events over fetch: EventSource can send no key. Connects again by itself, later and later.

import { SseReader } from "./sse.js";

const QUIET_MS = 25000; // The router says something every ten seconds.
const LONGEST_MS = 15000;

/** In how many milliseconds the try after `failed` ones is made: 1 s, 2 s, 4 s … with a little chance in it. */
export function backoff(failed, chance = Math.random()) {
  return Math.min(LONGEST_MS, 1000 * 2 ** Math.min(10, failed - 1)) * (0.75 + chance / 2);
}

/**
 * Follow `url` until `stop`. `told`: {event(name, data), live(), lost(reason, againMs), refused(status, error)}: after
 * `refused` it waits for `now`.
 */
export function follow(url, headers, told) {
  let failed = 0, timer = 0, open = null, stopped = false, loose = null;

  async function once() {
    clearTimeout(timer);
    const mine = (open = new AbortController());
    const awake = () => { clearTimeout(loose); loose = setTimeout(() => mine.abort("silent"), QUIET_MS); };
    let why = "The router ended the stream.";
    try {
      awake();
      const answer = await fetch(url, { headers: { ...headers(), accept: "text/event-stream" }, signal: mine.signal, cache: "no-store" });
      if (!answer.ok || !answer.body) {
        const error = await answer.json().then((said) => said.error, () => null);
        if (answer.status === 401 || answer.status === 403) {
          told.refused(answer.status, error?.message ?? `The router answered ${answer.status}.`);
          return;
        }
        throw new Error(error?.message ?? `The router answered ${answer.status}.`);
      }
      const events = new SseReader(), bytes = answer.body.getReader();
      told.live();
      for (;;) {
        const { done, value } = await bytes.read();
        if (done) break;
        failed = 0;
        awake();
        for (const { event, data } of events.push(value)) if (event) told.event(event, JSON.parse(data)); // Else a comment.
      }
    } catch (error) {
      if (mine !== open) return;
      why = mine.signal.aborted ? "The router says nothing." : error instanceof TypeError ? "The router does not answer." : error.message;
    } finally {
      clearTimeout(loose);
    }
    if (stopped || mine !== open) return;
    failed += 1;
    const wait = backoff(failed);
    told.lost(why, wait);
    timer = setTimeout(once, wait);
  }

  function now() {
    open?.abort("anew");
    once();
  }

  once();
  return { now, stop() { stopped = true; clearTimeout(timer); open?.abort("stopped"); } };
}
