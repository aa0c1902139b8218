"""What `clforge devices`, `doctor` and `inspect` print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from clforge.cli import exit_codes
from engine_service.host.device_description import DeviceDescription
from engine_service.host.doctor import Finding, Level, examine
from engine_service.host.first_contact import NO_DEVICE, list_devices
from engine_service.host.inspection import inspect_model, render

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def inspect(model: Path, *, as_json: bool) -> int:
    """Prints what a model file holds; returns the exit code. ModelFileError for a file that is no sound GGUF."""
    report = inspect_model(model)
    typer.echo(report.as_json() if as_json else render(report))
    return exit_codes.OK


def devices(*, as_json: bool) -> int:
    """Prints the OpenCL devices; returns the exit code. ConfigError when the drivers cannot be asked."""
    found = list_devices()
    if as_json:
        typer.echo(json.dumps([asdict(device) for device in found], indent=2))
    else:
        typer.echo("\n".join(map(_description, found)) or NO_DEVICE)
    return exit_codes.OK if found else exit_codes.FAILED


def doctor(device: int, cache_dir: Path | None, *, as_json: bool) -> int:
    """Prints findings as they are made; returns the exit code, which is not 0 when one of them is a failure."""
    findings = []
    for finding in examine(device, cache_dir):
        findings.append(finding)
        if not as_json:
            Console(highlight=False, soft_wrap=True).print(_line(finding))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    return exit_codes.FAILED if any(finding.level is Level.FAIL for finding in findings) else exit_codes.OK


def _line(finding: Finding) -> Text:
    line = Text.assemble((f"{finding.level:<5}", _COLOURS[finding.level]))
    return line.append(f"{finding.check:<14}{finding.message}")


def _description(device: DeviceDescription) -> str:
    largest = f"buffers up to {device.max_allocation_bytes / 2**30:.1f} GiB"
    facts = f"{device.kind}, {device.compute_units} compute units, {largest}"
    return f"{device.index}: {device.name}: {facts}; {device.platform} {device.driver_version}"
