"""How much memory the KV cache may take: so many bytes, or a share of what is free."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from service_common.errors import ConfigError

_AMOUNT = re.compile(r"([0-9]{1,18})(%|KiB|MiB|GiB)?")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class KVBudget(NamedTuple):
    """An amount as `--kv-cache-bytes` takes it; `is_share` tells that it is in percent of the memory that is free."""

    amount: int
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """`text` as an amount: `1073741824`, `512MiB`, `25%`. ConfigError for anything else, and for nothing."""
        match = _AMOUNT.fullmatch(text)
        is_share = match is not None and match[2] == "%"
        amount = int(match[1]) * (1 if is_share else _UNITS[match[2]]) if match else 0
        if amount == 0 or (is_share and amount > 100):
            raise ConfigError(
                f"--kv-cache-bytes is {text!r}; it must be bytes from 1 up, in KiB, MiB or GiB if you like (2GiB), or "
                "a share of what is free from 1% to 100%"
            )
        return cls(amount, is_share)

    def num_bytes(self, free_bytes: int) -> int:
        """The budget in bytes where `free_bytes` are free."""
        return free_bytes * self.amount // 100 if self.is_share else self.amount
