"""The file of API keys: what it may hold, whose it must be, and that a key is found by its hash alone."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clforge import cli
from service_common.api_keys import MAX_PRIORITY, KeyLimits, find_key, key_entry, new_key, read_keys
from service_common.errors import ConfigError

_DIGEST = "ab" * 32


def written(path: Path, text: str) -> Path:
    """The file `path`, with that text, for its owner alone."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_new_key_is_found_by_its_entry(tmp_path: Path) -> None:
    """No two are alike, and the file does not hold them."""
    ours, other = new_key(), new_key()
    assert ours != other
    assert len(ours) > 43
    path = written(tmp_path / "keys", key_entry("alice", ours))
    assert ours not in path.read_text()
    keys = read_keys(path)
    found = find_key(keys, ours)
    assert found is not None
    assert (found.name, found.limits, found.is_expired()) == ("alice", KeyLimits(), False)
    assert find_key(keys, other) is None


def test_a_table_says_what_a_key_may_do(tmp_path: Path) -> None:
    """Limits, priorities and the time when it ends; a default priority is never above the highest."""
    path = written(
        tmp_path / "keys",
        f'[a]\nsha256 = "{_DIGEST}"\nexpires = 2020-01-31T00:00:00Z\nmax_requests = 3\nmax_waiting_tokens = 9\n'
        f'max_priority = 7\n[b]\nsha256 = "{"cd" * 32}"\nmax_priority = -5\n',
    )
    keys = read_keys(path)
    assert keys["a"].limits == KeyLimits(3, 9, 7, 0)
    assert (keys["a"].expires, keys["a"].is_expired()) == (datetime(2020, 1, 31, tzinfo=UTC), True)
    assert keys["b"].limits == KeyLimits(None, None, -5, -5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "is not TOML"),
        ("a = 1", r"\[a\] is no table"),
        ("[a]", r"\[a\]: sha256 must be 64 hexadecimal digits"),
        (f'[a]\nsha256 = "{_DIGEST.upper()}"', "in lower case"),
        (f'["a b"]\nsha256 = "{_DIGEST}"', "a key's name has 1 to 64 letters"),
        (f'[a]\nsha256 = "{_DIGEST}"\nmax_request = 1', "'max_request' is none of sha256, expires, max_requests"),
        (f'[a]\nsha256 = "{_DIGEST}"\nmax_requests = 0', "max_requests is 0; it must be a whole number from 1"),
        (f'[a]\nsha256 = "{_DIGEST}"\nmax_requests = true', "max_requests is True"),
        (f'[a]\nsha256 = "{_DIGEST}"\nmax_priority = 101', f"from -{MAX_PRIORITY} to {MAX_PRIORITY}"),
        (f'[a]\nsha256 = "{_DIGEST}"\ndefault_priority = 1', "default_priority is 1, above max_priority, 0"),
        (f'[a]\nsha256 = "{_DIGEST}"\nexpires = 2027-01-31', "a time with its zone"),
        (f'[a]\nsha256 = "{_DIGEST}"\n[b]\nsha256 = "{_DIGEST}"', "one sha256 under two names"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    """File, table, field and limit are told; a hash is not."""
    with pytest.raises(ConfigError, match=message) as caught:
        read_keys(written(tmp_path / "keys", text))
    assert _DIGEST not in str(caught.value).lower()


@pytest.mark.parametrize(("mode", "is_private"), [(0o600, True), (0o640, True), (0o644, False), (0o660, False)])
def test_others_may_neither_read_nor_write_it(tmp_path: Path, mode: int, is_private: bool) -> None:
    """Its group may read it, as Kubernetes' secrets are."""
    path = written(tmp_path / "keys", key_entry("alice", new_key()))
    path.chmod(mode)
    if is_private:
        assert read_keys(path)
    else:
        with pytest.raises(ConfigError, match=rf"other users may use .* \(mode {mode:04o}\)"):
            read_keys(path)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """`clforge keys` with `arguments`: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["clforge", "keys", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0), *capsys.readouterr()


def test_the_command_adds_keys_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes a private file, prints a key and nothing else, and refuses a name that is taken."""
    path = tmp_path / "keys"
    codes = [run(capsys, monkeypatch, name, "--file", str(path)) for name in ("alice", "bob", "alice", "no name")]
    assert [code for code, _, _ in codes] == [0, 0, 2, 2]
    assert "has a key 'alice' already" in codes[2][2]
    keys = read_keys(path)
    assert [find_key(keys, out.strip()) for _, out, _ in codes[:2]] == [keys["alice"], keys["bob"]]


def test_the_command_shows_an_entry_where_there_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key goes to standard output, its entry to standard error; as JSON both are one object."""
    _, out, err = run(capsys, monkeypatch, "alice")
    assert err == key_entry("alice", out.strip())
    _, out, _ = run(capsys, monkeypatch, "alice", "--json")
    made = json.loads(out)
    assert made["entry"] == key_entry(made["name"], made["key"])
