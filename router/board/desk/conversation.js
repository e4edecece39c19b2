// What a conversation is, and what becomes of it. Pure: each function returns a new one.
//
// Turns alternate: what was asked, `{role: "user", text, files: [{name, bytes, text}]}`, and what was answered,
// `{role: "assistant", text, reasoning, about, waitedMs, ended, error}`. `ended`: null (whole), "length", "stopped",
// "broke" or "failed".

const TITLE = 60;

export function begun(id, machine, model, now) {
  return {
    id,
    session: `desk-${id}`,
    machine,
    model,
    system: "",
    title: "",
    created: now,
    updated: now,
    turns: [],
    public: null,
  };
}

/** With one more question. */
export function asked(conversation, text, files, now) {
  const title = conversation.title || titleOf(text, files);
  const turns = [...conversation.turns, { role: "user", text, files }];
  return { ...conversation, title, turns, updated: now };
}

/** With the last question asked anew; what is behind it is dropped. */
export function edited(conversation, text, files, now) {
  const at = lastAsked(conversation);
  const kept = at < 0 ? conversation.turns : conversation.turns.slice(0, at);
  const title = kept.length === 0 ? "" : conversation.title;
  return asked({ ...conversation, turns: kept, title }, text, files, now);
}

/** Without the answer to the last question, to ask it again. */
export function reopened(conversation, now) {
  const at = lastAsked(conversation);
  return at < 0 ? conversation : { ...conversation, turns: conversation.turns.slice(0, at + 1), updated: now };
}

/** With this as the answer to the last question, in place of the one that is there. */
export function answered(conversation, answer, now) {
  const open = reopened(conversation, now);
  return { ...open, turns: [...open.turns, { role: "assistant", ...answer }] };
}

/** Where the last question is among the turns; -1: nothing was asked yet. */
export function lastAsked(conversation) {
  return conversation.turns.findLastIndex((turn) => turn.role === "user");
}

/** What the model is sent. Questions without an answer go as one: templates want turns that alternate. */
export function messages(conversation) {
  const told = conversation.system.trim() === "" ? [] : [{ role: "system", content: conversation.system }];
  for (const turn of conversation.turns) {
    const content = turn.role === "user" ? saidIn(turn) : turn.text;
    if (content === "") continue;
    const last = told.at(-1);
    if (last?.role === turn.role) last.content += `\n\n${content}`;
    else told.push({ role: turn.role, content });
  }
  return told;
}

function saidIn(turn) {
  const files = turn.files.map((file) => {
    const fence = "`".repeat(Math.max(3, longestRun(file.text) + 1));
    return `Attached file ${file.name}:\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}`;
  });
  return [turn.text, ...files].filter((part) => part !== "").join("\n\n");
}

function longestRun(text) {
  return Math.max(0, ...Array.from(text.matchAll(/`+/g), (run) => run[0].length));
}

function titleOf(text, files) {
  const line = text.trim().split("\n", 1)[0] || files[0]?.name || "";
  const letters = [...line];
  return letters.length > TITLE ? `${letters.slice(0, TITLE - 1).join("")}…` : line;
}
