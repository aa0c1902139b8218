"""The bench: arithmetic, turns, reports, and one run of each side on a tiny model. No claim about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.models import BenchModel, find_shared_data, make_model
from benchmarks.plots import plot_ratios
from benchmarks.report import markdown
from engine_service.bench import workloads
from engine_service.bench.config import PEER_VARIABLE
from engine_service.bench.figures import Figure, bandwidth_rows, figure_rows, profile_rows, size_rows
from engine_service.bench.machine import ROOT
from engine_service.bench.peer import check_peer, peer_build, peer_command
from engine_service.bench.protocol import BenchError, Side, SideProcess, Timed
from engine_service.bench.workloads import (
    CHUNK_GROWTH,
    DECODE_1,
    DECODE_8,
    NUM_WARM_UPS,
    PREFILL,
    PROMPT_LEN,
    Growth,
    Workload,
    measure,
    random_prompts,
)
from tests.gguf_builder import tiny_llama

_ANSWERS = """
import json, sys
print(json.dumps({"progress": 0.5}), flush=True)
print(json.dumps({"ready": {"vocab_size": 302}}), flush=True)
for line in sys.stdin:
    arguments = json.loads(line)["arguments"]
    reply = {"error": "no room"} if arguments.get("group") == "full" else {"result": [8, 0.5]}
    print(json.dumps(reply), flush=True)
"""

_CROWDED = """
import hashlib, json, os, sys, threading, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
data, ended = bytes(1 << 20), threading.Event()
def work():
    while not ended.is_set():
        hashlib.sha256(data)  # without the interpreter's lock
threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
print(json.dumps({"ready": {}}), flush=True)
sys.stdin.readline()
for thread in threads:
    thread.start()
time.sleep(0.5)
print(json.dumps({"result": [1, 0.5]}), flush=True)
time.sleep(1)
"""


class RecordingSide:
    """A Side that takes a second for everything and writes down what it was asked."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name, self.log = name, log
        self.prompts: list[Sequence[int]] = []

    def prefill(self, prompt_ids: Sequence[int]) -> Timed:
        """One prompt in one second."""
        self.log.append((self.name, "prefill"))
        self.prompts.append(prompt_ids)
        return Timed(len(prompt_ids), 1.0)

    def start(self, group: str, prompts: Sequence[Sequence[int]], max_len: int) -> None:
        """Writes the prompts down."""
        self.log.append((self.name, f"start {group} to {max_len}"))
        self.prompts.extend(prompts)

    def decode(self, group: str, num_steps: int) -> Timed:
        """As many seconds as this was asked for anything."""
        self.log.append((self.name, f"decode {group}"))
        return Timed(num_steps, float(len(self.log)))

    def copy(self) -> Timed:
        """A hundred bytes in one second."""
        self.log.append((self.name, "copy"))
        return Timed(100, 1.0)

    def profile(self, name: str, num_seqs: int, prompt_len: int, num_steps: int) -> dict[str, Any]:
        """Nothing."""
        raise NotImplementedError


class Silence:
    """A Listener that counts turns."""

    num_turns = 0

    def say(self, text: str) -> None:
        """Says nothing."""

    def advance(self) -> None:
        """Counts."""
        self.num_turns += 1


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def log() -> list[tuple[str, str]]:
    """What the recording sides were asked, in order."""
    return []


