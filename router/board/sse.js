// Server-sent events out of bytes that may be split anywhere, as in the HTML standard (9.2.6). Pure.

/** `push` gives what is whole by then, in order: `{comment}` or `{event, data}`. Half an event at the end is none. */
export class SseReader {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];
  #event = "";

  push(bytes) {
    const text = this.#rest + this.#decoder.decode(bytes, { stream: true });
    const found = [];
    let from = 0;
    for (const end of text.matchAll(/\r\n|\n|\r/g)) {
      if (end[0] === "\r" && end.index + 1 === text.length) break; // its \n may come yet
      this.#line(text.slice(from, end.index), found);
      from = end.index + end[0].length;
    }
    this.#rest = text.slice(from);
    return found;
  }

  #line(line, found) {
    if (line === "") {
      if (this.#data.length > 0) found.push({ event: this.#event || "message", data: this.#data.join("\n") });
      this.#data = [];
      this.#event = "";
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "") found.push({ comment: value });
    else if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
  }
}
