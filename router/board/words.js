// What the board says, in the words of `homeport status`. Pure: the time is given, in seconds since the epoch.

/** `12 s`, `3 min`, `2 h`, `5 d`. */
export function age(seconds) {
  const s = Math.max(0, seconds);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (s >= size) return `${Math.round(s / size)} ${unit}`;
  return `${Math.round(s)} s`;
}

export function clock(at, now) {
  const day = new Date(at * 1000), today = new Date(now * 1000);
  const time = day.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  return day.toDateString() === today.toDateString() ? time : `${day.toLocaleDateString()} ${time}`;
}

export function bytes(count) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"]]) {
    if (count >= size) return `${+(count / size).toFixed(count / size < 10 ? 1 : 0)} ${unit}`;
  }
  return `${count} bytes`;
}

export function many(count, one, more = `${one}s`) {
  return `${count} ${count === 1 ? one : more}`;
}

export function speed(perSecond) {
  return perSecond === null || perSecond === undefined ? "–" : perSecond >= 100 ? String(Math.round(perSecond)) : perSecond.toFixed(1);
}

/** How a machine stands, in a word or two. */
export function standing(machine, now) {
  const cordoned = machine.cordoned && machine.state !== "cordoned" ? (machine.draining ? ", draining" : ", cordoned") : "";
  switch (machine.state) {
    case "unknown": return `not heard yet${cordoned}`;
    case "lost": case "asleep": return `${machine.state}${heard(machine, now)}${cordoned}`;
    case "yielded": {
      const { by, until } = machine.yielded ?? {};
      const to = !by || by === "person" ? "its person" : by;
      return `yielded to ${to}${until ? ` until ${clock(until, now)}` : ""}${machine.cordoned ? ", cordoned" : ""}`;
    }
    default: return `${machine.state}${cordoned}`;
  }
}

function heard(machine, now) {
  return machine.heard_s === null ? ", not heard since the controller began" : `, last heard ${age(now - machine.heard_s)} ago (${clock(machine.heard_s, now)})`;
}

export const AWAY = new Set(["lost", "unknown", "asleep", "yielded"]);

/** What becomes of the sessions of a machine that is not there, a sentence for each policy; [] where it is there. */
export function fate(machine, models) {
  if (!AWAY.has(machine.state)) return [];
  if (machine.state === "yielded") return ["Its sessions were parked to disk. They keep their home here and wait for it."];
  if (machine.state === "unknown") return ["Nobody is moved and nothing is started in its stead until it reports or counts as lost."];
  const woken = machine.wakes ? " The next turn of one wakes it." : "";
  if (machine.state === "asleep") return [`Its sessions keep their home here.${woken || " They wait until somebody wakes it."}`];
  const served = new Set(machine.replicas.map((each) => each.model));
  const by = { wait: [], move: [], fail: [] };
  for (const model of models) if (served.has(model.name)) by[model.when_lost].push(model.name);
  const of = (names) => (served.size > 1 ? ` of ${names.join(", ")}` : "");
  const said = [];
  if (by.wait.length) said.push(`Sessions${of(by.wait)} wait: they keep their home here, and their turns are answered when it is back.${woken}`);
  if (by.move.length) said.push(`Sessions${of(by.move)} move: each gets a new home in zone ${machine.zone} with its next turn.`);
  if (by.fail.length) said.push(`Sessions${of(by.fail)} fail: their turns are refused for good while it is away.`);
  return said;
}

/** How far a machine is that is drained. */
export function drained(machine) {
  const told = machine.draining;
  if (!told) return "";
  if (told.waits) return `Draining waits: ${told.waits}.`;
  if (told.left === null || told.left === undefined) return "Draining: looks which sessions it has.";
  const parts = [`moved ${told.moved} of ${many(told.moved + told.left, "session")}`];
  const anew = Object.values(told.anew ?? {}).reduce((a, b) => a + b, 0);
  if (anew) parts.push(`${anew} evaluated anew (${Object.keys(told.anew).join(", ")})`);
  for (const [why, count] of Object.entries(told.stay ?? {})) parts.push(`${count} stay: ${why}`);
  for (const [why, count] of Object.entries(told.silent ?? {})) parts.push(`${count} wait: ${why}`);
  if (told.left === 0) parts.push("it is empty: its hosts can be stopped");
  return `Draining: ${parts.join("; ")}.`;
}

/** How a replica stands. */
export function replica(each, now) {
  const said = each.state === "starting" || each.state === "loading" || each.state === "failed" ? each.detail : "";
  if (each.reach === "out" && !["starting", "loading", "failed"].includes(each.state)) {
    return `no answer${each.heard_s ? ` for ${age(now - each.heard_s)}` : ""}`;
  }
  if (each.reach === "suspect" && each.heard_s) return `${each.state}, no answer for ${age(now - each.heard_s)}`;
  if (each.state === "loading" && each.progress < 1) return `loading ${Math.round(each.progress * 100)} %`;
  return said ? `${each.state}: ${said}` : each.state;
}

const STATES = { running: "answering", resident: "warm", parked: "parked", waiting: "waiting", away: "away" };

/** `waiting 12 s, place 2 in line, about 20 s`. */
export function session(each, now) {
  const word = STATES[each.state] ?? each.state;
  if (each.state === "away") return "its machine is away";
  if (!each.line) return word;
  const about = each.line.until_s === null ? "" : `, about ${age(each.line.until_s - now)}`;
  return `${word} ${age(now - each.line.since_s)}, place ${each.line.position} in line${about}`;
}

/** A public id as it is told apart on a card. */
export function short(id) {
  return id.replace(/^hp_/, "").slice(0, 6);
}
