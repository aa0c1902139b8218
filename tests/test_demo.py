"""`make demo` as a user runs it, once the virtual environment is there."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

from clforge import Logprob, TokenLogprobs
from examples.demo import Answer, Question, check
from tests.gguf_builder import tiny_llama
from tests.integration.served import environment

_DEMO = Path(__file__).parent.parent / "examples" / "demo.py"


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo to its end, in another folder than the tree's."""
    command = [sys.executable, str(_DEMO), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd="/", timeout=120, check=False)


def test_the_bundled_model_answers_the_demo_right() -> None:
    """Both processes say where they are, the conversation is shown, four answers are right, and a table sums up."""
    done = run_demo()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name:<9}  pid " in done.stdout for name in ("engine", "tokenizer"))
    assert (done.stdout.count("✓"), done.stdout.count("✗")) == (4, 0)
    told = done.stdout.partition("Tell me a story about a fox.\n")[2].partition("Four questions")[0]
    assert len(told.split()) > 50
    assert all(heading in done.stdout for heading in ("requests", "tokens/s", "first token, ms"))


def test_the_demo_fails_for_answers_that_are_wrong(tmp_path: Path) -> None:
    """A model of random weights makes it exit with 1, naming each question with the result that was expected."""
    model = tmp_path / "random.gguf"
    tiny_llama(model, seed=1, context_length=4096)
    done = run_demo(str(model))
    assert done.returncode == 1
    assert (done.stdout.count("✓"), done.stdout.count("✗")) == (0, 4)
    faults = done.stderr.splitlines()
    assert [fault.split(":")[0] for fault in faults] == ["wrong"] * 4
    for fault, ending in zip(faults, ("7, 18, 42, 65, 93", "85", "Monday", "4821"), strict=True):
        assert fault.endswith(f"should end in {ending!r}")


def test_the_demo_fails_for_an_answer_whose_bits_changed() -> None:
    """The same text with another log-probability, in its last bit, is not the same answer."""
    logprobs = (-0.25, math.nextafter(-0.25, 0.0))
    alone, together = (
        Answer("85.", (TokenLogprobs(Logprob(3, logprob, b"85."), ()),), first_token_seconds=0.1, seconds=0.2)
        for logprob in logprobs
    )
    question = Question("What is 47 + 38?", "85")
    assert list(check(question, alone, alone)) == []
    [fault] = check(question, together, alone)
    assert fault.startswith("changed: 'What is 47 + 38?'")


def test_the_demo_says_why_it_cannot_start(tmp_path: Path) -> None:
    """The service's own line comes through, and then the demo's."""
    done = run_demo(str(tmp_path / "none.gguf"))
    assert done.returncode == 1
    assert "none.gguf" in done.stderr
    assert done.stderr.splitlines()[-1] == "the engine did not start: exit code 2"
