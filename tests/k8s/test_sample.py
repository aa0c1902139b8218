"""The sample application's pod without a pod: its three containers' commands, at sockets of the test's own."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from service_common.addresses import private_socket_folder
from tests.integration.processes import process
from tests.integration.served import address_of, environment
from tests.k8s.rendered import ROOT

_K8S = ROOT / "k8s"


def _container(file: str, kind: str) -> dict[str, Any]:
    [container] = yaml.safe_load((_K8S / file).read_text(encoding="utf-8"))["spec"]["template"]["spec"][kind]
    return dict(container)


def _arguments(file: str, run: Path) -> list[str]:
    """A service's arguments, with `run` for /run, and kernels kept where all tests keep them."""
    arguments = [argument.replace("/run/", f"{run}/") for argument in _container(file, "initContainers")["args"]]
    return [argument for argument in arguments if not argument.startswith("--cache-dir=")]


@contextmanager
def _application(run: Path) -> Iterator[str]:
    """The application on a free port; its URL. SIGTERM ends it with exit code 0."""
    program, _, target, _ = _container("sample/deployment.yaml", "containers")["command"]
    assert program == "python"
    command = [sys.executable, str(_K8S / "sample" / "app.py"), target.replace("/run/", f"{run}/"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd="/") as application:
        assert application.stdout is not None
        try:
            port = application.stdout.readline().split()[-1]
            yield f"http://127.0.0.1:{port}"
            application.terminate()
            assert application.wait(10) == 0
        finally:
            application.kill()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def test_the_sample_answers_over_the_socket() -> None:
    """Engine, tokenizer and application meet at the sockets of the manifests, in folders that the services make."""
    engine, tokenizer = "components/engine/engine.yaml", "components/sidecar/tokenizer/tokenizer.yaml"
    with private_socket_folder() as run:
        for volume in ("clforge", "clforge-engine"):
            (run / volume).mkdir()
            (run / volume).chmod(0o777)  # as an emptyDir is
        with process(*_arguments(engine, run)) as first, process(*_arguments(tokenizer, run)) as second:
            assert {address_of(first), address_of(second)} == {
                f"unix:{run}/{volume}/private/socket" for volume in ("clforge", "clforge-engine")
            }
            with _application(run) as url:
                assert _get(f"{url}/healthz") == ""
                assert "85" in _get(f"{url}/?q=What+is+47+%2B+38%3F")
