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

/** Shows a growing text in an element. */
export class Written {
  #element;
  #blocks = [];

  constructor(element) {
    this.#element = element;
  }

  /** All of the text so far. */
  show(text) {
    const tokens = marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
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
  block.append(globalThis.DOMPurify.sanitize(marked.parser([token]), ALLOWED));
  for (const link of block.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes);
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const pre of block.querySelectorAll("pre")) frame(pre);
  for (const table of block.querySelectorAll("table")) scrolls(table, "Table");
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
