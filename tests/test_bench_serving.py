"""The serving bench: arithmetic, limits, reports, and each part once on a tiny model. No claim about speed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients, deltas, encoding, overload, prefix, scheduler, speculation, stall
from benchmarks.parts import Limit
from benchmarks.report import percentile
from benchmarks.serving_report import is_disturbed, markdown, summarised, table_rows
from benchmarks.stall import Window
from engine_service.bench.machine import ROOT, busy_seconds
from engine_service.bench.protocol import BenchError
from service_common.gguf_reader import GGUFReader
from tests.gguf_builder import tiny_llama, write_gguf
from tests.tokenizer_service.vocabulary_builder import bpe_keys, spm_keys
from tokenizer_service.vocabulary import Vocabulary

_LIMITS = {"p99_ms": Limit(50.0), "speedup": Limit(20.0, is_floor=True)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a context that the small loads fit."""
    path = tmp_path_factory.mktemp("serving") / "tiny.gguf"
    tiny_llama(path, seed=3, layers=1, context_length=4096)
    return path


def entry(rounds: list[dict[str, float]], *, other_cpus: float = 0.0) -> dict[str, Any]:
    """A part's entry in the results."""
    machine = {"cpu": "a CPU", "cpus": 2, "threads": 2, "load_1min": 0.1}
    facts = {"model": "tiny.gguf", "machine": machine, "commit": "0123456789ab", "other_cpus": other_cpus}
    return {**summarised(rounds, _LIMITS), **facts}


def test_percentile_is_the_nearest_rank() -> None:
    """The 99th percentile of 200 values leaves two above it; of few values it is the largest."""
    assert percentile([float(value) for value in range(200, 0, -1)], 99) == 198.0
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0], 1) == 3.0


def test_gaps_are_those_of_one_request_within_the_window() -> None:
    """A token that came before the window, or of another request, is no neighbour."""
    gaps = Window(1.0, 4.0).gaps([[0.5, 1.0, 2.0, 3.5, 9.0], [1.25, 1.75], [2.0]])
    assert gaps == [1.0, 1.5, 0.5]


def test_medians_are_held_against_limits() -> None:
    """One bad round of three breaks no limit; floors are floors."""
    figures = summarised(
        [{"p99_ms": 10.0, "speedup": 30.0}, {"p99_ms": 90.0, "speedup": 10.0}, {"p99_ms": 20.0, "speedup": 15.0}],
        _LIMITS,
    )["figures"]
    assert figures["p99_ms"] == {"median": 20.0, "rounds": [10.0, 90.0, 20.0], "limit": "≤ 50", "kept": True}
    assert (figures["speedup"]["median"], figures["speedup"]["kept"]) == (15.0, False)


def test_page_shows_figures_limits_and_circumstances() -> None:
    """A row per figure with its spread and limit, and what each part was measured on."""
    page = markdown({"prefix": entry([{"first_ms": 2800.0, "speedup": 40.0}, {"first_ms": 3000.0, "speedup": 44.0}])})
    assert "| prefix | speedup | 42 | 40 | 44 | ≥ 20 | yes |" in page
    assert "| prefix | first_ms | 2,900 | 2,800 | 3,000 |  |  |" in page
    for fact in ("tiny.gguf", "0123456789ab", "a CPU", "load before 0.1"):
        assert fact in page


def test_figures_that_others_disturbed_are_marked() -> None:
    """Other processes' work beside a part marks all its figures."""
    quiet, loud = entry([{"p99_ms": 1.0}], other_cpus=0.02), entry([{"p99_ms": 1.0}], other_cpus=0.8)
    assert [is_disturbed(quiet), is_disturbed(loud)] == [False, True]
    assert table_rows({"stall": loud})[1][2] == "1 !"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell how busy it is")
def test_busy_seconds_count_this_process() -> None:
    """Work done here shows in the machine's sum."""
    before = busy_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert busy_seconds() - before > 0.2


def test_prefix_part_measures_hits(model: Path) -> None:
    """All prompts but the first are found in the cache, or there is no figure."""
    figures = prefix.measure(model, 1, prefix.PrefixLoad(shared_len=300, num_requests=4))
    assert figures.keys() == {"first_ms", "others_ms", "others_worst_ms", "speedup"}
    assert figures["speedup"] == figures["first_ms"] / figures["others_ms"]
    assert figures["others_ms"] <= figures["others_worst_ms"]


def test_stall_part_measures_both_sides(model: Path) -> None:
    """Tokens of running requests are timed with and without prompts coming in; requests that end too soon are told."""
    load = stall.StallLoad(num_running=2, running_prompt_len=8, num_prompts=1, prompt_len=1500, idle_seconds=0.2)
    figures = stall.measure(model, 1, load)
    assert figures["p99_ratio"] == figures["busy_p99_ms"] / figures["idle_p99_ms"]
    assert min(figures.values()) > 0
    with pytest.raises(BenchError, match="a running request ended"):
        stall.measure(model, 1, load._replace(running_prompt_len=4060))


