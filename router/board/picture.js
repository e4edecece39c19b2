// The fleet as this page knows it, and how what the router tells is laid over it. Pure.

export function blank() {
  return { fleet: {}, machines: new Map(), sessions: new Map() };
}

/** Take an event in; which machines and sessions are to be drawn anew (null: all). */
export function lay(picture, event, told) {
  if (event === "fleet") {
    const { machines, ...rest } = told.fleet;
    picture.fleet = rest;
    picture.machines = new Map(machines.map((each) => [each.name, each]));
    picture.sessions = new Map(told.sessions.map((each) => [`${each.id} ${each.model}`, each]));
    return null;
  }
  const touched = new Set(Object.keys(told.machines));
  for (const [name, value] of Object.entries(told.sessions)) {
    for (const each of [picture.sessions.get(name), value]) if (each) touched.add(each.machine);
    put(picture.sessions, name, value);
  }
  for (const [name, value] of Object.entries(told.machines)) put(picture.machines, name, value);
  for (const [name, value] of Object.entries(told.fleet)) picture.fleet[name] = value;
  return Object.keys(told.fleet).length ? null : touched;
}

function put(map, name, value) {
  if (value === null) map.delete(name);
  else map.set(name, value);
}

const RANK = { running: 0, waiting: 1, resident: 2, away: 3, parked: 4 };

/** The sessions of each machine, those that do something first, then by age. */
export function byMachine(sessions) {
  const found = new Map();
  for (const each of sessions) {
    if (!found.has(each.machine)) found.set(each.machine, []);
    found.get(each.machine).push(each);
  }
  for (const list of found.values()) {
    // NaN of two that have no time yet is falsy: the id decides.
    list.sort((a, b) => RANK[a.state] - RANK[b.state] || place(a) - place(b) || (a.created_s ?? Infinity) - (b.created_s ?? Infinity) || (a.id < b.id ? -1 : 1));
  }
  return found;
}

function place(session) {
  return session.line?.position ?? Number.MAX_SAFE_INTEGER;
}

/** Machines in the order of the board: by zone, then by name. */
export function inOrder(machines) {
  return [...machines].sort((a, b) => a.zone.localeCompare(b.zone) || a.name.localeCompare(b.name, undefined, { numeric: true }));
}

/** What all of it comes to. */
export function sums(picture) {
  let perSecond = null;
  for (const machine of picture.machines.values()) {
    const made = speedOf(machine);
    if (made !== null) perSecond = (perSecond ?? 0) + made;
  }
  const sessions = [...picture.sessions.values()];
  const of = (state) => sessions.filter((each) => each.state === state).length;
  return { machines: picture.machines.size, sessions: sessions.length, running: of("running"), waiting: of("waiting"), perSecond };
}

/** Tokens a second of a machine's replicas; null where none was measured. */
export function speedOf(machine) {
  const known = machine.replicas.map((each) => each.tokens_per_s).filter((each) => each !== null && each !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
}
