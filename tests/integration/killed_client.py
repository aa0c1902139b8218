"""A client to be killed: `python killed_client.py {engine|tokenizer} ADDRESS` opens requests in four states.

Prints the global id of each as it is accepted, then reads on for ever. By order of submission: one that soon pauses for
credit, one that decodes, one with a long prompt, and one that waits as long as the server runs three sequences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import grpc

from clforge.v1 import engine_pb2, tokenizer_pb2
from clforge.v1.engine_pb2_grpc import EngineServiceStub
from clforge.v1.generation_pb2 import GenerationParams, StopParams
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub

NUM_REQUESTS = 4
_LONG = 3000  # tokens of a prompt that takes a step each


def _requests() -> Iterator[tuple[int, list[int], GenerationParams]]:
    """Number, prompt and parameters of each request."""
    paused = GenerationParams(stopping=StopParams(ignore_eos=True), initial_credit=1)
    running = GenerationParams(stopping=StopParams(ignore_eos=True))
    yield 1, [5, 6, 7], paused
    yield 2, [5, 6, 7], running
    yield 3, [3 + index % 290 for index in range(_LONG)], running
    yield 4, [5, 6, 7], running


def _to_engine(address: str) -> Any:
    stub = EngineServiceStub(grpc.insecure_channel(address))
    sha256 = stub.GetModelInfo(engine_pb2.EngineServiceGetModelInfoRequest()).model_info.vocab_sha256

    def messages() -> Iterator[engine_pb2.GenerateTokensRequest]:
        for request_id, ids, params in _requests():
            submit = engine_pb2.TokenSubmit(request_id=request_id, token_ids=ids, params=params, vocab_sha256=sha256)
            yield engine_pb2.GenerateTokensRequest(submit=submit)

    return stub.GenerateTokens(messages())


def _to_tokenizer(address: str) -> Any:
    def messages() -> Iterator[tokenizer_pb2.GenerateTextRequest]:
        for request_id, ids, params in _requests():
            prompt = tokenizer_pb2.Prompt(token_ids=tokenizer_pb2.TokenIds(ids=ids))
            submit = tokenizer_pb2.TextSubmit(request_id=request_id, prompt=prompt, params=params)
            yield tokenizer_pb2.GenerateTextRequest(submit=submit)

    return TokenizerServiceStub(grpc.insecure_channel(address)).GenerateText(messages())


def main(door: str, address: str) -> None:
    """Runs until killed."""
    for response in {"engine": _to_engine, "tokenizer": _to_tokenizer}[door](address):
        for update in response.updates:
            if update.HasField("accepted"):
                sys.stdout.write(f"{update.accepted.global_id}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
