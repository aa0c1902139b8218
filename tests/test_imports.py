"""Imports follow the request, client to kernels, and never turn back (DESIGN: one direction)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_PACKAGES = {
    "service_common": _ROOT / "service_common",
    "tokenizer_service": _ROOT / "tokenizer_service",
    "engine_service": _ROOT / "engine_service",
    "clforge": _ROOT / "clients/python/clforge",
}

# What each package may import of the others.
_MAY_IMPORT = {
    "service_common": {"clforge.v1"},
    "tokenizer_service": {"clforge.v1", "service_common"},
    "engine_service": {"clforge.v1", "service_common"},
    "clforge": {"service_common", "engine_service", "tokenizer_service"},
}

# The engine's modules from the RPCs down to the device; a module imports only from rows below its own.
_ENGINE_ROWS = [
    {"__main__", "host.doctor", "host.inspection", "compute.check_device", "bench.ours"},
    {"process", "bench.profile"},
    {"server"},
    {"request_stream"},
    {"request_registry"},
    {"metrics"},
    {"engine_loop", "conversion"},
    {"loader", "bench.limits", "sampling_conversion"},
    {"engine", "compute.self_test"},
    {"scheduling.scheduler", "compute.model_runner", "compute.self_test_cases"},
    {"scheduling.step_planner", "scheduling.endings", "scheduling.admission", "compute.logit_rows"},
    {"scheduling.sequence_queues", "scheduling.request_table", "models.llama", "compute.model_kernels"},
    {"scheduling.waiting_queue", "scheduling.followers", "scheduling.queue_limits", "scheduling.prefill_budget"},
    {"scheduling.drafter"},
    {"scheduling.block_manager", "compute.operations"},
    {"scheduling.prefix_cache", "compute.fused_program"},
    {"scheduling.block_pool", "compute.launches"},
    {"constraints.mask_threads"},
    {"compute.step_inputs", "compute.sampler", "compute.self_test_pages", "compute.work"},
    {"scheduling.messages"},
    {"scheduling.sequence", "compute.kv_cache", "compute.weights", "models.rotary"},
    {"compute.kv_plan", "compute.row_params", "compute.weight_packer", "scheduling.sampling_state"},
    {"models.tensor_table", "scheduling.penalty_window"},
    {"models.hyperparameters"},
    {"scheduling.ngram_index", "scheduling.draft_length"},
    {"scheduling.constraint", "scheduling.speculation"},
    {"scheduling.sampling_params", "compute.quant_layouts", "compute.kernel_library"},
    {"compute.device", "compute.kernel_sources"},
    {"compute.huge_pages", "constraints.compiler"},
    {"constraints.trials"},
    {"constraints.trial_process"},
    {"constraints.lark", "constraints.matcher", "constraints.tokenizer"},
    {"constraints.spec", "constraints.limits", "constraints.token_bytes"},
]

# Modules that decide without a device, and are tested without one.
_WITHOUT_DEVICE = ["engine", "scheduling.scheduler", "scheduling.block_manager", "scheduling.sampling_params"]


def _modules(package: str) -> dict[str, Path]:
    root = _PACKAGES[package]
    paths = [path for path in root.rglob("*.py") if "v1" not in path.parts and "kernels" not in path.parts]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def _imports(path: Path, *, at_run_time: bool = False) -> Iterator[str]:
    """Modules that a file imports; without those under TYPE_CHECKING if `at_run_time`."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_run_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(node: ast.AST, at_run_time: bool) -> Iterator[ast.AST]:
    if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, at_run_time)


@pytest.mark.parametrize("package", _PACKAGES)
def test_packages_import_only_what_lies_behind_them(package: str) -> None:
    """A service imports neither the other service nor the client, and what is common imports no service."""
    for name, path in _modules(package).items():
        for imported in _imports(path):
            other = next((other for other in _PACKAGES if (imported + ".").startswith(other + ".")), package)
            allowed = other == package or any((imported + ".").startswith(f"{a}.") for a in _MAY_IMPORT[package])
            assert allowed or imported in ("clforge",), f"{package}.{name} imports {imported}"


def test_the_engine_imports_towards_the_device() -> None:
    """No module of the engine imports one that stands before it in a request's path."""
    row_of = {name: row for row, names in enumerate(_ENGINE_ROWS) for name in names}
    for name, path in _modules("engine_service").items():
        for imported in _imports(path, at_run_time=True):
            target = imported.removeprefix("engine_service.")
            if imported.startswith("engine_service.") and target in row_of:
                assert row_of.get(name, len(_ENGINE_ROWS)) < row_of[target], f"{name} imports {target}"


@pytest.mark.parametrize("module", _WITHOUT_DEVICE)
def test_the_scheduler_needs_neither_device_nor_rpc(module: str) -> None:
    """Nothing that the scheduler imports, however deep, is OpenCL, gRPC or protobuf (D5)."""
    modules, seen, todo = _modules("engine_service"), set[str](), [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in _imports(modules[name], at_run_time=True):
            assert not imported.startswith(("pyopencl", "grpc", "google", "clforge")), f"{name} imports {imported}"
            target = imported.removeprefix("engine_service.")
            if imported.startswith("engine_service.") and target in modules:
                todo.append(target)


def test_sdk_modules_import_no_service() -> None:
    """The SDK proper runs where only the client is wanted: of our packages it imports the stubs alone."""
    for name, path in _modules("clforge").items():
        if not name.startswith("cli"):
            for imported in _imports(path):
                assert not imported.startswith(("engine_service", "tokenizer_service", "service_common")), name
