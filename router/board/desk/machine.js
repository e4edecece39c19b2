// The machine of this desk, as the router sees it. Shows nothing.

import { headers } from "../key.js";
import { blank, lay } from "../picture.js";
import { follow } from "../stream.js";
import { json } from "./api.js";

/** Tells of the fleet for as long as somebody looks at the page: a browser opens six connections to a router, whatever the
 * number of its tabs.
 *
 * `told(picture, ahead)`, whenever something changed: `ahead` is how many seconds the router's clock is before this one.
 * `away(why)`: it is asked again. `refused(message)`: it waits for `again`, which is returned.
 */
export function watch({ told, away, refused }) {
  const picture = blank();
  let stream = null;
  const begin = () => {
    stream = follow("/api/fleet?watch", headers, {
      event: (name, data) => {
        lay(picture, name, data);
        told(picture, data.now_s - Date.now() / 1000);
      },
      live: () => {},
      lost: (why) => away(why),
      refused: (_, message) => refused(message),
    });
  };
  document.addEventListener("visibilitychange", () => {
    stream?.stop();
    stream = null;
    if (!document.hidden) begin();
  });
  if (!document.hidden) begin();
  return () => stream?.now();
}

/** Why there is no machine of that name, in the router's words. */
export async function whyNone(name) {
  try {
    await json("GET", `/m/${encodeURIComponent(name)}/v1/models`);
  } catch (error) {
    return error.message;
  }
  return "It has just come: one moment.";
}
