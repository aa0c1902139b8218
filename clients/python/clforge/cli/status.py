"""`clforge status` and `clforge cancel`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer

from clforge.cli import exit_codes
from clforge.cli.formats import count, size
from clforge.cli.request_table import kv_line, output, request_table, requests_line
from clforge.client import Client
from clforge.errors import NotFoundError
from clforge.events import ModelInfo
from clforge.load import Load
from service_common.terminal import printable


async def status(client: Client, *, as_json: bool) -> int:
    """Prints what the server is, what it serves and what it is busy with; returns the exit code."""
    model, load, requests = await client.model_info(), await client.load(), await client.list_requests()
    if as_json:
        described = asdict(model), load_as_json(load), list(map(asdict, requests))
        names = ("model", "load", "requests")
        typer.echo(json.dumps({"target": client.target, **dict(zip(names, described, strict=True))}, indent=2))
        return exit_codes.OK
    for name, fact in _facts(client.target, model, load):
        typer.echo(f"{name:<10}{printable(fact)}")
    if requests:
        typer.echo()
        output().print(request_table(requests))
    return exit_codes.OK


async def cancel(client: Client, global_ids: Sequence[str], *, everything: bool, as_json: bool) -> int:
    """Cancels live requests and prints their ids; returns the exit code, FAILED if one of `global_ids` is not live.

    `everything`: all there are in place of `global_ids`; it is no failure when one ends by itself meanwhile.
    """
    cancelled, missing = [], []
    for global_id in [info.global_id for info in await client.list_requests()] if everything else global_ids:
        try:
            await client.cancel_request(global_id)
            cancelled.append(global_id)
        except NotFoundError as error:
            missing.append(global_id)
            if not everything:
                sys.stderr.write(f"clforge: {error}; clforge status shows those that are live\n")
    if as_json:
        typer.echo(json.dumps({"cancelled": cancelled, "not_live": missing}))
    else:
        for global_id in cancelled:
            typer.echo(f"cancelled {printable(global_id)}")
        if everything and not cancelled:
            typer.echo("no request is live")
    return exit_codes.FAILED if missing and not everything else exit_codes.OK


def load_as_json(load: Load) -> dict[str, Any]:
    """The load's figures by name."""
    return {**asdict(load), "kv_usage": load.kv_usage}


def _facts(target: str, model: ModelInfo, load: Load) -> list[tuple[str, str]]:
    weights = f"{count(model.num_parameters)} parameters, {size(model.weight_bytes)} of weights"
    since_start = f"{load.prompt_tokens:,} prompt tokens, {load.generation_tokens:,} generated"
    preempted = f", {load.num_preemptions} preemptions" if load.num_preemptions else ""
    return [
        ("server", f"{target}, clforge {model.version}"),
        ("model", f"{model.name} ({model.architecture}), {weights}, context {model.context_length:,} tokens"),
        ("device", model.device),
        ("requests", requests_line(load)),
        ("KV cache", kv_line(load)),
        ("so far", f"{since_start} in {load.num_steps:,} steps{preempted}"),
    ]
