"""Which engines this service works with: those of its own version, and of the minor version before or after.

So that one of the two can be updated first; further apart neither knows what the other leaves out.
"""

from __future__ import annotations

import re

from service_common.errors import FailedPreconditionError

_MAJOR_MINOR = re.compile(r"(\d+)\.(\d+)(\D|$)")


def check_version(engine: str, own: str, name: str) -> None:
    """Raises FailedPreconditionError, naming both versions, unless `engine` and `own` may work together.

    `name` is the engine's address.
    """
    ours, theirs = _MAJOR_MINOR.match(own), _MAJOR_MINOR.match(engine)
    assert ours is not None, own
    if theirs is None or theirs[1] != ours[1] or abs(int(theirs[2]) - int(ours[2])) > 1:
        raise FailedPreconditionError(
            f"the engine at {name} is of version {engine or '(none given)'}, this tokenizer of {own}; "
            "they may be one minor version apart: update the older one",
            reason="VERSION_SKEW",
        )
