"""Cases by the generated stubs: the protocol as it is, with what no SDK would say."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, cast

import grpc

from clforge.errors import StatusError, from_rpc_error
from clforge.params import Params, params_to_proto, prompt_to_proto
from clforge.updates import UpdateReader
from clforge.v1.generation_pb2 import Cancel, Credit
from clforge.v1.tokenizer_pb2 import GenerateTextRequest, TextSubmit
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from tests.conformance.python.record import Record, failure

_SERVICE = "/clforge.v1.TokenizerService/"


class WireCase:
    """One case's run, on one stream."""

    def __init__(self, channel: grpc.aio.Channel, target: str, case: dict[str, Any]) -> None:
        self._channel, self._target, self._case = channel, target, case
        self._records: dict[int, Record] = {}
        self._labels: dict[int, int] = {}  # by the request's number on the stream, the last one that used it
        self._updates: dict[int, UpdateReader] = {}
        self._outcome: dict[str, Any] = {}

    async def run(self) -> dict[str, Any]:
        """The outcome of each request, of the stream, and of the call if there was one."""
        metadata = [(key, _metadata_value(key, value)) for key, value in self._case.get("metadata", {}).items()]
        stub = TokenizerServiceStub(self._channel)
        call: Any = stub.GenerateText(metadata=tuple(metadata), timeout=self._case.get("deadline"))
        reader = asyncio.create_task(self._read(call))
        for step in self._case["steps"]:
            await self._step(call, step)
        if not any(word in step for step in self._case["steps"] for word in ("keep_open", "half_close", "leave")):
            await call.done_writing()
        self._outcome["stream"] = await reader
        requests = {str(label): record.outcome() for label, record in self._records.items()}
        return {**requests, **self._outcome}

    async def _step(self, call: Any, step: dict[str, Any]) -> None:
        match step:
            case {"submit": first, "text": text, "params": params}:
                for label in range(first, first + step.get("count", 1)):
                    await self._submit(call, label, step.get("id", label), text, params)
            case {"cancel": label}:
                await call.write(GenerateTextRequest(cancel=Cancel(request_id=label)))
            case {"credit": label, "tokens": tokens}:
                await call.write(GenerateTextRequest(credit=Credit(request_id=label, tokens=tokens)))
            case {"say_nothing": _}:
                await call.write(GenerateTextRequest())
            case {"wait": label, "for": event}:
                await self._records[label].wait(event)
            case {"half_close": _}:
                await call.done_writing()
            case {"leave": _}:
                call.cancel()
            case {"call": method}:
                self._outcome["call"] = await self._ask(method)
            case {"keep_open": _}:
                pass
            case _:
                raise ValueError(f"no such step: {step}")

    async def _submit(self, call: Any, label: int, request_id: int, text: str, params: dict[str, Any]) -> None:
        self._records[label] = Record()
        self._labels[request_id] = label
        self._updates[label] = UpdateReader(1)
        known = cast(Params, {name: value for name, value in params.items() if name != "initial_credit"})
        generation = params_to_proto(known)
        if "initial_credit" in params:
            generation.initial_credit = params["initial_credit"]
        submit = TextSubmit(request_id=request_id, prompt=prompt_to_proto(text), params=generation)
        await call.write(GenerateTextRequest(submit=submit))

    async def _read(self, call: Any) -> dict[str, Any]:
        """Takes every update, held against the contract; how the stream ended."""
        try:
            async for response in call:
                for update in response.updates:
                    label = self._labels.setdefault(update.request_id, update.request_id)
                    record = self._records.setdefault(label, Record())
                    updates = self._updates.setdefault(label, UpdateReader(1))
                    try:
                        await record.take(updates.read(update))
                    except StatusError as error:
                        record.fail(error)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        return await self._status(call)

    async def _status(self, call: Any) -> dict[str, Any]:
        code = await call.code()
        if code is grpc.StatusCode.OK:
            return {"code": "OK"}
        trailers = await call.trailing_metadata()
        empty = grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(code, empty, trailers or empty, await call.details())
        return failure(from_rpc_error(error, self._target, answered=True))

    async def _ask(self, method: str) -> dict[str, Any]:
        """The outcome of a call with an empty message."""
        call: Any = self._channel.unary_unary(_SERVICE + method)
        try:
            await call(b"", timeout=10)
        except grpc.aio.AioRpcError as error:
            return failure(from_rpc_error(error, self._target, answered=True))
        return {"code": "OK"}


def _metadata_value(key: str, value: str) -> str | bytes:
    return base64.b64decode(value) if key.endswith("-bin") else value
