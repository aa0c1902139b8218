"""The Python runner: `python -m tests.conformance.python ADDRESS`; README.md tells what it reads and writes."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc

from clforge import Client
from tests.conformance.python.by_sdk import SdkCase
from tests.conformance.python.by_wire import WireCase

_DEFAULT_WINDOW = 256


def say(message: dict[str, Any]) -> None:
    """One line to the harness."""
    print(json.dumps(message), flush=True)


def ask(what: str) -> None:
    """Asks the harness for something; returns when it says that it is done."""
    say({"ask": what})
    sys.stdin.readline()


async def run(target: str, case: dict[str, Any]) -> dict[str, Any]:
    """One case's outcome."""
    if case["client"] == "wire":
        async with grpc.aio.insecure_channel(target) as channel:
            return await WireCase(channel, target, case).run()
    async with Client(target) as client:
        return await SdkCase(client, case.get("window", _DEFAULT_WINDOW), ask).run(case)


def main() -> None:
    """Runs the cases that come, one a line."""
    for line in iter(sys.stdin.readline, ""):
        say({"outcome": asyncio.run(run(sys.argv[1], json.loads(line)))})


if __name__ == "__main__":
    main()
