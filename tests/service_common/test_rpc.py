"""Channel and server options."""

from __future__ import annotations

import re
from pathlib import Path

from grpc._cython import cygrpc

from service_common import rpc


def test_every_option_is_known_to_grpc() -> None:
    """gRPC ignores options that it does not know, so each name has to be among those in its library."""
    names = set(re.findall(r'"(grpc\.[a-z0-9_.]+)"', Path(rpc.__file__).read_text(encoding="utf-8")))
    library = Path(cygrpc.__file__).read_bytes()
    assert len(names) > 5
    assert [name for name in sorted(names) if name.encode() not in library] == []
