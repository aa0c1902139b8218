"""The tokens that are put before and after a text which the model is to read on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import SpecialTokens


class AddedByDefault(NamedTuple):
    """What a kind of vocabulary adds.

    bos, eos: whether begin- and end-of-text are, where the file does not say.
    sep: the separator comes after a text, unless the file says otherwise, and end-of-text never.
    bos_always: begin-of-text is, whatever the file says.
    """

    bos: bool = False
    eos: bool = False
    sep: bool = False
    bos_always: bool = False


@dataclass(frozen=True)
class AddedTokens:
    """The id that comes before a text, and the one that comes after it; None: there is none."""

    before: int | None
    after: int | None

    @classmethod
    def from_gguf(cls, reader: GGUFReader, special: SpecialTokens, default: AddedByDefault) -> Self:
        """Read `add_bos_token` and `add_sep_token` or `add_eos_token`.

        Raises ModelFileError where the file asks for a token that it does not have.
        """
        before = _wanted(reader, "add_bos_token", default.bos, "bos_token_id", special.bos_id)
        if default.sep:
            after = _wanted(reader, "add_sep_token", True, "seperator_token_id", special.sep_id)
        else:
            after = _wanted(reader, "add_eos_token", default.eos, "eos_token_id", special.eos_id)
        return cls(special.bos_id if default.bos_always else before, after)


def _wanted(reader: GGUFReader, name: str, default: bool, id_name: str, token_id: int | None) -> int | None:
    key = f"tokenizer.ggml.{name}"
    if key in reader and reader.get_bool(key) and token_id is None:
        reader.refuse(key, f"the file has no tokenizer.ggml.{id_name}")
    return token_id if reader.get_bool(key, default) else None
