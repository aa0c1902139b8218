"""The self-test at engine start: good kernels pass, a wrong one of any kind is found, and portable ones step in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from gguf import GGMLQuantizationType
from structlog.testing import capture_logs

from engine_service.compute import kernel_library, kernel_sources, self_test
from engine_service.compute.device import Device
from engine_service.compute.fused_program import FusedLaunches, FusedProgram
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.kernel_sources import Variant
from engine_service.compute.kv_cache import KVCache
from engine_service.compute.kv_plan import KVCacheShape
from engine_service.compute.launches import Launch, SeparateProgram
from engine_service.compute.model_kernels import ModelKernels, small_model_kernels
from engine_service.compute.operations import AttentionShape, Operations
from engine_service.compute.self_test import TOLERANCE, SelfTestError, choose_program
from engine_service.compute.self_test_cases import SelfTestCases
from engine_service.compute.step_inputs import StepInputs, StepLimits
from engine_service.compute.weights import Weights
from engine_service.models.hyperparameters import Hyperparameters
from engine_service.models.llama import LlamaModel
from engine_service.models.tensor_table import read_hyperparameters
from service_common.errors import DeviceError
from service_common.gguf_reader import GGUFReader
from tests.engine_service.kernels_builder import ALL_LAYOUTS, dealt_out, in_all_roles, layout_named
from tests.gguf_builder import tiny_llama

BLOCK_SIZE, EOG_IDS = 16, (2,)

# One layout a role, so that little is built; every kernel occurs.
KERNELS = small_model_kernels(in_all_roles(layout_named("F32")) | {"attn_output": (layout_named("Q8_0"),)})
SOURCES = [
    "gather",
    "rms_norm",
    "matmul_float",
    "matmul_quant",
    "rope_kv_write",
    "attention",
    "copy_blocks",
    "quantize",
]
SOURCES += ["swiglu", "sample"]

SLIPS = [
    ("gather", "lanes[lane]", "lanes[lane ^ 1]"),
    ("rms_norm", "+ eps", "- eps"),
    ("rms_norm", "* r)", "* NAN)"),
    ("matmul_float", "(v8f)(0.0f)", "(v8f)(0.001f)"),
    ("matmul_quant", "(v8f)(0.0f)", "(v8f)(1.0f)"),
    ("rope_kv_write", "-(b * s)", "b * s"),
    ("rope_kv_write", "x > -65504.0f ? x : -65504.0f", "x"),
    ("attention", "positions[row] + 1", "positions[row]"),
    ("attention", "clf_fma(s->total_l[i], a,", "clf_fma(s->total_l[i], b,"),
    ("copy_blocks", "target[i] = source[i]", "target[i] = source[0]"),
    ("copy_blocks", "item % 2 ? v_cache : k_cache", "k_cache"),
    ("quantize", "127.0f / amax", "126.0f / amax"),
    ("quantize", "(qa + qb)", "(qa - qb)"),
    ("swiglu", "clf_exp8(-g) + 1.0f", "clf_exp8(-g) + 1.001f"),
    ("sample", "round < 10", "round < 9"),
    ("sample", "s->sum, p->top_k)", "s->sum, p->top_k / 2)"),
    ("sample", "s->sum, p->top_p_weight)", "s->sum, p->top_p_weight / 2)"),
    ("sample", "to_uint8(w) >= threshold", "to_uint8(w) >= 2 * threshold"),
    ("sample", "report->chosen_logit = row[token_id]", "report->chosen_logit = row[0]"),
]


INT8_SLIPS = [
    ("rope_kv_write", "/ 127.0f", "/ 126.0f"),
    ("rope_kv_write", "kv_scales(head)[offset]", "kv_scales(head)[0]"),
    ("rope_kv_write", "to_f16_range(x[d])", "x[d]"),
    ("attention", "p * scales_at(values, start + j)", "p"),
    ("attention", "sum += p;", "sum += p * scales_at(values, start + j);"),
    ("attention", "acc[i][1] * scales1", "acc[i][1] * scales0"),
    ("copy_blocks", "KV_HEAD_SIZE * (int)sizeof", "HDP * BLOCK_SIZE * (int)sizeof"),
]


class Libraries(NamedTuple):
    """Libraries that have built their kernels."""

    native: KernelLibrary
    portable: KernelLibrary


@pytest.fixture(scope="module")
def libraries(device: Device) -> Libraries:
    """The two libraries of the tests' device."""
    return Libraries(KernelLibrary(device), KernelLibrary(device, portable=True))


