"""A CLForge server without a model, for tests of programs that use `clforge`.

def test_it_greets() -> None:
    with FakeServer(lambda prompt: ["Hello", " ", "world"]) as server, Client(server.target) as client:
        assert client.complete("Say hello").text == "Hello world"

It listens on a loopback port of its own and speaks the whole protocol, credits included, to clients of any kind:
`clforge.Client`, `clforge.sync.Client`, or generated stubs of any language.
"""

from clforge.testing.server import FakeServer

__all__ = ["FakeServer"]
