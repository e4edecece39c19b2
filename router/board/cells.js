// What each core and GPU of a machine is shown as: whose it is, and what its holder does. Pure.

export const HUES = 8;
const PARTS = 20; // Of a GPU that replicas share.

/** By replica: {slot, hue, held: "busy" | "warm" | "idle" | "down", words}. */
export function holders(machine, sessions) {
  const found = new Map();
  for (const replica of machine.replicas) {
    const mine = sessions.filter((each) => each.replica === replica.name);
    const busy = mine.filter((each) => each.state === "running").length;
    const there = replica.reach === "up" && replica.state === "ready";
    const warm = (replica.residents ?? []).length;
    const held = !there ? "down" : busy || replica.running ? "busy" : warm ? "warm" : "idle";
    const does = { busy: "answering", warm: "a session is warm", idle: "ready for anyone", down: replica.reach === "out" ? "does not answer" : replica.state }[held];
    found.set(replica.name, { slot: replica.slot, hue: replica.slot % HUES, held, words: `${replica.name}, ${replica.model}: ${does}` });
  }
  return found;
}

/** Cores in the machine's order: [{id, held, hue, label, title}]. The reserve are the last that a slice might have. */
export function cores(machine, holds) {
  const all = machine.hardware?.cores ?? [];
  const usable = [...all].sort((a, b) => (a.kind === "efficiency") - (b.kind === "efficiency") || a.id - b.id);
  const kept = new Set(usable.slice(Math.max(0, usable.length - (machine.reserve?.cores ?? 0))).map((each) => each.id));
  const by = new Map();
  for (const replica of machine.replicas) for (const id of replica.slice?.cores ?? []) by.set(id, holds.get(replica.name));
  return all.map((core) => {
    const holder = by.get(core.id);
    const kind = core.kind === "efficiency" ? " (efficiency)" : "";
    if (holder) return { id: core.id, held: holder.held, hue: holder.hue, label: String(holder.slot), title: `core ${core.id}${kind}: ${holder.words}` };
    if (kept.has(core.id)) return { id: core.id, held: "reserve", hue: null, label: "R", title: `core ${core.id}${kind}: its person's reserve` };
    return { id: core.id, held: "free", hue: null, label: "", title: `core ${core.id}${kind}: no replica's` };
  });
}

/** GPUs: [{uuid, name, memory, ill, parts: [{held, hue, label, share, title}]}]; one held whole has one part. */
export function gpus(machine, holds) {
  const now = machine.gpus ?? {};
  return (machine.hardware?.gpus ?? []).map((gpu) => {
    const seen = { ...gpu, ...now[gpu.uuid] };
    const parts = [];
    let left = 1;
    for (const replica of machine.replicas) {
      if (!(replica.slice?.gpus ?? []).includes(gpu.uuid)) continue;
      const hold = (replica.slice.gpu_holds ?? []).find((each) => each.uuid === gpu.uuid);
      const share = hold?.parts?.length ? hold.parts.length / PARTS : 1;
      const holder = holds.get(replica.name);
      left -= share;
      const of = share === 1 ? "" : `${Math.round(share * 100)} % `;
      parts.push({ held: holder.held, hue: holder.hue, label: String(holder.slot), share, title: `${of}${holder.words}` });
    }
    if (left > 1e-9) {
      const barred = seen.kind === "inventory only";
      parts.push({ held: "free", hue: null, label: "", share: left, title: barred ? "no slice has it" : "no replica's" });
    }
    const ill = seen.state && seen.state !== "ok" ? `${seen.state}: ${seen.reason}` : "";
    return { uuid: gpu.uuid, name: gpu.name, memory: gpu.memory_bytes, ill, parts };
  });
}

/** Memory: what replicas hold, what is kept for its person, what is left; shares of all of it. */
export function memory(machine, holds) {
  const all = machine.hardware?.memory_bytes ?? 0;
  if (!all) return [];
  const parts = machine.replicas
    .filter((each) => each.slice?.memory_bytes)
    .map((each) => ({ ...holds.get(each.name), share: each.slice.memory_bytes / all, bytes: each.slice.memory_bytes }));
  const reserve = machine.reserve?.memory_bytes ?? 0;
  if (reserve) parts.push({ held: "reserve", hue: null, share: reserve / all, bytes: reserve, words: "its person's reserve" });
  return parts;
}