class BrokenLibrary(KernelLibrary):
    """`good`, but for one source, in which `old` has become `new`."""

    def __init__(self, good: KernelLibrary, source: str, old: str, new: str) -> None:
        super().__init__(good.device, portable=good.portable)
        self._good, self._source, self._old, self._new = good, source, old, new

    def kernel(self, source: str, name: str, **defines: int | str) -> Any:
        if source != self._source:
            return self._good.kernel(source, name, **defines)
        text = kernel_sources.operation_text(source)
        assert self._old in text
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel_library, "operation_text", lambda _: text.replace(self._old, self._new))
            return super().kernel(source, name, **defines)


def choose(monkeypatch: pytest.MonkeyPatch, native: KernelLibrary, portable: KernelLibrary) -> KernelLibrary:
    """Whose kernels choose_program takes of these two, on a device that fuses none."""
    made = {False: native, True: portable}
    monkeypatch.setattr(self_test, "KernelLibrary", lambda _, *, portable=False: made[portable])
    monkeypatch.setattr(Device, "is_cpu", False)
    return choose_program(native.device, KERNELS, portable=False).library


def run_self_test(library: KernelLibrary, kernels: ModelKernels) -> None:
    """The self-test of each kernel by itself."""
    self_test.self_test(SeparateProgram(library), kernels)


def test_good_native_kernels_pass_in_every_layout(libraries: Libraries) -> None:
    """Matmuls of all eleven layouts, and gathers of one float and one quantised layout, are within the tolerance."""
    embeddings = {"token_embd": (layout_named("BF16"), layout_named("Q5_K"))}
    run_self_test(libraries.native, small_model_kernels(dealt_out(ALL_LAYOUTS) | embeddings))


@pytest.mark.parametrize("kv_cache_type", ["f32", "int8"])
@pytest.mark.parametrize("kind", Libraries._fields)
def test_good_kernels_pass_in_other_shapes(libraries: Libraries, kind: str, kv_cache_type: str) -> None:
    """Both libraries with the rotation of halves, without biases, with an f32 or int8 cache of large blocks (KV-13)."""
    kernels = small_model_kernels(
        in_all_roles(layout_named("Q6_K")) | {"ffn_down": (layout_named("F16"),)},
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        rope_style="halves",
        attention_bias=False,
        block_size=256,
        kv_cache_type=kv_cache_type,
    )
    run_self_test(getattr(libraries, kind), kernels)


def leaves_undone(source: str) -> tuple[str, str]:
    """A change after which every second work-item does another one's work."""
    if source == "sample":
        return "get_global_id(0)", "(get_global_id(0) & ~(size_t)1)"
    begin = "CLF_ITEM_PARAMS) {"
    return begin, f"{begin}\n#undef ITEM\n#define ITEM ((int)get_global_id(0) & ~1)\n"


