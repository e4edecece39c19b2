// What the desk says of a machine, of a wait and of an answer, in words. Pure: times are given, in seconds since the epoch.

import { AWAY, clock } from "../words.js";

/** Errors within a stream after which the same question may be asked again: nothing of them is its fault. */
const PASSING = new Set([
  "queue_timeout", "host_lost", "host_stopping", "host_error", "host_unsettled", "machine_unavailable", "machine_lost",
  "machine_yielded", "model_unavailable", "router_stopping", "not_ready", "internal_error",
]);
const COMES = "The answer comes here by itself.";
const AGAIN_S = 5;
const LONGEST_S = 15;

/** `4 s`, `7 min`, `1 h 20 min`; rounded up. */
export function span(seconds) {
  if (seconds <= 90) return `${Math.max(1, Math.ceil(seconds))} s`;
  const minutes = Math.ceil(seconds / 60);
  return minutes <= 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** `812 B`, `1.2 KiB`, `3.4 MiB`. */
export function bytes(count) {
  if (count < 1024) return `${count} B`;
  const [size, unit] = count < 1024 ** 2 ? [count / 1024, "KiB"] : [count / 1024 ** 2, "MiB"];
  return `${size < 10 ? size.toFixed(1).replace(/\.0$/, "") : Math.round(size)} ${unit}`;
}

/** What a machine of /api/fleet?watch has and does: `{models, places: ["running" | "free" | "away", …], waiting, away}`. */
export function load(machine) {
  const places = [];
  let waiting = 0;
  const away = AWAY.has(machine.state);
  for (const replica of machine.replicas) {
    const serves = !away && replica.state === "ready" && replica.reach !== "out";
    for (let place = 0; place < replica.places; place += 1) {
      places.push(!serves ? "away" : place < replica.running ? "running" : "free");
    }
    waiting += serves ? replica.waiting : 0;
  }
  return { models: [...new Set(machine.replicas.map((replica) => replica.model))].sort(), places, waiting, away };
}

/** The same in a few words: `1 of 2 places busy, 3 wait`. */
export function loadWords(of) {
  if (of.away) return "";
  const there = of.places.filter((place) => place !== "away");
  if (there.length === 0) return of.models.length > 0 ? "not ready yet" : "serves no model";
  const busy = there.filter((place) => place === "running").length;
  const line = of.waiting === 0 ? "" : `, ${of.waiting === 1 ? "1 waits" : `${of.waiting} wait`}`;
  const all = there.length === 1 ? (busy === 0 ? "free" : "busy") : `${busy} of ${there.length} places busy`;
  return (busy === 0 ? "free" : all) + line;
}

/** How a machine stands and what that means here; "" where there is nothing to say. */
export function standing(machine, now) {
  const name = machine.name;
  const since = machine.heard_s === null ? "" : `, not heard from since ${clock(machine.heard_s, now)}`;
  switch (machine.state) {
    case "lost":
      return `${name} is lost${since}. What was said stays there; ask, and it is asked again until ${name} is back.`;
    case "asleep":
      return machine.wakes
        ? `${name} sleeps. Your next message wakes it.`
        : `${name} sleeps. Ask, and it is asked again until ${name} is awake.`;
    case "unknown":
      return `${name} has not been heard from yet. Ask, and it is asked again until it is.`;
    case "yielded": {
      const until = machine.yielded?.until ?? null;
      const howLong = until === null ? "at present" : `until ${clock(until, now)}`;
      return `${name} is its person's ${howLong}. What was said stays there, and goes on afterwards.`;
    }
    case "draining":
      return `${name} is being emptied. What is asked here waits until it takes sessions again.`;
    case "cordoned":
      return `${name} takes no new conversations; those that live there go on.`;
    default:
      return "";
  }
}

/** Why the answer has not begun, out of what is known: a stream's comment, else the session's line, else the load. */
export function why(machine, { sign, session, load: of }, now) {
  if (sign) return sign.startsWith("waiting") ? `${machine}: ${sign}. ${COMES}` : `${machine}: ${sign}`;
  const line = session?.line;
  if (line?.position) {
    const about = line.until_s === null ? "" : `, about ${span(line.until_s - now)}`;
    return `${machine}: waiting, place ${line.position} in the line${about}. ${COMES}`;
  }
  if (of?.places.every((place) => place === "away")) return `${machine} is not ready yet. ${COMES}`;
  if (of?.waiting > 0 && !of.places.includes("free")) return `${machine} is busy. ${COMES}`;
  return `${machine} is at it`;
}

/** Whether and when to ask again after a failure: `{againS, words}`; `againS` null: only when its person says so.
 *
 * `failure`: `{status, code, message, retryS, final}`; status 0: no answer at all. `said`: something of the answer is
 * there. `tries`: how often it was asked before.
 */
export function planned(failure, said, tries) {
  const words = sentence(failure.message);
  if (said || failure.final) return { againS: null, words };
  if (failure.status === 0) return { againS: Math.min(LONGEST_S, 2 ** Math.min(tries, 4)), words };
  if (failure.retryS !== null) return { againS: failure.retryS, words };
  return { againS: PASSING.has(failure.code) ? AGAIN_S : null, words };
}

/** What the body's last part tells of an answer: where its context was, and what of it was used again. */
export function meta(about, waitedMs) {
  if (!about) return "";
  const cause = about.cause ? ` (${causeWords(about.cause)})` : "";
  const told = [`${about.context}${cause}`, `${about.reused_tokens} tokens reused, ${about.evaluated_tokens} evaluated`];
  if (waitedMs >= 1000) told.push(`waited ${span(waitedMs / 1000)}`);
  return told.join(" · ");
}

function causeWords(cause) {
  const at = /^edited@(\d+)$/.exec(cause);
  return at ? `edited at token ${at[1]}` : cause.replaceAll("_", " ");
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
