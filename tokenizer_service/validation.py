"""What the tokenizer service itself asks of a request; every other rule is the engine's, which checks it on arrival."""

from __future__ import annotations

from clforge.v1.generation_pb2 import GenerationParams, StopParams
from clforge.v1.tokenizer_pb2 import Prompt, TextSubmit
from service_common.errors import InvalidArgumentError, NotFoundError, OutOfRangeError
from tokenizer_service.bad_words import check_bad_words
from tokenizer_service.conversation import check_chat
from tokenizer_service.credit import MAX_CREDIT

MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 1024
MAX_TIMEOUT_SECONDS = 86400 * 365


def check_submit(submit: TextSubmit, *, model_name: str, max_prompt_bytes: int) -> None:
    """Raises a RequestError that names the first field of `submit` that cannot be served."""
    if submit.model and submit.model != model_name:
        raise NotFoundError(
            f"model {submit.model[:80]!r} is not served here; {model_name!r} is", reason="UNKNOWN_MODEL", field="model"
        )
    _check_prompt(submit.prompt, max_prompt_bytes)
    _check_params(submit.params)


def check_credit(tokens: int) -> None:
    """Raises InvalidArgumentError unless `tokens` is in [1, 2³¹)."""
    if not 1 <= tokens <= MAX_CREDIT:
        raise InvalidArgumentError("credit.tokens", tokens, f"must be between 1 and {MAX_CREDIT}")


def _check_prompt(prompt: Prompt, max_bytes: int) -> None:
    match prompt.WhichOneof("kind"):
        case None:
            raise InvalidArgumentError("prompt", "empty", "must be text, chat or token_ids")
        case "chat":
            check_chat(prompt.chat, "prompt.chat", max_bytes)
        case "token_ids" if not prompt.token_ids.ids:
            raise InvalidArgumentError("prompt.token_ids", "empty", "must hold at least one token")
        case "text":
            check_text_size(prompt.text, "prompt.text", max_bytes)


def check_text_size(text: str, field: str, max_bytes: int) -> None:
    """Raises OutOfRangeError for a text of more than `max_bytes` bytes of UTF-8."""
    num_bytes = len(text.encode())
    if num_bytes > max_bytes:
        raise OutOfRangeError(
            f"{field} has {num_bytes} bytes; at most {max_bytes} are taken", reason="PROMPT_TOO_LONG", field=field
        )


def _check_params(params: GenerationParams) -> None:
    if params.HasField("n") and not 1 <= params.n <= MAX_CHOICES:
        raise InvalidArgumentError("params.n", params.n, f"must be between 1 and {MAX_CHOICES}")
    if params.HasField("timeout") and not 0 < params.timeout.ToNanoseconds() <= MAX_TIMEOUT_SECONDS * 10**9:
        limit = f"must be positive and at most {MAX_TIMEOUT_SECONDS} s"
        raise InvalidArgumentError("params.timeout", f"{params.timeout.seconds} s", limit)
    check_bad_words(params.sampling)
    _check_stops(params.stopping)


def _check_stops(stopping: StopParams) -> None:
    if len(stopping.stop) > MAX_STOP_STRINGS:
        raise InvalidArgumentError(
            "params.stopping.stop", f"a list of {len(stopping.stop)}", f"must hold at most {MAX_STOP_STRINGS} strings"
        )
    for index, stop in enumerate(stopping.stop):
        num_bytes = len(stop.encode())
        if not 1 <= num_bytes <= MAX_STOP_STRING_BYTES:
            field = f"params.stopping.stop[{index}]"
            raise InvalidArgumentError(
                field, f"a string of {num_bytes} bytes", f"must have between 1 and {MAX_STOP_STRING_BYTES} bytes"
            )