def test_overload_part_measures_refusals(model: Path) -> None:
    """More is asked than is served: some is refused, the rest ends well, and memory is measured twice."""
    load = overload.OverloadLoad(
        max_num_seqs=2,
        max_queued_requests=2,
        max_tokens=100,
        capacity_seconds=0.5,
        overload_seconds=1.0,
        first_sample_seconds=0.5,
    )
    figures = overload.measure(model, 1, load)
    assert figures["num_failed"] == 0
    assert min(figures["num_accepted"], figures["num_refused"]) > 0
    assert 0 < figures["refusal_p50_ms"] <= figures["refusal_p99_ms"]
    assert min(figures["engine_mib_early"], figures["tokenizer_mib_late"]) > 1


def test_overload_without_refusals_is_none() -> None:
    """A server that took everything was not overloaded, and has no time of refusal."""
    memory = {"engine": 1, "tokenizer": 1}
    with pytest.raises(BenchError, match="all of 7 requests were served"):
        overload.figures(1.0, overload.Tally(num_accepted=7), memory, memory)


def test_scheduler_part_measures_full_steps() -> None:
    """Steps with all sequences running are timed."""
    cost = scheduler.measure(num_running=8, num_steps=50)
    assert 0 < cost.median <= cost.p99
    assert scheduler.figures(cost) == pytest.approx({"step_p50_us": cost.median * 1e6, "step_p99_us": cost.p99 * 1e6})


def test_clients_part_measures_each_sdk(model: Path) -> None:
    """Rate and processor time for each SDK whose language is here."""
    figures = clients.measure(model, clients.ClientLoad(num_requests=4, max_tokens=40))
    names = ("tokens_per_s", "cpu_us_per_token", "tokenizer_cpu_us_per_token")
    sdks = ["python", "go"] if shutil.which("go") else ["python"]
    assert list(figures) == [f"{sdk}_{name}" for sdk in sdks for name in names]
    assert min(figures[f"{sdk}_tokens_per_s"] for sdk in sdks) > 0


def test_tokenizer_part_measures_deltas(model: Path) -> None:
    """Each number of streams has its rate, its processor time and its delays, through the service and without it."""
    load = deltas.DeltaLoad(stream_counts=(2,), warm_up_seconds=0.2, seconds=0.5, step_seconds=0.02)
    figures = deltas.measure(model, load)
    rates = [f"{prefix}{name}_2" for prefix in ("", "raw_") for name in ("deltas_per_s", "cpu_us_per_delta")]
    delays = [f"{prefix}_p{percent}_ms_2" for prefix in ("added", "raw") for percent in (50, 99)]
    assert figures.keys() == {*rates, *delays}
    assert min(figures[name] for name in rates) > 0


def test_tokenizer_part_measures_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and the bare library, on the repository's own prose and code and a vocabulary's texts."""
    monkeypatch.setattr(encoding, "SECONDS", 0.01)
    path, texts_path = tmp_path / "bpe.gguf", tmp_path / "texts"
    write_gguf(path, "llama", bpe_keys(), {})
    texts_path.write_text("hello \u4f60", encoding="utf-8")
    texts = encoding.sample_texts(texts_path)
    assert texts[-1].endswith("hello \u4f60")
    rates = encoding.measure(path, texts[-2:], None)
    assert rates.keys() == {"ours", "tokenizers"}
    assert min(rates.values()) > 0


@pytest.mark.parametrize("keys", [bpe_keys(), spm_keys()])
def test_the_bare_library_does_the_same_work(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Its ids are ours, so that the figures can be compared."""
    write_gguf(tmp_path / "v.gguf", "llama", keys, {})
    with GGUFReader(tmp_path / "v.gguf") as reader:
        bare, ours = encoding.bare_tokenizer(reader), Vocabulary.from_gguf(reader)
    for text in ("hello", "the  and\n the\u4f60"):
        assert bare.encode_batch_fast([text])[0].ids == ours.encode(text, add_special=False)


def test_one_part_leaves_the_others_results_alone(tmp_path: Path) -> None:
    """`--only` renews one entry of the file, and the page has them all."""
    output = tmp_path / "serving.json"
    output.write_text(json.dumps({"prefix": entry([{"speedup": 42.0}])}))
    options = ["--only", "scheduler", "--rounds", "1", "--json", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *options], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    assert list(results) == ["prefix", "scheduler"]
    assert results["scheduler"]["figures"]["step_p50_us"]["limit"] == "≤ 500"
    assert "| prefix | speedup | 42 |" in output.with_suffix(".md").read_text(encoding="utf-8")
    assert "step_p99_us" in done.stdout


def test_missing_model_is_one_line(tmp_path: Path) -> None:
    """A server that cannot start ends the bench with exit code 2 and no traceback."""
    options = ["--only", "prefix", "--model", str(tmp_path / "missing.gguf"), "--json", str(tmp_path / "r.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *options], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "missing.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_drafts_are_right_as_often_as_asked(model: Path) -> None:
    """The whole answer, or none of it, comes from drafts; the answer is checked by the part itself."""
    load = speculation.SpeculationLoad(acceptances=(1.0, 0.0), prompt_len=16, max_tokens=24, num_pairs=1)
    figures = speculation.measure(model, 1, load)
    assert (figures["accepted_share_100"], figures["accepted_share_0"]) == (1.0, 0.0)
    assert min(figures["plain_tokens_per_s"], figures["speedup_100"], figures["speedup_0"]) > 0
