"""`models`, `inspect`, `devices`, `doctor` and `bench`: what needs no server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from clforge.cli.config import BenchPeer
from clforge.cli.option_groups import Json
from engine_service.bundled import BUNDLED_MODEL

app = typer.Typer()

_Model = Annotated[
    Path, typer.Argument(help="A GGUF file; default: the bundled clforge-tiny", metavar="FILE", show_default=False)
]


@app.command()
def models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Where to look, folders below included; default: here, ~/models, and where Hugging Face and LM Studio "
            "keep what they download",
            metavar="[FOLDER]...",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the GGUF files in folders. Tells of each what it holds, and whether it can be served."""
    from clforge.cli import models as command

    sys.exit(command.models(folders or (), as_json=as_json))


@app.command()
def inspect(model: _Model = BUNDLED_MODEL, as_json: Json = False) -> None:
    """Show what a model file holds. Tells whether it can be served, and what its weights cost on the device."""
    from clforge.cli import machine

    sys.exit(machine.inspect(model, as_json=as_json))


@app.command()
def devices(as_json: Json = False) -> None:
    """List the OpenCL devices, as --device counts them."""
    from clforge.cli import machine

    sys.exit(machine.devices(as_json=as_json))


@app.command()
def doctor(
    device: Annotated[int, typer.Option(help="The device to test", min=0)] = 0,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of compiled kernels", metavar="DIR")] = None,
    as_json: Json = False,
) -> None:
    """Check whether this machine can serve. Cache folder, drivers, linker, a kernel, memory: each with its remedy."""
    from clforge.cli import machine

    sys.exit(machine.doctor(device, cache_dir, as_json=as_json))


@app.command()
def bench(
    model: _Model = BUNDLED_MODEL,
    against: Annotated[
        BenchPeer | None,
        typer.Option(help="Measure this, too, in turns; LLAMA_CPP_PYTHON names a Python that has llama-cpp-python"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write results there", metavar="FILE")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time each kernel, too, and hold it against what the machine can do")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: the quota", min=1)] = None,
    pairs: Annotated[int | None, typer.Option(help="Measurements of each workload; default: 5", min=1)] = None,
) -> None:
    """Measure tokens per second. Prefill, and decode of 1, 8 and 32 sequences; progress goes to standard error."""
    from clforge.cli.bench import BenchOptions, run

    sys.exit(run(model, BenchOptions(against, output, profile, threads, pairs)))
