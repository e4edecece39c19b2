// The key of this tab. It lies in sessionStorage: it outlives a reload, no other tab sees it, and it is gone with the tab.

const NAME = "homeport.key";

export function read() {
  try { return sessionStorage.getItem(NAME) || ""; } catch { return memory; }
}

export function keep(key) {
  memory = key;
  try { sessionStorage.setItem(NAME, key); } catch { /* for as long as the page lives, then */ }
}

export function forget() {
  memory = "";
  try { sessionStorage.removeItem(NAME); } catch { /* it was never there */ }
}

/** What a request carries to show it. */
export function headers() {
  const key = read();
  return key ? { authorization: `Bearer ${key}` } : {};
}

let memory = "";
