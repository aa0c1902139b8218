"""What the Dockerfile promises the manifests and takes from the tree."""

from __future__ import annotations

import re
import tomllib

from tests.k8s.rendered import ROOT

_DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_bases_are_exact_versions() -> None:
    """Every stage starts from an argument whose default names a whole version."""
    bases = dict(re.findall(r"^ARG (\w+)=(\S+)$", _DOCKERFILE, re.MULTILINE))
    assert {re.sub(r"\W", "", base) for base in re.findall(r"^FROM (\S+)", _DOCKERFILE, re.MULTILINE)} == set(bases)
    assert all(re.search(r":\d+\.\d+\.\d+(-|$)", image) for image in bases.values())


def test_the_build_context_holds_what_the_package_is_made_of() -> None:
    """.dockerignore lets through the packages, their links' targets, and what pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ignored, *lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n*\n")
    assert ignored.startswith("#")
    allowed = [ROOT / line[1:] for line in lines[0].splitlines() if line.startswith("!")]
    assert all(path.exists() for path in allowed)
    packages = {ROOT / folder for folder in project["tool"]["setuptools"]["package-dir"].values()}
    links = {path.resolve() for package in packages for path in package.rglob("*") if path.is_symlink()}
    named = {ROOT / name for name in (project["project"]["readme"], *project["project"]["license-files"])}
    for path in packages | links | named:
        assert any(path.is_relative_to(each) for each in allowed), f"{path} is not in the build context"
