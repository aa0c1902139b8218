"""`make parity`: builds the models of `cases`, measures llama.cpp's and our distance from E, and renews the fixture."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.llama_cpp import peer_python
from engine_service.bench.peer import peer_build
from tests.conftest import find_shared_data
from tests.in_process import logits
from tests.parity.cases import CASES, FIXTURE, TOKEN_IDS, Case, make_model
from tests.parity.distance import distance
from tests.parity.reference_model import ReferenceModel


def main() -> None:
    """Prints one line a case: both distances, and their ratio."""
    shared_data, python = find_shared_data(), str(peer_python())
    FIXTURE.mkdir(exist_ok=True)
    record = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES, 1):
            path = make_model(case, shared_data, Path(folder), python)
            exact = ReferenceModel(path).logits(TOKEN_IDS)
            theirs = distance(peer_logits(path, shared_data, python), exact)
            ours = distance(logits(path, TOKEN_IDS, kv_cache_type=case.kv_cache_type), exact)
            print(
                f"{number:2}/{len(CASES)} {case.name:32} ours {ours:.2e}  llama.cpp {theirs:.2e}  {ours / theirs:.2f} ×"
            )
            record[case.name] = {"sha256": file_sha256(path), "llama_cpp_distance": theirs}
            _keep(case, path)
    document = {"llama_cpp": peer_build(peer_python()), "token_ids": TOKEN_IDS, "cases": record}
    (FIXTURE / "fixture.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def peer_logits(
    path: Path, shared_data: Path, python: str, token_ids: Sequence[int] = TOKEN_IDS
) -> NDArray[np.float32]:
    """llama.cpp's logits (len(token_ids), vocab_size) after each token."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        command = [python, str(shared_data / "tools/llamacpp_logits.py"), str(path), str(out), *map(str, token_ids)]
        subprocess.run(command, check=True, capture_output=True)
        result: NDArray[np.float32] = np.load(out)
    return result


def file_sha256(path: Path) -> str:
    """Names a model file in the fixture."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _keep(case: Case, path: Path) -> None:
    if case.is_kept:
        shutil.copyfile(path, FIXTURE / path.name)


if __name__ == "__main__":
    main()
