"""Channel and server options."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from service_common import rpc


def test_every_option_is_known_to_grpc() -> None:
    """gRPC ignores options that it does not know, so each name has to be among those in its library."""
    assert unknown_options(rpc) == []


def unknown_options(module: ModuleType) -> list[str]:
    """The options that a module names, of which there are several, and gRPC does not have."""
    names = set(re.findall(r'"(grpc\.[a-z0-9_.]+)"', Path(module.__file__ or "").read_text(encoding="utf-8")))
    spec = importlib.util.find_spec("grpc._cython.cygrpc")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).read_bytes()
    assert len(names) > 5
    return [name for name in sorted(names) if name.encode() not in library]
