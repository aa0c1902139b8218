"""From a constraint as asked for to a compiled grammar, off the event loop and the engine thread."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from llguidance import LLTokenizer

from engine_service.constraints.limits import TrialLimits
from engine_service.constraints.matcher import CompiledGrammar
from engine_service.constraints.spec import ConstraintSpec
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.constraints.tokenizer import make_matcher, make_tokenizer
from engine_service.constraints.trials import Trials
from service_common.errors import InvalidArgumentError, UnimplementedError

_KEPT_GRAMMARS = 64


class GrammarCompiler:
    """Compiles grammars on a thread of its own, one after the other, and keeps the latest, refusals too.

    `compile` belongs to the event loop's thread. Nothing is started before it is first called.
    """

    def __init__(self, read_tokens: Callable[[], TokenBytes], limits: TrialLimits | None = None) -> None:
        """`read_tokens` gives the vocabulary, filled up to the model's size; it is called once, on the thread."""
        self._read_tokens, self._limits = read_tokens, limits or TrialLimits()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._kept: OrderedDict[ConstraintSpec, asyncio.Future[CompiledGrammar]] = OrderedDict()

    async def compile(self, spec: ConstraintSpec) -> CompiledGrammar:
        """The grammar. InvalidArgumentError tells what is wrong with it or which limit it broke; UnimplementedError
        that the model has no end-of-generation token, UnavailableError that nothing can be compiled now."""
        found = self._kept.get(spec)
        if found is None:
            found = self._kept[spec] = asyncio.wrap_future(self._thread.submit(self.compile_now, spec))
            found.add_done_callback(lambda done: self._forget_failure(spec, done))
            if len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(spec)
        return await asyncio.shield(found)

    def compile_now(self, spec: ConstraintSpec) -> CompiledGrammar:
        """As `compile`, at once, on the calling thread, which must be the only one."""
        if not self._tokens.eog_ids:
            raise UnimplementedError(
                "the model has no end-of-generation token, by which a constrained output could end",
                reason="NO_END_TOKEN",
                field=spec.field,
            )
        matcher = make_matcher(self._tokenizer, self._trials.run(spec))
        if matcher.is_error():
            raise InvalidArgumentError(spec.field, spec.text, matcher.get_error())
        return CompiledGrammar(matcher, spec.field, len(self._tokens.texts))

    def close(self) -> None:
        """Ends thread and process; whoever waits in `compile` is cancelled."""
        self._thread.shutdown(cancel_futures=True)
        if "_trials" in self.__dict__:
            self._trials.close()

    def _forget_failure(self, spec: ConstraintSpec, done: asyncio.Future[CompiledGrammar]) -> None:
        """Refusals are kept; what another time may succeed is not."""
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, InvalidArgumentError) and self._kept.get(spec) is done:
            del self._kept[spec]

    @cached_property
    def _tokens(self) -> TokenBytes:
        return self._read_tokens()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return make_tokenizer(self._tokens)

    @cached_property
    def _trials(self) -> Trials:
        return Trials(self._tokens, self._limits)
