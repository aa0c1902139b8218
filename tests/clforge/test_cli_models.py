"""`clforge models`: which files are found, and what is said of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clforge.cli import exit_codes, models
from service_common.errors import ConfigError
from tests.gguf_builder import tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model, a link to it, a file that is no model, one that is no file, and a loop of folders."""
    (tmp_path / "deep/er").mkdir(parents=True)
    tiny_llama(tmp_path / "deep/er/tiny.GGUF", seed=1)
    (tmp_path / "link.gguf").symlink_to("deep/er/tiny.GGUF")
    (tmp_path / "junk\x1b[31m.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    (tmp_path / "broken.gguf").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_text("GGUF")
    (tmp_path / "deep/loop").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.gguf")
    return tmp_path


def test_each_model_is_told_once_with_what_it_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no sound GGUF is told of with the reason, and harms nothing."""
    assert models.models([folder], as_json=True) == exit_codes.OK
    junk, tiny = sorted(json.loads(capsys.readouterr().out), key=lambda each: each["problem"] is None)
    assert (tiny["architecture"], tiny["problem"]) == ("llama", None)
    assert tiny["num_parameters"] > 0
    assert tiny["file_bytes"] == (folder / "deep/er/tiny.GGUF").stat().st_size
    assert "junk" in junk["problem"]
    assert junk["architecture"] is None


def test_the_table_names_every_file_without_control_characters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it can be served stands beside it; a file may be named itself."""
    assert models.models([folder], as_json=False) == exit_codes.OK
    assert models.models([folder / "link.gguf"], as_json=False) == exit_codes.OK
    out = capsys.readouterr().out
    assert "llama" in out
    assert "no:" in out
    assert "\x1b" not in out


def test_a_scan_is_bounded_and_a_missing_folder_is_wrong_usage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However much lies there; where nothing is found a line says so."""
    monkeypatch.setattr(models, "_MAX_DEPTH", 0)
    assert [path.name for path in models.find([folder]) if "junk" not in path.name] == ["link.gguf"]
    monkeypatch.setattr(models, "_MAX_ENTRIES", 0)
    assert models.models([folder], as_json=False) == exit_codes.OK
    assert "no GGUF file in" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="nowhere"):
        models.models([folder / "nowhere"], as_json=False)
