// Markdown as elements of a page. What a model writes as HTML is shown as text; nothing is loaded, nothing runs.
//
// Two walls: marked is told to write no HTML of the text's own, and DOMPurify (a classic script of the page) lets through
// what stands below only. Blocks that did not change keep their elements, so that a growing answer is cheap to show.

import { Marked } from "../vendor/marked.esm.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
/** What is beyond that is shown as plain text: marked's time grows with the square of it, and its calls nest. */
const MOST = { letters: 400_000, markers: 40, columns: 200, emphasis: 1_000_000 };
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function escaped(text) {
  return text.replace(/[&<>"']/g, (letter) => ESCAPES[letter]);
}

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p class="raw">${escaped(text.trimEnd())}</p>` : escaped(text)),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/** Whether a text of that kind takes too long to read: an answer that is shown again with each reload must not. */
function isTooMuch(text) {
  if (text.length > MOST.letters) return true;
  for (const [prefix] of text.matchAll(/^(?:[ \t]|>|[-+*](?=[ \t])|\d{1,9}[.)](?=[ \t]))+/gm)) {
    if (prefix.length <= MOST.markers) continue;
    if (prefix.replaceAll("\t", "    ").length > MOST.columns) return true;
    if ((prefix.match(/[^\s\d]/g)?.length ?? 0) > MOST.markers) return true;
  }
  return emphasis(text) > MOST.emphasis;
}

/** The squares of how many marks of emphasis are open at most, over all paragraphs. */
function emphasis(text) {
  let open = 0, most = 0, sum = 0;
  for (const { 0: mark, groups } of `${text}\n\n`.matchAll(
    /(?<end>\n[ \t]*\n)|(?<!\S)(?<opens>[*_~]+)(?=[^\s*_~])|(?<=[^\s*_~])[*_~]+(?!\S)/g,
  )) {
    if (groups.end) {
      sum += most ** 2;
      open = most = 0;
    } else {
      open = Math.max(0, open + (groups.opens ? mark.length : -mark.length));
      most = Math.max(most, open);
    }
  }
  return sum;
}

/** The text's blocks; where it cannot be read, it is one. */
function blocksOf(text) {
  const whole = [{ type: "plain", raw: text }];
  try {
    if (isTooMuch(text)) return whole;
    return marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  } catch {
    return whole;
  }
}

/** Shows a growing text in an element. Whatever the text is, it is shown. */
export class Written {
  #element;
  #blocks = [];

  constructor(element) {
    this.#element = element;
  }

  /** All of the text so far. */
  show(text) {
    const tokens = blocksOf(text);
    tokens.forEach((token, at) => {
      const before = this.#blocks[at];
      if (before?.raw === token.raw) return;
      const element = blockOf(token);
      if (before) before.element.replaceWith(element);
      else this.#element.append(element);
      this.#blocks[at] = { raw: token.raw, element };
    });
    for (const { element } of this.#blocks.splice(tokens.length)) element.remove();
  }
}

function blockOf(token) {
  const block = document.createElement("div");
  block.className = "block";
  if (token.type === "plain") return plain(block, token.raw);
  try {
    block.append(globalThis.DOMPurify.sanitize(marked.parser([token]), ALLOWED));
  } catch {
    return plain(block, token.raw);
  }
  for (const link of block.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes);
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const pre of block.querySelectorAll("pre")) frame(pre);
  for (const table of block.querySelectorAll("table")) scrolls(table, "Table");
  return block;
}

function plain(block, text) {
  const words = document.createElement("p");
  words.className = "raw";
  words.textContent = text;
  block.replaceChildren(words);
  return block;
}

/** Code with its language and a button that copies it. */
function frame(pre) {
  const language = /language-([\w+#.-]{1,20})/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = language || "code";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "quiet";
  copy.textContent = "Copy";
  copy.dataset.act = "copy-code";
  caption.append(name, copy);
  pre.replaceWith(figure);
  pre.tabIndex = 0;
  pre.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
  pre.setAttribute("role", "region");
  figure.append(caption, pre);
}

function scrolls(element, label) {
  const around = document.createElement("div");
  around.className = "scrolls";
  around.tabIndex = 0;
  around.setAttribute("role", "region");
  around.setAttribute("aria-label", label);
  element.replaceWith(around);
  around.append(element);
}