@pytest.fixture
def sides(log: list[tuple[str, str]]) -> dict[str, Side]:
    """Two recording sides with one log."""
    return {name: RecordingSide(name, log) for name in ("ours", "peer")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a context that the bench's workloads fit."""
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    tiny_llama(path, seed=3, layers=1, context_length=1024)
    return path


def run(sides: dict[str, Side], workload: Workload | Growth, listener: Silence | None = None) -> Figure:
    """Three pairs of a workload."""
    own = sides["ours"]
    assert isinstance(own, RecordingSide)
    return measure(sides, own, workload, 3, random_prompts(302, seed=1), listener or Silence())


def results(figure: Figure, *, with_peer: bool = True) -> dict[str, Any]:
    """Results of one model with one workload."""
    peer = {"version": "llama-cpp-python 1", "system_info": "AVX2 = 1", "command": "python -m x", "load_seconds": 1.0}
    engine = {"device": "cpu", "driver": "PoCL", "numerics_id": "clf1", "load_seconds": 2.0, "vocab_size": 302}
    machine = {"cpu": "a CPU", "cpus": 4, "threads": 2, "instructions": ["avx2"], "system": "Linux", "load_1min": 0.1}
    return {
        "tiny": {
            "decode_1": figure.to_json(),
            "machine": machine,
            "engine": {**engine, "tensor_bytes": 1_000_000, "device_bytes": 1_030_000},
            "peer": peer if with_peer else None,
            "commit": "0123456789ab",
        }
    }


def timed(*rates: int) -> list[Timed]:
    """Undisturbed measurements of a second each."""
    return [Timed(rate, 1.0) for rate in rates]


def run_bench(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the bench as `make bench` does."""
    command = [sys.executable, "-m", "benchmarks.bench", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **(environment or {})}
    )


def test_ratio_is_the_median_of_the_pairs_ratios() -> None:
    """A machine that slows down for two pairs changes the medians of the rates and not the ratio."""
    entry = Figure.of_rates(timed(20, 10, 40), timed(10, 5, 10)).to_json()
    assert (entry["ours"], entry["peer"], entry["ratio"], entry["ratio_spread"]) == (20.0, 10.0, 2.0, [2.0, 4.0])
    assert entry["ours_rates"] == [20.0, 10.0, 40.0]


def test_without_a_peer_there_is_no_ratio() -> None:
    """Nothing stands in for what was not measured."""
    entry = Figure.of_rates(timed(3, 1, 2), []).to_json()
    assert entry["ours"] == 2.0
    assert entry["peer"] is entry["ratio"] is entry["ratio_spread"] is None


def test_sides_take_turns_at_going_first(sides: dict[str, Side], log: list[tuple[str, str]]) -> None:
    """Every pair has both sides once, and whoever was second goes first in the next pair."""
    figure = run(sides, PREFILL)
    turns = [name for name, _ in log]
    assert turns == ["peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert figure.ours == figure.peer == [PROMPT_LEN] * 3


def test_warm_up_does_not_count(sides: dict[str, Side], log: list[tuple[str, str]]) -> None:
    """There are as many rates as pairs, and they are the last ones."""
    figure = run({"ours": sides["ours"]}, DECODE_8)
    assert len(log) == 1 + NUM_WARM_UPS + 3
    assert figure.ours == [DECODE_8.num_steps / seconds for seconds in (3.0, 4.0, 5.0)]


def test_both_sides_get_the_same_distinct_prompts(sides: dict[str, Side]) -> None:
    """Eight sequences have eight prompts, which are random, of full length, and the same on both sides."""
    run(sides, DECODE_8)
    ours, peer = (side.prompts for side in sides.values() if isinstance(side, RecordingSide))
    assert ours == peer
    assert len({tuple(prompt_ids) for prompt_ids in ours}) == DECODE_8.num_seqs
    assert all(len(prompt_ids) == PROMPT_LEN and max(prompt_ids) < 302 for prompt_ids in ours)


def test_one_sequence_is_measured_beside_copies(sides: dict[str, Side], log: list[tuple[str, str]]) -> None:
    """Each pair of `decode_1` holds one copy of memory, which the decode's bytes are compared with."""
    figure = run(sides, DECODE_1)
    assert log.count(("ours", "copy")) == NUM_WARM_UPS + 3
    bandwidth = figure._replace(ours=[10.0, 20.0, 40.0], copies=[100.0, 100.0, 400.0]).bandwidth(5, 4)
    assert bandwidth == {
        "file_bytes_per_s": 100.0,
        "copied_bytes_per_s": 100.0,
        "file_fraction": 0.5,
        "read_fraction": 0.4,
    }


def test_growth_compares_a_prompts_last_chunk_with_its_first(sides: dict[str, Side]) -> None:
    """Both sides compute the first chunk and then the whole of the same prompts, in each pair others."""
    listener = Silence()
    figure = run(sides, CHUNK_GROWTH, listener)
    assert (figure.unit, listener.num_turns) == ("times", NUM_WARM_UPS + 3)
    ours, peer = (side.prompts for side in sides.values() if isinstance(side, RecordingSide))
    assert ours == peer
    assert [len(prompt_ids) for prompt_ids in ours] == [PROMPT_LEN, CHUNK_GROWTH.prompt_len] * (NUM_WARM_UPS + 3)
    assert all(whole[:PROMPT_LEN] == first for first, whole in zip(ours[::2], ours[1::2], strict=True))
    taken = Figure.of_growth([(Timed(1, 2.0), Timed(1, 3.0))], [(Timed(1, 2.0), Timed(1, 6.0))]).to_json()
    assert (taken["ours"], taken["peer"], taken["ratio"]) == (1.5, 3.0, 0.5)


def test_results_have_the_shape_that_was_agreed(tmp_path: Path, model: Path) -> None:
    """A run without the peer writes, per model, each workload's rates beside machine, peer and commit."""
    output = tmp_path / "results.json"
    done = run_bench("--quick", "--no-peer", "--model", str(model), "--json", str(output))
    assert done.returncode == 0, done.stderr
    entry = json.loads(output.read_text(encoding="utf-8"))["tiny"]
    assert entry.keys() == {"prefill_512", "decode_1", "bandwidth", "machine", "engine", "peer", "commit"}
    assert entry["decode_1"].keys() == {
        "unit",
        "ours",
        "peer",
        "ratio",
        "ratio_spread",
        "ours_rates",
        "peer_rates",
        "disturbance",
    }
    assert len(entry["prefill_512"]["ours_rates"]) == 3
    assert entry["peer"] is None
    assert entry["engine"]["device_bytes"] <= 1.15 * entry["engine"]["tensor_bytes"]
    assert "prefill_512" in done.stdout
    assert "pair 3 of 3" in done.stderr
    assert "| tiny | decode_1 |" in output.with_suffix(".md").read_text(encoding="utf-8")


def test_our_engine_decodes_groups_of_sequences(model: Path) -> None:
    """Two groups live side by side; each measurement is of as many tokens as steps × sequences."""
    options = ["--model", str(model), "--threads", "1", "--context-length", "640", "--max-num-seqs", "5"]
    options += ["--num-cached-tokens", "3200"]
    prompts = random_prompts(302, seed=2)
    with SideProcess("ours", [sys.executable, "-m", "engine_service.bench.ours", *options]) as ours:
        ours.start("one", [prompts(PROMPT_LEN)], max_len=530)
        ours.start("three", [prompts(PROMPT_LEN) for _ in range(3)], max_len=530)
        assert ours.prefill(prompts(PROMPT_LEN)).num_tokens == PROMPT_LEN
        assert [ours.decode("three", 2).num_tokens, ours.decode("one", 3).num_tokens] == [6, 3]
        with pytest.raises(BenchError, match=r"^ours: .*tokens were generated"):
            ours.decode("one", 100)


@pytest.mark.skipif(PEER_VARIABLE not in os.environ, reason=f"{PEER_VARIABLE} names no Python with llama.cpp")
def test_peer_decodes_groups_of_sequences(model: Path) -> None:
    """llama.cpp does the same workloads."""
    prompts = random_prompts(302, seed=2)
    with SideProcess("peer", peer_command(Path(os.environ[PEER_VARIABLE]), model, 1)) as peer:
        peer.start("three", [prompts(PROMPT_LEN) for _ in range(3)], max_len=530)
        assert peer.prefill(prompts(PROMPT_LEN)).num_tokens == PROMPT_LEN
        assert [peer.decode("three", 2).num_tokens for _ in range(2)] == [6, 6]


def test_report_shows_every_figure() -> None:
    """Tables and page hold rates, ratio, spread, and what the weights take on the device."""
    document = results(Figure.of_rates(timed(20, 30, 40), timed(10, 10, 10)))
    assert figure_rows(document)[1] == ("tiny", "decode_1", "30", "10", "3.00", "2.00–4.00", "–")
    assert size_rows(document)[1] == ("tiny", "1,000,000", "1,030,000", "1.030", "2.0")
    page = markdown(document)
    for fact in ("0123456789ab", "a CPU", "llama-cpp-python 1", "AVX2 = 1", "python -m x", "| 3.00 |"):
        assert fact in page


def test_profile_shows_what_was_counted() -> None:
    """Rates and fractions of the machine's limits stand beside times; what was not counted is a gap."""
    matmul = {"kernel": "matmul", "launches": 29.0, "ms": 3.0, "gb_per_s": 20.0, "of_copy": 0.8}
    other = {"kernel": "norm", "launches": 1.0, "ms": 1.0, "gb_per_s": None, "of_copy": None}
    none = {"gop_per_s": None, "of_multiply_add": None}
    rows = profile_rows(
        {"sum_ms": 4.0, "kernels": [{**matmul, "gop_per_s": 100.0, "of_multiply_add": 0.5}, other | none]}
    )
    assert rows[1:] == [
        ("matmul", "29", "3", "75%", "20", "80%", "100", "50%"),
        ("norm", "1", "1", "25%", "–", "–", "–", "–"),
    ]


def test_report_shows_bandwidth_beside_copies() -> None:
    """The file's bytes per second, and what fraction of a copy's they are."""
    rates = {"file_bytes_per_s": 25e9, "copied_bytes_per_s": 30e9, "file_fraction": 0.83, "read_fraction": 0.8}
    rows = bandwidth_rows({"tiny": {"bandwidth": rates}, "other": {}})
    assert rows[1:] == [("tiny", "25.0", "30.0", "0.83", "0.80")]


def test_a_peer_without_its_facts_ends_the_bench() -> None:
    """No version, no instruction sets, no command line: no ratio; nor where the build lacks what the machine has."""
    peer = {"version": "llama-cpp-python 1", "system_info": "AVX2 = 1 | REPACK = 1 |", "command": "python x"}
    check_peer(peer, ["avx2"])
    for name in peer:
        with pytest.raises(BenchError, match=f"no {name}"):
            check_peer({**peer, name: ""}, ["avx2"])
    portable = {**peer, "system_info": "SSE3 = 1 | REPACK = 1 |"}
    check_peer(portable, [])
    with pytest.raises(BenchError, match=r"without AVX2 .*--no-binary"):
        check_peer(portable, ["avx2"])


def test_a_python_without_the_peer_names_the_remedy() -> None:
    """Whoever has no llama.cpp is told how to get it, and how to name another Python."""
    with pytest.raises(BenchError, match=rf"has no llama.cpp .*--no-binary.*{PEER_VARIABLE}"):
        peer_build(Path("/nowhere/python"))


def test_report_without_a_peer_has_gaps() -> None:
    """What was not measured is shown as such."""
    document = results(Figure.of_rates(timed(1500), []), with_peer=False)
    assert figure_rows(document)[1] == ("tiny", "decode_1", "1,500", "–", "–", "–", "–")
    assert "peer:" not in markdown(document)


def test_disturbed_figures_are_marked() -> None:
    """One measurement that other work disturbed marks the whole figure."""
    document = results(Figure.of_rates(timed(20, 20), [Timed(10, 1.0, 0.02), Timed(2, 1.0, 0.8)]))
    assert figure_rows(document)[1][-1] == "0.80 !"
    assert figure_rows(results(Figure.of_rates([Timed(10, 1.0, 0.02)], [])))[1][-1] == "0.02"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not tell how long threads wait")
def test_waiting_for_a_cpu_counts_as_disturbance() -> None:
    """Two threads of a child that share one CPU keep each other waiting for about half their time each."""
    with SideProcess("child", [sys.executable, "-c", _CROWDED]) as child:
        disturbance = child.decode("any", 1).disturbance
    assert disturbance is not None
    assert disturbance > 0.5


def test_child_answers_until_the_block_ends() -> None:
    """Progress, facts, results and errors of a child reach the bench; the child is gone afterwards."""
    seen: list[float] = []
    with SideProcess("child", [sys.executable, "-c", _ANSWERS], on_progress=seen.append) as child:
        assert (seen, child.facts) == ([0.5], {"vocab_size": 302})
        assert child.decode("any", 1).rate == 16.0
        with pytest.raises(BenchError, match=r"^child: no room$"):
            child.decode("full", 1)
        assert child.prefill([1])[:2] == (8, 0.5)
    assert child._process.returncode is not None


def test_child_that_dies_is_reported() -> None:
    """A child that ends while it is needed gives an error with its exit code, before and after it was ready."""
    with pytest.raises(BenchError, match="child ended with exit code 3"):
        SideProcess("child", [sys.executable, "-c", "raise SystemExit(3)"])
    dies_later = "print('{\"ready\": {}}', flush=True); raise SystemExit(4)"
    with (
        SideProcess("child", [sys.executable, "-c", dies_later]) as child,
        pytest.raises(BenchError, match="child ended with exit code 4"),
    ):
        child.decode("any", 1)


def fake_tool(folder: Path, body: str) -> Path:
    """Outside test data whose make_model.py is `body`."""
    (folder / "tools").mkdir()
    (folder / "tools" / "make_model.py").write_text("import pathlib, sys\nout = pathlib.Path(sys.argv[3])\n" + body)
    return folder


def test_models_are_made_once(tmp_path: Path) -> None:
    """A model that is there is taken as it is; only K-quants need the peer's Python."""
    shared = fake_tool(tmp_path, "out.write_text(out.read_text() + '+' if out.exists() else ' '.join(sys.argv[1:3]))\n")
    model, asked = BenchModel("tinyllama-1.1b", "Q4_K_M"), list[Path]()

    def peer_python() -> Path:
        asked.append(Path(sys.executable))
        return asked[-1]

    for _ in range(2):
        path = make_model(model, shared, peer_python, tmp_path / "models")
        assert path.read_text() == "tinyllama-1.1b Q4_K_M"
    make_model(BenchModel("tinyllama-1.1b", "Q8_0"), shared, peer_python, tmp_path / "models")
    assert len(asked) == 1


def test_half_made_model_is_not_kept(tmp_path: Path) -> None:
    """Where the tool fails, its last words are the error and no file is left."""
    shared = fake_tool(tmp_path, "out.write_text('half')\nsys.exit('the disk is full')\n")
    with pytest.raises(BenchError, match="the disk is full"):
        make_model(BenchModel("qwen2.5-0.5b", "Q8_0"), shared, lambda: Path(sys.executable), tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_missing_test_data_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no outside data is told to name a file."""
    monkeypatch.setenv("CLFORGE_TEST_DATA", str(tmp_path))
    with pytest.raises(BenchError, match="--model"):
        find_shared_data()


def test_picture_needs_ratios(tmp_path: Path) -> None:
    """Where nothing was compared there is nothing to draw."""
    assert not plot_ratios(results(Figure.of_rates(timed(20), []), with_peer=False), tmp_path / "ratios.svg")
    assert not list(tmp_path.iterdir())


def test_picture_shows_every_rate(tmp_path: Path) -> None:
    """A bar per model and workload."""
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    assert plot_ratios(results(Figure.of_rates(timed(20, 30), timed(10, 10))), picture := tmp_path / "ratios.svg")
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_users_mistakes_are_one_line(tmp_path: Path) -> None:
    """A missing file, and a peer that is none, end the bench with exit code 2 and no traceback."""
    missing = run_bench("--no-peer", "--model", str(tmp_path / "missing.gguf"), "--json", str(tmp_path / "r.json"))
    not_python = tmp_path / "python"
    no_peer = run_bench("--quick", "--json", str(tmp_path / "r.json"), environment={PEER_VARIABLE: str(not_python)})
    for done, words in ((missing, "missing.gguf"), (no_peer, "has no llama.cpp")):
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not done.stdout
