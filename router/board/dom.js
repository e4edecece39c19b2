// Small hands for the page: elements, and changes that leave alone what is as it should be.

export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function set(node, name, value) {
  const told = value === null || value === undefined ? null : String(value);
  if (node.getAttribute(name) === told) return;
  if (told === null) node.removeAttribute(name);
  else node.setAttribute(name, told);
}

export function show(node, is) {
  if (node.hidden === is) node.hidden = !is;
}

/** Have `parent` hold these nodes in this order, moving as few as can be: one that has the focus stays where it is. */
export function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const held = parent.contains(document.activeElement);
  let at = parent.firstElementChild;
  for (const node of nodes) {
    if (node === at) at = at.nextElementSibling;
    else if (!held || node.parentNode !== parent) parent.insertBefore(node, at);
  }
}

/** Redraw only when what it is drawn from differs. */
export function onChange(draw) {
  let before;
  return (from) => {
    const now = JSON.stringify(from);
    if (now !== before) { before = now; draw(from); }
  };
}
