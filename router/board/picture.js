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
  for (const [name, differs] of Object.entries(told.sessions)) {
    const was = picture.sessions.get(name);
    put(picture.sessions, name, differs, laid);
    for (const each of [was, picture.sessions.get(name)]) if (each) touched.add(each.machine);
  }
  for (const [name, differs] of Object.entries(told.machines)) put(picture.machines, name, differs, laidMachine);
  picture.fleet = laid(picture.fleet, told.fleet);
  return Object.keys(told.fleet).length ? null : touched;
}

function put(records, name, differs, lays) {
  if (differs === null) records.delete(name);
  else records.set(name, lays(records.get(name), differs));
}

/** A new record, as `record` (undefined: there was none) is now: `change` in router/watching.py says what is told. */
function laid(record, { set = {}, unset = [] }) {
  const made = { ...record, ...set };
  for (const field of unset) delete made[field];
  return made;
}

function laidMachine(machine, differs) {
  const replicas = new Map(machine?.replicas.map((each) => [each.name, each]));
  for (const [name, value] of Object.entries(differs.replicas ?? {})) put(replicas, name, value, laid);
  const order = differs.order ?? [...replicas.keys()];
  return { ...laid(machine, differs), replicas: order.map((name) => replicas.get(name)) };
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
