// Where a question is written: its words, its files, and whether it is the last one anew.

import { button, make, say } from "./dom.js";
import { NoFile, read } from "./files.js";
import { bytes } from "./words.js";

const at = (id) => document.getElementById(id);

export class Composer {
  #input = at("input");
  #files = [];
  #edits = false;
  #busy = false;
  #does;
  #context = null;

  /** `does`: `send({text, files, edits})`, which says whether it took it; `stop()`; `last()`, the last question or null. */
  constructor(does) {
    this.#does = does;
    const input = this.#input;
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("input", () => this.#fit());
    at("send").addEventListener("click", () => (this.#busy ? does.stop() : this.#send()));
    at("attach").addEventListener("click", () => at("pick").click());
    at("pick").addEventListener("change", (event) => {
      void this.attach(event.target.files);
      event.target.value = "";
    });
    at("leave-edit").addEventListener("click", () => this.leave());
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      void this.attach(event.dataTransfer.files);
    });
    input.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      void this.attach(event.clipboardData.files);
    });
  }

  /** The model's context in tokens, which bounds what can be attached; null: not known. */
  set context(tokens) {
    this.#context = tokens;
  }

  /** A question is out: what sends it stops it now. */
  set busy(is) {
    this.#busy = is;
    const send = at("send");
    const word = is ? "Stop" : "Send";
    send.classList.toggle("stops", is);
    send.setAttribute("aria-label", word);
    send.title = word;
  }

  /** Nobody can be asked. */
  set off(is) {
    for (const id of ["input", "attach", "send"]) at(id).disabled = is;
  }

  focus() {
    if (!document.querySelector("dialog[open]") && matchMedia("(hover: hover)").matches) this.#input.focus();
  }

  /** The last question, to be asked anew. */
  edit() {
    const last = this.#does.last();
    if (last === null || this.#busy) return;
    this.#edits = true;
    this.#put(last.text, last.files);
    this.#input.focus();
    this.#input.setSelectionRange(last.text.length, last.text.length);
  }

  /** Let the last question be as it was; nothing is written then. */
  leave() {
    if (!this.#edits) return;
    this.clear();
    this.#input.focus();
  }

  clear() {
    this.#edits = false;
    say(at("trouble"), "");
    this.#put("", []);
  }

  /** Adds files, each that can be; says of the others why not. */
  async attach(files) {
    const troubles = [];
    for (const file of files) {
      try {
        this.#files = [...this.#files, await read(file, this.#context)];
      } catch (error) {
        if (!(error instanceof NoFile)) throw error;
        troubles.push(error.message);
      }
    }
    say(at("trouble"), troubles.join(" "));
    this.#show();
    this.focus();
  }

  #send() {
    const text = this.#input.value.trim();
    if (this.#busy || this.#input.disabled || (text === "" && this.#files.length === 0)) return;
    if (this.#does.send({ text, files: this.#files, edits: this.#edits })) this.clear();
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && this.#input.value === "" && this.#files.length === 0) {
      event.preventDefault();
      this.edit();
    }
  }

  #put(text, files) {
    this.#input.value = text;
    this.#files = files;
    this.#fit();
    this.#show();
  }

  /** As high as its words, where the browser does not do so itself. */
  #fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
  }

  #show() {
    at("editing").hidden = !this.#edits;
    const list = at("files");
    list.hidden = this.#files.length === 0;
    list.replaceChildren(
      ...this.#files.map((file) =>
        make(
          "li",
          {},
          make("span", { text: file.name }),
          make("small", { text: bytes(file.bytes) }),
          button("×", () => this.#drop(file), { class: "quiet", "aria-label": `Leave out ${file.name}` }),
        ),
      ),
    );
  }

  #drop(file) {
    this.#files = this.#files.filter((each) => each !== file);
    this.#show();
    this.#input.focus();
  }
}
