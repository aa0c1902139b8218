"""Every requirement that this project has taken on is shown by a test that names it, and some are shown here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_PRODUCT = ("engine_service", "service_common", "tokenizer_service", "clients/python/clforge")

_IDS = [
    *(f"BACKEND-{n}" for n in range(1, 7)),
    *(f"ATT-{n}" for n in range(1, 7)),
    *(f"KV-{n}" for n in (1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13)),
    *(f"MODEL-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 12, 13)),
    *(f"BUG-{n}" for n in (6, 7, 9, 10, 11, 14, 15, 16)),
    *(f"GGUF-{n}" for n in range(1, 9)),
    *(f"CLI-{n}" for n in range(1, 6)),
    *(f"ISSUE-{n}" for n in range(1, 9)),
]


def _product_files() -> list[Path]:
    paths = [path for folder in _PRODUCT for path in (_ROOT / folder).rglob("*.py")]
    return [path for path in paths if "v1" not in path.parts]


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def docstrings() -> str:
    """All docstrings of all tests."""
    nodes = (node for path in (_ROOT / "tests").rglob("test_*.py") for node in ast.walk(_parse(path)))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return "\n".join(ast.get_docstring(node) or "" for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize("requirement", _IDS)
def test_a_requirement_is_named_by_a_test(requirement: str, docstrings: str) -> None:
    """Its id stands in a test's docstring."""
    kind, number = requirement.split("-")
    assert re.search(rf"\b{kind}-(\d+, )*{number}\b", docstrings), f"no test names {requirement}"


def test_no_product_module_prints() -> None:
    """Only structured logs; results go to standard output through the command line's own modules (MODEL-12, CLI-4)."""
    for path in _product_files():
        if "cli" not in path.parts:
            calls = (node.func for node in ast.walk(_parse(path)) if isinstance(node, ast.Call))
            assert "print" not in {function.id for function in calls if isinstance(function, ast.Name)}, path


def test_vocabularies_are_resolved_in_one_place() -> None:
    """One class makes a vocabulary from a GGUF, for both of its users (ISSUE-1)."""
    makers = [path for path in _product_files() if "class Vocabulary" in path.read_text(encoding="utf-8")]
    assert [path.name for path in makers] == ["vocabulary.py"]


def test_the_scheduler_is_documented() -> None:
    """Its order, its budget, and what is preempted first stand at the top of its file (ISSUE-6, KV-12)."""
    docstring = ast.get_docstring(_parse(_ROOT / "engine_service/scheduling/scheduler.py")) or ""
    for word in ("rank", "budget", "preempted", "starves"):
        assert word in docstring


def test_position_patterns_are_plain_data() -> None:
    """A family is two plain values, and its attention is causal; windows and their patterns are refused at load, so no
    mask is ever passed (ATT-3, BUG-10, BUG-16)."""
    from engine_service.models.families import FAMILIES

    for family in FAMILIES.values():
        assert isinstance(family.rope_style, str)
        assert isinstance(family.rope_freqs, bool)
    attention = (_ROOT / "kernels/cpu/attention.cl").read_text(encoding="utf-8")
    signature = attention[attention.index("CLF_OPERATION attention") :].partition("{")[0]
    assert "mask" not in signature
