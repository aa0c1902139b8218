// The Node runner: `node runner.js DESCRIPTORS ADDRESS`; ../README.md tells what it reads and writes.

import { createInterface } from "node:readline";
import grpc from "@grpc/grpc-js";
import { Case } from "./case.js";
import { TokenizerService } from "./protocol.js";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

async function ask(what) {
  say({ ask: what });
  await lines.next();
}

for (let line = await lines.next(); !line.done; line = await lines.next()) {
  const client = new TokenizerService(process.argv[3], grpc.credentials.createInsecure());
  say({ outcome: await new Case(client, JSON.parse(line.value), ask).run() });
  client.close();
}
