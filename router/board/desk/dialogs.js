// The desk's dialogs: the conversations of this browser, the settings, and the question for a key.

import * as keys from "../key.js";
import { json } from "./api.js";
import { button, make } from "./dom.js";

const THEME = "homeport.theme";
const at = (id) => document.getElementById(id);
const WHEN = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && dialog.querySelector("[data-close]")) dialog.close();
  });
}

/** Light or dark as it was chosen here; else as the system has it. */
export function theme() {
  const chosen = localStorage.getItem(THEME) ?? "";
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  return chosen;
}

let asking = null;

/** Asks for a key until there is one; the one that was refused is forgotten, and nothing that was said is seen meanwhile.
 * `why`: the router's words. Who asks meanwhile gets the same answer. */
export function askKey(why) {
  const dialog = at("key");
  at("key-why").textContent = why;
  asking ??= new Promise((resolve) => {
    keys.forget();
    document.body.classList.add("locked");
    for (const other of document.querySelectorAll("dialog[open]")) other.close();
    const input = at("key-input");
    input.value = "";
    at("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      input.value = "";
      if (key === "") return;
      keys.keep(key);
      asking = null;
      document.body.classList.remove("locked");
      dialog.close();
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      if (asking !== null) dialog.showModal();
    };
    dialog.showModal();
  });
  return asking;
}

/** `conversation`: the open one; `changed` is told its new system prompt, if it has one now. */
export function openSettings(conversation, changed) {
  const dialog = at("settings");
  at("system").value = conversation.system;
  at("key-kept").hidden = keys.read() === "";
  const chosen = theme();
  for (const radio of dialog.querySelectorAll("input[name=theme]")) {
    radio.checked = radio.value === chosen;
    radio.onchange = () => {
      localStorage.setItem(THEME, radio.value);
      theme();
    };
  }
  at("drop-key").onclick = () => {
    keys.forget();
    at("key-kept").hidden = true;
  };
  dialog.onclose = () => {
    if (at("system").value !== conversation.system) changed(at("system").value);
  };
  dialog.showModal();
}

/** The conversations of `machine` in `store`; `open` is called with the one that is chosen, `removed` with an id. */
export async function openList(store, machine, current, { open, removed }) {
  const dialog = at("list");
  const note = at("list-note");
  note.textContent = `They are kept in this browser; their context waits on ${machine}.`;
  const found = await store.all(machine);
  const entries = found.map((each) => {
    const entry = make(
      "li",
      {},
      button(
        "",
        () => {
          dialog.close();
          open(each);
        },
        { class: "open", "aria-current": each.id === current ? "true" : null },
      ),
    );
    const told = [WHEN.format(each.updated), each.model].join(" · ");
    entry.firstElementChild.append(make("span", { text: each.title }), make("small", { text: told }));
    entry.append(remover(each, entry, store, note, removed));
    return entry;
  });
  const none = make("li", { class: "small", text: "None yet. What you ask here is listed here." });
  at("conversations").replaceChildren(...(entries.length > 0 ? entries : [none]));
  dialog.showModal();
}

/** Asks once more before it deletes. */
function remover(conversation, entry, store, note, removed) {
  const remove = button("Delete", async () => {
    if (!("sure" in remove.dataset)) {
      tell("For good?", `Delete ${conversation.title} for good?`);
      remove.dataset.sure = "";
      return;
    }
    removed(conversation.id);
    await store.remove(conversation.id);
    entry.remove();
    note.textContent = await ended(conversation);
  }, { class: "quiet" });
  const tell = (text, label) => {
    remove.textContent = text;
    remove.setAttribute("aria-label", label);
  };
  const unsure = () => {
    delete remove.dataset.sure;
    tell("Delete", `Delete ${conversation.title}`);
  };
  remove.addEventListener("blur", unsure);
  unsure();
  return remove;
}

/** Has its context erased on the machine, too. Resolves to what to say of it. */
async function ended(conversation) {
  if (conversation.public === null) return "Deleted.";
  try {
    await json("DELETE", `/api/sessions/${encodeURIComponent(conversation.public)}`);
  } catch (error) {
    if (error.status === 404) return "Deleted.";
    return `Deleted here. Its context on ${conversation.machine} is not erased: ${error.message}`;
  }
  return `Deleted, with its context on ${conversation.machine}.`;
}
