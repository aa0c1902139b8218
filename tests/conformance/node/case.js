// One case's run on one stream. Where the table says "sdk", it does what an SDK does: it grants as it reads.

import grpc from "@grpc/grpc-js";
import { callOutcome, request, SERVICE_PATH } from "./protocol.js";
import { deferred, Record } from "./record.js";

const DEFAULT_WINDOW = 256;
const READY_SECONDS = 30;

export class Case {
  constructor(client, description, ask) {
    this.client = client;
    this.description = description;
    this.ask = ask;
    this.isSdk = description.client === "sdk";
    this.window = description.window ?? DEFAULT_WINDOW;
    this.records = new Map(); // by label
    this.labels = new Map(); // by the request's number on the stream, the last one that used it
    this.outcome = {};
  }

  async run() {
    this.open();
    for (const step of this.description.steps) await this.step(step);
    if (this.isSdk) await Promise.all([...this.records.values()].map((record) => record.wait("finished")));
    if (!this.description.steps.some((step) => step.keep_open || step.half_close || step.leave)) this.call.end();
    const status = await this.status.promise;
    if (this.error) throw this.error;
    if (!this.isSdk) this.outcome.stream = callOutcome(status);
    for (const [label, record] of this.records) this.outcome[label] = record.outcome;
    return this.outcome;
  }

  open() {
    const { deadline, metadata = {} } = this.description;
    const sent = new grpc.Metadata();
    for (const [key, value] of Object.entries(metadata)) {
      sent.set(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
    }
    this.call = this.client.GenerateText(sent, deadline ? { deadline: Date.now() + deadline * 1000 } : {});
    this.status = deferred();
    this.listen(this.call, this.status, (update) => {
      const label = this.labels.get(update.request_id) ?? update.request_id;
      if (!this.records.has(label)) this.records.set(label, new Record());
      this.records.get(label).take(update);
      if (this.isSdk) this.grant(label);
    });
  }

  listen(call, status, take) {
    let answered = false;
    call.on("data", ({ updates }) => {
      answered = true;
      try {
        updates.forEach(take);
      } catch (error) {
        this.error = error;
        call.cancel();
      }
    });
    call.on("error", () => {}); // `status` tells
    call.on("status", (ended) => {
      if (this.isSdk && ended.code === grpc.status.UNAVAILABLE) this.lose(answered ? "CONNECTION_LOST" : "UNREACHABLE");
      status.resolve(ended);
    });
  }

  // What still runs has lost its server; the table has no stream that runs beside the plain door.
  lose(code) {
    for (const record of this.records.values()) {
      if (!record.ended) record.fail({ code });
    }
  }

  grant(label) {
    const record = this.records.get(label);
    if (record.paused || record.ended || record.numUngranted * 2 < this.window) return;
    this.call.write({ credit: { request_id: label, tokens: record.numUngranted } });
    record.numUngranted = 0;
  }

  async step(step) {
    const [name] = Object.keys(step);
    const label = step[name];
    switch (name) {
      case "submit":
        for (let index = 0; index < (step.count ?? 1); index += 1) this.submit(label + index, step);
        return;
      case "generate":
        return this.generate(label, step);
      case "wait":
        return this.records.get(label).wait(step.for);
      case "cancel":
        this.call.write({ cancel: { request_id: label } });
        return;
      case "credit":
        this.call.write({ credit: { request_id: label, tokens: step.tokens } });
        return;
      case "resume":
        this.resume(label);
        return;
      case "say_nothing":
        this.call.write({});
        return;
      case "half_close":
        this.call.end();
        return;
      case "leave":
        this.call.cancel();
        return;
      case "call":
        this.outcome.call = await this.callEmpty(label);
        return;
      case "sleep":
        return new Promise((resolve) => setTimeout(resolve, label * 1000));
      case "ask":
        return this.ask(label);
      case "reopen":
        return this.reopen();
      case "keep_open":
        return;
      default:
        throw new Error(`no such step: ${JSON.stringify(step)}`);
    }
  }

  submit(label, step) {
    const requestId = step.id ?? label;
    this.records.set(label, new Record(step.pause_at));
    this.labels.set(requestId, label);
    const submit = { ...request(step), request_id: requestId };
    if (this.isSdk) submit.params.initial_credit = this.window;
    this.call.write({ submit });
  }

  async generate(label, step) {
    const record = new Record();
    this.records.set(label, record);
    const status = deferred();
    this.listen(this.client.Generate(request(step)), status, (update) => record.take(update));
    await status.promise;
  }

  resume(label) {
    const record = this.records.get(label);
    record.pauseAt = undefined;
    record.paused = false;
    this.grant(label);
  }

  async reopen() {
    this.call.end();
    await this.status.promise;
    await new Promise((resolve, reject) => {
      this.client.waitForReady(Date.now() + READY_SECONDS * 1000, (error) => (error ? reject(error) : resolve()));
    });
    this.open();
  }

  // The outcome of a call with an empty message.
  callEmpty(method) {
    const identity = (bytes) => bytes;
    return new Promise((resolve) => {
      const call = this.client.makeUnaryRequest(SERVICE_PATH + method, identity, identity, Buffer.alloc(0), () => {});
      call.on("status", (status) => resolve(callOutcome(status)));
    });
  }
}
