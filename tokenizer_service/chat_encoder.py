"""From a conversation to token ids: special tokens concealed, rendered by the model's template, encoded."""

from __future__ import annotations

from typing import NamedTuple

from clforge.v1.generation_pb2 import Chat
from service_common.errors import ChatTemplateError
from tokenizer_service.conversation import said
from tokenizer_service.encoder import Encoder
from tokenizer_service.render_limits import RenderLimits
from tokenizer_service.special_guard import Concealed
from tokenizer_service.template_renderer import RenderError, TemplateRenderer
from tokenizer_service.validation import check_text_size
from tokenizer_service.vocabulary_fetch import EncodingVocabulary


class RenderedChat(NamedTuple):
    """What the template made of a conversation, and the token ids of that."""

    text: str
    token_ids: list[int]


class ChatEncoder:
    """Owns the process that renders. Belongs to the event loop; large conversations go to `encoder`'s thread."""

    def __init__(self, encoder: Encoder, *, max_prompt_bytes: int, limits: RenderLimits | None = None) -> None:
        """`max_prompt_bytes` bounds the rendered text, and so do `limits`, by default those of RenderLimits."""
        self._encoder = encoder
        self._max_prompt_bytes = max_prompt_bytes
        self.renderer = TemplateRenderer(limits or RenderLimits())

    async def encode(self, chat: Chat, encoding: EncodingVocabulary, field: str) -> RenderedChat:
        """Renders and encodes `chat`, which has been checked and is the request's `field`.

        ChatTemplateError tells what the template says or which limit it broke, OutOfRangeError that the text is too
        long for a prompt; see also TemplateRenderer.render.
        """
        source = encoding.chat_template.source_for(has_tools=bool(chat.tools), field=field)

        def prepare() -> tuple[bytes, Concealed]:
            concealed = encoding.guard.conceal(said(chat), beside=source)
            vocabulary = encoding.vocabulary
            own = {"bos_token": vocabulary.bos_text, "eos_token": vocabulary.eos_text}
            return self.renderer.request(source, concealed.value | own), concealed

        try:
            request, concealed = await self._encoder.run(prepare, chat.ByteSize())
            answer = await self.renderer.render(request)
            return await self._encoder.run(
                lambda: self._finish(self.renderer.text(answer), concealed, encoding, field), len(answer)
            )
        except RenderError as error:
            reason = "CHAT_TEMPLATE_LIMIT" if error.broke_limit else "CHAT_TEMPLATE"
            raise ChatTemplateError(str(error), field=field, reason=reason) from error

    async def close(self) -> None:
        """Ends the process that renders. Nobody may be waiting for it."""
        await self.renderer.close()

    def _finish(self, rendered: str, concealed: Concealed, encoding: EncodingVocabulary, field: str) -> RenderedChat:
        text = rendered.translate(concealed.table)
        check_text_size(text, field, self._max_prompt_bytes)
        return RenderedChat(text, encoding.vocabulary.encode_chat(rendered, concealed.table))
