// Text files that are attached to a question. Refuses what no model here could take, with the reason.

import { bytes } from "./words.js";

const LARGEST = 256 * 1024;
const BYTES_A_TOKEN = 4;

export class NoFile extends Error {}

/** How large a file may be for a model with a context of so many tokens (null: not known). Rule of thumb: 4 bytes of
 * English are a token. */
export function limit(context) {
  return context === null ? LARGEST : Math.min(LARGEST, context * BYTES_A_TOKEN);
}

/** `{name, bytes, text}` of a File. Throws NoFile. */
export async function read(file, context) {
  const most = limit(context);
  if (file.size > most) {
    const why = context === null ? "" : `: about what the model's context of ${context} tokens holds`;
    throw new NoFile(`${file.name} has ${bytes(file.size)}; at most ${bytes(most)} can be attached${why}. Attach a part of it.`);
  }
  if (file.size === 0) throw new NoFile(`${file.name} is empty.`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new NoFile(`${file.name} is not text in UTF-8. Attach plain text; save other kinds as text first.`);
  }
  if (text.includes("\0")) throw new NoFile(`${file.name} is not a text file. Attach plain text; save other kinds as text first.`);
  return { name: file.name, bytes: file.size, text };
}
