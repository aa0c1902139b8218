"""The second half of `make parity`: the bundled model's answers, and the logits along some, beside llama.cpp's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llama_cpp import peer_python
from engine_service.bench.peer import peer_build
from engine_service.bundled import BUNDLED_MODEL
from tests.conftest import find_shared_data
from tests.models_train.bundled import MAX_TOKENS, greedy_ids, rendered
from tests.parity.bundled_case import ANSWERS, QUESTIONS, TRACED, exact_logits, ids_sha256, our_logits
from tests.parity.distance import distance
from tests.parity.make_fixture import file_sha256, peer_logits


def main() -> None:
    """Prints how many answers are llama.cpp's, where others part, and both distances from E; renews the fixture."""
    peer = _ask_peer([question.text for question in QUESTIONS])
    prompts = [chat.token_ids for chat in rendered(QUESTIONS)]
    _compare(peer, prompts, greedy_ids(prompts))
    traces = [peer[number]["prompt_ids"] + peer[number]["answer_ids"] for number in TRACED]
    shared_data, python, exact = find_shared_data(), str(peer_python()), exact_logits(traces)
    theirs = np.concatenate([peer_logits(BUNDLED_MODEL, shared_data, python, trace) for trace in traces])
    ours, llama_cpp = distance(our_logits(traces), exact), distance(theirs, exact)
    print(f"  logits after {len(exact)} tokens: ours {ours:.2e}  llama.cpp {llama_cpp:.2e}  {ours / llama_cpp:.2f} ×")
    _write(peer, llama_cpp)


def _ask_peer(texts: Sequence[str]) -> list[dict[str, Any]]:
    """As peer_answers.py describes."""
    program = Path(__file__).with_name("peer_answers.py")
    command = [str(peer_python()), str(program), str(BUNDLED_MODEL), str(MAX_TOKENS)]
    done = subprocess.run(command, check=True, input=json.dumps(texts), stdout=subprocess.PIPE, text=True)
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def _compare(peer: list[dict[str, Any]], prompts: list[list[int]], answers: list[list[int]]) -> None:
    same_prompts = sum(theirs["prompt_ids"] == ours for theirs, ours in zip(peer, prompts, strict=True))
    same_answers = sum(theirs["answer_ids"] == ours for theirs, ours in zip(peer, answers, strict=True))
    print(f"{BUNDLED_MODEL.name}: {same_prompts} prompts and {same_answers} answers of {len(peer)} are llama.cpp's")
    for question, theirs, ours in zip(QUESTIONS, peer, answers, strict=True):
        if theirs["answer_ids"] != ours:
            same = sum(takewhile(bool, map(eq, theirs["answer_ids"], ours)))
            gap = theirs["gaps"][same]
            print(f"  parts after {same} tokens, where llama.cpp's gap is {gap}: {question.text[-60:]}")
    print(f"  llama.cpp's smallest gap between the best logit and the next: {min(min(each['gaps']) for each in peer)}")


def _write(peer: list[dict[str, Any]], llama_cpp_distance: float) -> None:
    kept = [{"prompt_sha256": ids_sha256(each["prompt_ids"]), "answer_ids": each["answer_ids"]} for each in peer]
    document = {
        "llama_cpp": peer_build(peer_python()),
        "sha256": file_sha256(BUNDLED_MODEL),
        "llama_cpp_distance": llama_cpp_distance,
        "answers": kept,
    }
    ANSWERS.write_text(json.dumps(document, separators=(",", ":")).replace("},{", "},\n{") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
