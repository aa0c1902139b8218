// The services as `buf build` describes them, and what a status with details says.

import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const definitions = protoLoader.loadFileDescriptorSetFromBuffer(readFileSync(process.argv[2]), {
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});

export const { TokenizerService } = grpc.loadPackageDefinition(definitions).clforge.v1;
export const SERVICE_PATH = "/clforge.v1.TokenizerService/";

// Code and details of an error; `details` are google.protobuf.Any.
export function failure(code, details) {
  const find = (name) => details.find((detail) => detail.type_url.endsWith(`/google.rpc.${name}`));
  const decode = (name) => find(name) && definitions[`google.rpc.${name}`].deserialize(find(name).value);
  return {
    code: grpc.status[code],
    reason: decode("ErrorInfo")?.reason ?? null,
    field: decode("BadRequest")?.field_violations[0].field ?? null,
    retry: find("RetryInfo") !== undefined,
  };
}

// The same of a status that ended a call, whose details come in the trailers.
export function callOutcome(status) {
  if (status.code === grpc.status.OK) return { code: "OK" };
  const [trailer] = status.metadata.get("grpc-status-details-bin");
  return failure(status.code, trailer ? definitions["google.rpc.Status"].deserialize(trailer).details : []);
}

const SAMPLING = ["temperature", "top_p"];
const STOPPING = ["max_tokens", "ignore_eos", "stop"];

// A Submit or GenerateRequest, less its number, of a step's text and parameters.
export function request({ text, params }) {
  const { model, timeout, ...others } = params;
  const pick = (names) => Object.fromEntries(Object.entries(others).filter(([name]) => names.includes(name)));
  const general = Object.entries(others).filter(([name]) => ![...SAMPLING, ...STOPPING].includes(name));
  return {
    model,
    prompt: { text },
    params: {
      ...Object.fromEntries(general),
      sampling: pick(SAMPLING),
      stopping: pick(STOPPING),
      ...(timeout && { timeout: { seconds: Math.trunc(timeout), nanos: Math.round((timeout % 1) * 1e9) } }),
    },
  };
}
