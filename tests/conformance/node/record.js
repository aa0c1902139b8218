// What one request of a case has brought so far, each update held against the contract as it comes.

import { failure } from "./protocol.js";

export class Record {
  constructor(pauseAt) {
    this.pauseAt = pauseAt;
    this.paused = false;
    this.numUngranted = 0; // tokens that came and were not granted anew
    this.nextSequence = 0;
    this.outcome = { end: null, num_tokens: 0, text: "" };
    this.seen = Object.fromEntries(["accepted", "delta", "finished"].map((event) => [event, deferred()]));
  }

  get ended() {
    return this.outcome.end !== null;
  }

  // Resolves when the event has come, or the end without it.
  wait(event) {
    return this.seen[event].promise;
  }

  take(update) {
    if (this.ended || update.sequence !== this.nextSequence) {
      throw new Error(`update ${update.sequence} came when ${this.ended ? "none" : this.nextSequence} was due`);
    }
    this.nextSequence += 1;
    if (update.event === "finished") {
      this.finish(update.finished);
      return;
    }
    if (update.event === "delta") {
      this.outcome.num_tokens += update.delta.num_tokens;
      this.outcome.text += update.delta.text;
      this.numUngranted += update.delta.num_tokens;
    }
    this.seen[update.event].resolve();
    this.paused ||= update.event === this.pauseAt;
  }

  finish({ reason, error }) {
    this.end(reason.replace("FINISH_REASON_", ""), error ? failure(error.code, error.details) : {});
  }

  fail(details) {
    this.end("ERROR", details);
  }

  end(end, details) {
    Object.assign(this.outcome, { end }, details);
    for (const event of Object.values(this.seen)) event.resolve();
  }
}

export function deferred() {
  const result = {};
  result.promise = new Promise((resolve) => {
    result.resolve = resolve;
  });
  return result;
}
