// Small things that every part of the desk does with a page.

import { el, say as put } from "../dom.js";

/** An element with this text, these attributes and children; children that are null are left out. */
export function make(name, { text, ...given } = {}, ...children) {
  const made = el(name, given, ...children.filter((child) => child !== null));
  if (text !== undefined) made.prepend(text);
  return made;
}

export function button(text, onclick, more = {}) {
  return make("button", { type: "button", text, onclick, ...more });
}

/** Sets a text where it changed, so that nothing is read out twice; without a text the element is hidden. */
export function say(element, text) {
  put(element, text);
  element.hidden = text === "";
}

/** Into the clipboard, also where the page came over plain HTTP. Resolves to whether it is there. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { class: "aside", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
