// Talks through an SDK, as sdks.py does: `node sdks.mjs SDK HISTORY WORDS …`. PACKAGES is
// the folder in which they are installed: `import` looks only beside this file, `require` where it is told.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PACKAGES}/`);

const most = Number(process.env.MAX_TOKENS);

async function* openai(history) {
  const { OpenAI } = require("openai");
  const stream = await new OpenAI().chat.completions.create({
    model: process.env.MODEL,
    messages: history,
    stream: true,
    temperature: 0,
    max_tokens: most,
  });
  for await (const chunk of stream) yield chunk.choices[0]?.delta?.content ?? "";
}

async function* anthropic(history) {
  const { Anthropic } = require("@anthropic-ai/sdk");
  const stream = new Anthropic().messages.stream({
    model: process.env.MODEL,
    messages: history,
    temperature: 0,
    max_tokens: most,
  });
  for await (const event of stream) if (event.type === "content_block_delta") yield event.delta.text ?? "";
}

const sdks = { anthropic, openai };
const [sdk, file, ...words] = process.argv.slice(2);
const history = existsSync(file) ? JSON.parse(readFileSync(file)) : [];
for (const line of words) {
  history.push({ role: "user", content: line });
  let answer = "";
  for await (const text of sdks[sdk](history)) {
    answer += text;
    process.stdout.write(text);
  }
  history.push({ role: "assistant", content: answer });
  writeFileSync(file, JSON.stringify(history));
}
