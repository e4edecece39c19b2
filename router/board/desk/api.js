// How the desk asks the router. Shows nothing.

import * as key from "../key.js";

/** An answer that is an error. `status` 0: there was no answer. `retryS`: when to ask again, in seconds; null: not
 * said. `final`: asking again will not help. */
export class Refused extends Error {
  constructor(status, code, message, retryS = null, final = false) {
    super(message);
    Object.assign(this, { status, code, retryS, final });
  }
}

/** The response, which is no error. Throws Refused, or AbortError where `signal` says so. */
export async function ask(method, path, { body, headers = {}, signal } = {}) {
  const sent = { ...headers, ...key.headers() };
  if (body !== undefined) sent["content-type"] = "application/json";
  let response;
  try {
    const told = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, body: told, headers: sent, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "router_away", "The router does not answer");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The JSON of the answer. Throws as `ask`. */
export async function json(method, path, options) {
  const response = await ask(method, path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "router_away", "The router's answer broke off");
  }
}

async function refusal(response) {
  const found = await response.json().catch(() => ({}));
  const told = found.error ?? {};
  const after = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const final = response.headers.get("x-should-retry") === "false" || (response.status < 500 && response.status !== 429);
  const message = told.message ?? `The router answered ${response.status}`;
  return new Refused(response.status, told.code ?? "", message, Number.isNaN(after) ? null : after, final);
}
