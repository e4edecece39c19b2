// The machine of this desk, as the router sees it: one stream of what changes. Shows nothing.

import { ask, AWAY, json, Refused } from "./api.js";
import { SseReader } from "./sse.js";

const AGAIN_MS = 1000;
const LONGEST_MS = 15000;
/** The router says at least every 10 s that it is there. */
const SILENT_MS = 25000;

/** Never resolves. `told` gets `{models, machines, sessions, ahead}` whenever something changed: `ahead` is how many
 * seconds the router's clock is before this one. `failed` gets each error, and resolves to whether it is
 * mended (a key was given). */
export async function watch(told, failed) {
  for (let tries = 0; ; tries += 1) {
    await seen();
    try {
      await follow((picture) => {
        tries = 0;
        told(picture);
      });
    } catch (error) {
      if (await failed(error)) continue;
    }
    if (!document.hidden) await elapsed(Math.min(LONGEST_MS, AGAIN_MS * 2 ** tries));
  }
}

/** Until the stream ends, or nobody looks at the page: a browser opens six connections to a router, whatever the number
 * of its tabs. Throws Refused. */
async function follow(told) {
  const stop = new AbortController();
  const unseen = () => {
    if (document.hidden) stop.abort();
  };
  document.addEventListener("visibilitychange", unseen);
  let silence = 0;
  const alive = () => {
    clearTimeout(silence);
    silence = setTimeout(() => stop.abort(), SILENT_MS);
  };
  const away = () => {
    throw new Refused(0, "router_away", AWAY);
  };
  alive();
  try {
    const response = await ask("GET", "/api/fleet?watch", { signal: stop.signal });
    const reader = response.body.getReader();
    const events = new SseReader();
    let picture = null;
    for (;;) {
      const { value, done } = await reader.read().catch(away);
      if (done) return;
      alive();
      for (const { event, data } of events.push(value)) {
        if (data === undefined) continue;
        picture = laid(picture, event, JSON.parse(data));
        told(picture);
      }
    }
  } catch (error) {
    if (!document.hidden) throw error.name === "AbortError" ? new Refused(0, "router_away", AWAY) : error;
  } finally {
    clearTimeout(silence);
    document.removeEventListener("visibilitychange", unseen);
    stop.abort();
  }
}

/** The picture after an event: the first one is whole, later ones are laid over it. */
export function laid(before, event, told) {
  if (event === "fleet") {
    const ahead = told.now_s === undefined ? 0 : told.now_s - Date.now() / 1000;
    const named = (list, name) => Object.fromEntries(list.map((each) => [name(each), each]));
    return {
      models: told.fleet.models,
      machines: named(told.fleet.machines, (machine) => machine.name),
      sessions: named(told.sessions, (session) => `${session.id} ${session.model}`),
      ahead,
    };
  }
  const over = (old, changed) =>
    Object.fromEntries(Object.entries({ ...old, ...changed }).filter(([, value]) => value !== null));
  return {
    models: told.fleet.models ?? before.models,
    machines: over(before.machines, told.machines),
    sessions: over(before.sessions, told.sessions),
    ahead: before.ahead,
  };
}

function elapsed(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Resolves once somebody looks at the page. */
function seen() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}

/** Why there is no machine of that name, in the router's words. */
export async function whyNone(name) {
  try {
    await json("GET", `/m/${encodeURIComponent(name)}/v1/models`);
  } catch (error) {
    return error.message;
  }
  return "It has just come: one moment.";
}
