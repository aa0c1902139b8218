"""The fake server: what it can be told, and its RPCs. Threads, so that it suits whatever event loop clients use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
from google.rpc import status_pb2

from clforge.errors import StatusError, to_status
from clforge.testing.generation import Generation
from clforge.testing.prompts import decode, encode, prompt_text, render
from clforge.testing.stream import Stream
from clforge.v1 import generation_pb2, tokenizer_pb2
from clforge.v1.generation_pb2 import FINISH_REASON_ERROR, Accepted, Finished, GenerationParams, Update
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceServicer, add_TokenizerServiceServicer_to_server

_MAX_STREAMS = 128
_DETAILS_KEY = "grpc-status-details-bin"
_NAME = "fake"
_Context = grpc.ServicerContext


class FakeServer:
    """Answers every prompt by a function; used as `with FakeServer(answer) as server`.

    `answer` returns the pieces of text, one for each token, that continue a prompt: the text as given, token ids as the
    text of these bytes, a conversation as one line "role: content" for each turn. Each token takes `pace_seconds`. Its
    vocabulary is the 256 bytes. `target` is its address. Any thread may ask it what it saw.
    """

    def __init__(self, answer: Callable[[str], Sequence[str]], *, pace_seconds: float = 0.0) -> None:
        self._servicer = _Servicer(answer, pace_seconds)  # type: ignore[abstract]  # what it lacks is UNIMPLEMENTED
        self._server: grpc.Server | None = None
        self.target = ""

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(_MAX_STREAMS), options=[("grpc.so_reuseport", 0)])
        add_TokenizerServiceServicer_to_server(self._servicer, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops at once, as a crash would."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def fail(self, *errors: StatusError) -> None:
        """Lets each of the next generations fail, in order, with one of these errors, before its first token."""
        for error in errors:
            self._servicer.failures.put(to_status(error))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of all generations so far, as `answer` got them."""
        return tuple(self._servicer.prompts)

    @property
    def num_live(self) -> int:
        """Generations that run."""
        return self._servicer.num_live

    @property
    def num_sent_tokens(self) -> int:
        """Tokens sent so far, over all generations and choices."""
        return self._servicer.num_sent_tokens


class _Servicer(TokenizerServiceServicer):
    def __init__(self, answer: Callable[[str], Sequence[str]], pace_seconds: float) -> None:
        self._answer, self._pace_seconds = answer, pace_seconds
        self._lock = threading.Lock()
        self.failures: queue.SimpleQueue[status_pb2.Status] = queue.SimpleQueue()
        self.prompts: list[str] = []
        self.num_live = self.num_sent_tokens = 0

    def generate(self, generation: Generation, prompt: str, params: GenerationParams) -> None:
        """Runs a request to its end, in the thread of the caller."""
        with self._lock:
            self.num_live += 1
            self.prompts.append(prompt)
        try:
            try:
                generation.finish(Finished(reason=FINISH_REASON_ERROR, error=self.failures.get_nowait()))
                return
            except queue.Empty:
                pass
            num_prompt_tokens = len(prompt.encode())
            seed = params.sampling.seed
            generation.accept(
                Accepted(global_id="0" * 32, seed=seed, numerics_id=_NAME, num_prompt_tokens=num_prompt_tokens)
            )
            for num_tokens in generation.answer(self._answer(prompt), num_prompt_tokens, self._pace_seconds):
                with self._lock:
                    self.num_sent_tokens += num_tokens
        finally:
            with self._lock:
                self.num_live -= 1

    def GenerateText(
        self, request_iterator: Iterator[tokenizer_pb2.GenerateTextRequest], context: _Context
    ) -> Iterator[tokenizer_pb2.GenerateTextResponse]:
        stream = Stream(self.generate)
        context.add_callback(stream.cancel_all)
        threading.Thread(target=stream.read, args=(request_iterator,), daemon=True).start()
        for update in stream.updates():
            yield tokenizer_pb2.GenerateTextResponse(updates=[update])

    def Generate(
        self, request: tokenizer_pb2.GenerateRequest, context: _Context
    ) -> Iterator[tokenizer_pb2.GenerateResponse]:
        stream = Stream(self.generate)
        context.add_callback(stream.cancel_all)
        stream.submit(tokenizer_pb2.TextSubmit(prompt=request.prompt, params=request.params))
        stream.half_close()
        for update in stream.updates():
            yield tokenizer_pb2.GenerateResponse(updates=[update])

    def Complete(self, request: tokenizer_pb2.CompleteRequest, context: _Context) -> tokenizer_pb2.CompleteResponse:
        response = tokenizer_pb2.CompleteResponse()

        def collect(update: Update) -> None:
            while len(response.choices) <= update.choice:
                response.choices.add()
            choice = response.choices[update.choice]
            choice.text += update.delta.text
            choice.token_ids.extend(update.delta.token_ids)
            if update.HasField("finished"):
                choice.finished.CopyFrom(update.finished)
            if update.HasField("accepted"):
                response.accepted.CopyFrom(update.accepted)

        generation = Generation(0, request.params, collect)
        context.add_callback(generation.cancel)
        self.generate(generation, prompt_text(request.prompt), request.params)
        for choice in response.choices:
            if choice.finished.reason == FINISH_REASON_ERROR:
                _abort(context, choice.finished.error)
        return response

    def Encode(self, request: tokenizer_pb2.EncodeRequest, context: _Context) -> tokenizer_pb2.EncodeResponse:
        return tokenizer_pb2.EncodeResponse(sequences=map(encode, request.texts))

    def Decode(self, request: tokenizer_pb2.DecodeRequest, context: _Context) -> tokenizer_pb2.DecodeResponse:
        return tokenizer_pb2.DecodeResponse(texts=map(decode, request.sequences))

    def RenderChat(
        self, request: tokenizer_pb2.RenderChatRequest, context: _Context
    ) -> tokenizer_pb2.RenderChatResponse:
        text = render(request.chat)
        return tokenizer_pb2.RenderChatResponse(text=text, token_ids=encode(text))

    def GetModelInfo(
        self, request: tokenizer_pb2.GetModelInfoRequest, context: _Context
    ) -> tokenizer_pb2.GetModelInfoResponse:
        info = generation_pb2.ModelInfo(
            name=_NAME, architecture="none", vocab_size=256, context_length=1 << 20, numerics_id=_NAME
        )
        return tokenizer_pb2.GetModelInfoResponse(model_info=info)


def _abort(context: _Context, status: status_pb2.Status) -> None:
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.set_trailing_metadata(((_DETAILS_KEY, status.SerializeToString()),))
    context.abort(code, status.message)
