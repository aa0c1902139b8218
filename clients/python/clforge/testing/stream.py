"""One client stream of the fake server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from clforge.testing.generation import Generation
from clforge.testing.prompts import prompt_text
from clforge.v1 import tokenizer_pb2
from clforge.v1.generation_pb2 import GenerationParams, Update


class Stream:
    """One client stream: a thread for each of its requests, and one queue of what they say."""

    def __init__(self, run: Callable[[Generation, str, GenerationParams], None]) -> None:
        """`run` takes a request to its end."""
        self._run = run
        self._said: queue.SimpleQueue[Update | None] = queue.SimpleQueue()
        self._generations: dict[int, Generation] = {}
        self._threads: list[threading.Thread] = []

    def read(self, messages: Iterator[tokenizer_pb2.GenerateTextRequest]) -> None:
        """Acts on what the client says until it says no more, or is gone."""
        try:
            for message in messages:
                kind = message.WhichOneof("message")
                if kind == "submit":
                    self.submit(message.submit)
                elif kind == "credit" and (generation := self._generations.get(message.credit.request_id)):
                    generation.grant(message.credit.tokens)
                elif kind == "cancel" and (generation := self._generations.get(message.cancel.request_id)):
                    generation.cancel()
        except grpc.RpcError:
            self.cancel_all()
        self.half_close()

    def submit(self, submit: tokenizer_pb2.TextSubmit) -> None:
        """Starts a request."""
        generation = self._generations[submit.request_id] = Generation(submit.request_id, submit.params, self._said.put)
        arguments = (generation, prompt_text(submit.prompt), submit.params)
        thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def half_close(self) -> None:
        """The client says no more: the stream ends with its last request."""

        def close() -> None:
            for thread in self._threads:
                thread.join()
            self._said.put(None)

        threading.Thread(target=close, daemon=True).start()

    def updates(self) -> Iterator[Update]:
        """What to tell the client, until the stream is done."""
        return iter(self._said.get, None)

    def cancel_all(self) -> None:
        """The client is gone."""
        for generation in tuple(self._generations.values()):
            generation.cancel()