@pytest.mark.parametrize("source", SOURCES)
def test_a_kernel_that_leaves_work_undone_gives_way(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Where every second work-item of a native kernel does another one's work, the portable library is chosen, and the
    warning names the kernel and how far off it is."""
    broken = BrokenLibrary(libraries.native, source, *leaves_undone(source))
    with capture_logs() as logs:
        assert choose(monkeypatch, broken, libraries.portable) is libraries.portable
    (warning,) = logs
    assert warning["log_level"] == "warning"
    assert warning["kernel"].split()[0] == source
    assert "difference=" in warning["reason"]


@pytest.mark.parametrize(("source", "old", "new"), SLIPS, ids=lambda text: str(text))
def test_a_slip_in_the_arithmetic_is_found(libraries: Libraries, source: str, old: str, new: str) -> None:
    """One wrong sign, constant, bound or comparison in a kernel is a difference above the tolerance."""
    with pytest.raises(SelfTestError) as caught:
        run_self_test(BrokenLibrary(libraries.native, source, old, new), KERNELS)
    assert caught.value.kernel.split()[0] == source
    assert not caught.value.difference <= TOLERANCE


@pytest.mark.parametrize(("source", "old", "new"), INT8_SLIPS, ids=lambda text: str(text))
def test_a_slip_in_an_int8_cache_is_found(libraries: Libraries, source: str, old: str, new: str) -> None:
    """The same for what only an int8 cache has: scales, and their place."""
    kernels = dataclasses.replace(KERNELS, kv_cache_type="int8")
    with pytest.raises(SelfTestError) as caught:
        run_self_test(BrokenLibrary(libraries.native, source, old, new), kernels)
    assert caught.value.kernel == source


def test_a_native_kernel_that_is_not_accepted_gives_way(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that the compiler refuses is named by the warning, with the compiler's words."""
    broken = BrokenLibrary(libraries.native, "swiglu", "CLF_ITEM_PARAMS) {", "CLF_ITEM_PARAMS) { no_such_builtin();")
    with capture_logs() as logs:
        assert choose(monkeypatch, broken, libraries.portable) is libraries.portable
    assert logs[0]["kernel"] == "swiglu"
    assert "no_such_builtin" in logs[0]["reason"]


def test_native_kernels_are_chosen_where_they_are_right(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning, and the native library."""
    with capture_logs() as logs:
        assert choose(monkeypatch, *libraries) is libraries.native
    assert logs == []


def test_no_library_is_chosen_where_both_are_wrong(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeviceError names the kernel of the portable library, and the difference."""
    broken = (BrokenLibrary(library, "rms_norm", "+ eps", "- eps") for library in libraries)
    with pytest.raises(DeviceError, match=r"self-test failed: WRONG_RESULT \(kernel=rms_norm, difference=[\d.e+-]+, "):
        choose(monkeypatch, *broken)


class RecordingProgram:
    """Notes which operations are to be run, and runs none."""

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library
        self.variants: set[Variant] = set()

    def prepare(self, launches: Sequence[Launch]) -> None:
        self.variants |= {launch.variant for launch in launches}

    def bind(self, launches: Sequence[Launch], counts: object) -> Any:
        return Mock()


@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("qwen2", True)])
def test_the_kernels_tested_are_the_model_s(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, tied: bool
) -> None:
    """The self-test runs the operations, with the defines, that the loaded model has: no more and no fewer."""
    tiny_llama(tmp_path / "m.gguf", seed=1, arch=arch, tied=tied, tensor_type=GGMLQuantizationType.Q4_K, hidden=256)
    tested = RecordingProgram(KernelLibrary(device))
    monkeypatch.setattr(SelfTestCases, "_sample", Mock(return_value=0.0))
    with GGUFReader(tmp_path / "m.gguf") as reader:
        hyperparameters = read_hyperparameters(reader)
        launches = model_launches(device, reader, hyperparameters)
        kernels = ModelKernels.of(reader, hyperparameters, block_size=BLOCK_SIZE, kv_cache_type="f16", eog_ids=EOG_IDS)
        for _ in SelfTestCases(tested, kernels).differences():
            pass
    assert tested.variants == {launch.variant for launch in launches}


def model_launches(device: Device, reader: GGUFReader, h: Hyperparameters) -> list[Launch]:
    """Makes the model, as the loader does."""
    limits = StepLimits(max_tokens=8, max_seqs=2, max_logit_rows=2, max_blocks_per_seq=2, block_size=BLOCK_SIZE)
    operations = Operations(device, StepInputs(device, limits))
    cache = KVCache(device, KVCacheShape(h.num_layers, h.num_kv_heads, h.head_dim, BLOCK_SIZE, "f16"), num_blocks=2)
    shape = AttentionShape(h.num_heads, h.num_kv_heads, h.head_dim, h.rope_dim, True)
    model = LlamaModel(h, reader, Weights(KernelLibrary(device), reader, Mock()), operations, cache, device, limits)
    return operations.copy_blocks(cache, shape) + model.launches


def test_fused_kernels_are_chosen_on_a_cpu(device: Device) -> None:
    """Where all is well the first choice is native and fused, and nothing is logged."""
    with capture_logs() as logs:
        program = choose_program(device, KERNELS, portable=False)
    assert isinstance(program, FusedProgram)
    assert not program.library.portable
    assert logs == []


def test_kernels_that_fail_fused_are_launched_one_by_one(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fused program does nothing, the native kernels run separately, and the warning says so."""
    monkeypatch.setattr(FusedLaunches, "run", lambda self, size: None)
    with capture_logs() as logs:
        program = choose_program(device, KERNELS, portable=False)
    assert isinstance(program, SeparateProgram)
    assert not program.library.portable
    assert (logs[0]["fused"], logs[0]["portable"]) == (False, False)
