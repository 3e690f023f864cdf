// Films: a job each, polled until it is made. They come as GIFs, which loop as images do.
import {checked, dataUrl} from "./fetching.js";
import * as gallery from "./gallery.js";

export const PATH = "v1/videos", PLURAL = "films", SAVED = "gif";
const POLL_EVERY = 400;  // milliseconds

export function body(asked, number) {
  const {n, ...fields} = asked;
  return {...fields, seed: asked.seed + number, output_format: "gif"};
}

async function source(path, options) {
  return dataUrl(await (await checked(path, options)).blob());
}

async function one(asked, figure, headers, signal, {facts}) {
  const sent = {method: "POST", headers: {...headers, "Content-Type": "application/json"}, signal, body: JSON.stringify(asked)};
  let job = await (await checked(PATH, sent)).json();
  const path = `${PATH}/${job.id}`, text = `${asked.prompt} · ${job.seed}`;
  try {
    for (let told = 0; job.status === "queued" || job.status === "in_progress";) {
      await new Promise((resolve) => setTimeout(resolve, POLL_EVERY));
      job = await (await checked(path, {headers, signal})).json();
      if (job.progress === told || job.status !== "in_progress") continue;
      told = job.progress;
      // it may be made by the time that its estimate is asked for
      const estimate = await source(`${path}/content?variant=thumbnail`, {headers, signal}).catch(() => null);
      if (estimate) gallery.preview(figure, estimate, told / 100);
    }
    if (job.status === "failed") throw new Error(job.error.message);
    const film = await source(`${path}/content`, {headers, signal});
    gallery.show(figure, {source: film, text, file: `${job.seed}.${SAVED}`, settings: facts});
  } catch (error) {
    if (error.name === "AbortError") fetch(path, {method: "DELETE", headers});  // nobody waits for it any longer
    throw error;
  }
}

export async function make(asked, made, headers, signal, told) {
  await Promise.all(made.map((figure, number) => one(body(asked, number), figure, headers, signal, told)));
}
