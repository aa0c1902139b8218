"""The folders of k8s/ that are applied, as kustomize renders them, and what the checks ask of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from engine_service.config import EngineConfig
from service_common.options import command
from tokenizer_service.config import TokenizerConfig

ROOT = Path(__file__).parent.parent.parent
APPLIED = ("base", "own-model", "sample")
_CONFIGS: dict[str, type[EngineConfig] | type[TokenizerConfig]] = {
    "engine": EngineConfig,
    "tokenizer": TokenizerConfig,
}
_RENDERERS = (("kustomize", "build"), ("kubectl", "kustomize"))


@cache
def render(folder: str) -> tuple[dict[str, Any], ...]:
    """The objects that `kubectl apply -k k8s/FOLDER` would send; skips where nothing can render them."""
    found = next((renderer for renderer in _RENDERERS if shutil.which(renderer[0])), None)
    if found is None:
        pytest.skip("neither kustomize nor kubectl is installed, which render k8s/")
    done = subprocess.run([*found, str(ROOT / "k8s" / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(folder: str, kind: str) -> list[dict[str, Any]]:
    """The rendered objects of one kind."""
    return [each for each in render(folder) if each["kind"] == kind]


def parse(argv: list[str], environment: dict[str, str]) -> EngineConfig | TokenizerConfig:
    """What a container's arguments and environment mean, as the services themselves read them."""
    read: list[EngineConfig | TokenizerConfig] = []
    app = typer.Typer()
    app.command()(command(_CONFIGS[argv[0]])(read.append))
    done = CliRunner().invoke(app, argv[1:], env=environment)
    assert done.exit_code == 0, done.output
    return read[0]


@dataclass(frozen=True)
class Container:
    """A container with the pod that it is in."""

    spec: dict[str, Any]
    pod: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name within the pod."""
        return str(self.spec["name"])

    @property
    def config(self) -> EngineConfig | TokenizerConfig:
        """What its service is told."""
        return parse(self.spec["args"], {each["name"]: each["value"] for each in self.spec.get("env", ())})

    @property
    def mounts(self) -> dict[str, dict[str, Any]]:
        """Its volume mounts by the volumes' names."""
        return {mount["name"]: mount for mount in self.spec.get("volumeMounts", ())}

    def security(self, field: str) -> Any:
        """A field of its security context, which the pod's stands in for."""
        return self.spec.get("securityContext", {}).get(field, self.pod.get("securityContext", {}).get(field))

    def reaches(self, path: Path) -> bool:
        """Whether `path` is on one of its volumes."""
        return any(path.is_relative_to(mount["mountPath"]) for mount in self.mounts.values())

    def volume_below(self, path: str | Path) -> tuple[str, dict[str, Any]]:
        """The name of the volume, and the mount, in which `path` is a file or folder, and not the mount point."""
        [(name, mount)] = [
            each for each in self.mounts.items() if PurePosixPath(each[1]["mountPath"]) in PurePosixPath(path).parents
        ]
        return name, mount


@dataclass(frozen=True)
class Pod:
    """The one pod template of a folder."""

    template: dict[str, Any]

    @classmethod
    def of(cls, folder: str) -> Pod:
        """That of the folder's Deployment."""
        [deployment] = of_kind(folder, "Deployment")
        return cls(deployment["spec"]["template"])

    @property
    def spec(self) -> dict[str, Any]:
        """The pod's own fields."""
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def containers(self) -> Iterator[Container]:
        """All of them, in the order of their start."""
        return (Container(each, self.spec) for each in [*self.spec["initContainers"], *self.spec["containers"]])

    @property
    def engine(self) -> Container:
        """The engine's container."""
        return next(each for each in self.containers if each.name == "clforge-engine")

    @property
    def tokenizer(self) -> Container:
        """The tokenizer service's container."""
        return next(each for each in self.containers if each.name == "clforge-tokenizer")
