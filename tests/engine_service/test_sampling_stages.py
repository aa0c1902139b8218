"""Stages beyond temperature, top-k, top-p and min-p against their oracle: exact ids in any order, and frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.row_params import RowParams
from engine_service.compute.sampler import Sampler
from engine_service.scheduling.adjustments import ADJUSTMENT, Adjustments
from engine_service.scheduling.sampling_methods import Mirostat, Xtc
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.sampling_stages import DEFAULT_ORDER, Stage
from tests.engine_service import reference_sampling as reference
from tests.engine_service.reference_sampling import Floats

NUM_ROWS = 32


def sample(library: KernelLibrary, logits: Floats, rows: Sequence[RowParams]) -> list[Any]:
    """The tokens of logits [R][V], in one step."""
    sampler = Sampler(library.device, library, logits.shape[1], len(rows))
    sampler.enqueue(library.device.upload(logits, "logits"), rows)
    return sampler.read()


def expected(logits: Floats, row: RowParams) -> tuple[int, int]:
    """Token and surprise: the stages one after another over the definition's own numbers."""
    s = row.sampling
    x = reference.adjusted(logits, row.adjustments.biases)
    scale, kept = np.float32(1), np.ones(len(x), bool)

    def weights() -> Any:
        masked = np.where(kept, x, np.float32(-np.inf))
        with np.errstate(invalid="ignore"):
            return np.where(kept, reference.weights(masked, scale), 0)

    for stage in s.order:
        if stage in (Stage.PENALTIES, Stage.DRY):
            part = row.adjustments.penalties if stage is Stage.PENALTIES else row.adjustments.dry
            if len(part) and s._has(stage):
                x, scale = reference.adjusted(x * scale, part), np.float32(1)
        elif stage is Stage.TEMPERATURE:
            if s.temperature == 0:
                return int(np.where(kept, x, -np.inf).argmax()), 0
            scale = s.inverse_temperature
        elif stage is Stage.TOP_N_SIGMA and s.top_n_sigma:
            kept &= reference.top_n_sigma(np.where(kept, x, np.float32(-np.inf)), s.top_n_sigma) > -np.inf
        elif s._has(stage):
            w = filtered(weights(), stage, row)
            kept = w > 0
            w_last = w
            if stage is Stage.TOP_K and s.top_k == 1:
                return int(w.argmax()), 0
    w = weights()
    filters = [stage for stage in s.stages if stage > Stage.GREEDY and stage is not Stage.MIROSTAT]
    if filters and s.stages[-1] is filters[-1]:
        w = w_last
    if s.mirostat:
        w = reference.mirostat(w, row.max_surprise)
    x0, x1, _, _ = reference.philox4x32_10((row.position, row.choice, 0, 0), (s.seed & 0xFFFFFFFF, s.seed >> 32))
    token_id = int(np.searchsorted(w.cumsum(), (x0 + (x1 << 32)) * int(w.sum()) >> 64, side="right"))
    logs = reference.log2_fixed(np.array([w.sum(), w[token_id]]))
    return token_id, int(logs[0] - logs[1]) if s.mirostat else 0


def filtered(w: Any, stage: Stage, row: RowParams) -> Any:
    """One filter over weights in id order."""
    s = row.sampling
    by_weight = np.argsort(-w, kind="stable")
    match stage:
        case Stage.TOP_K:
            return np.where(np.isin(np.arange(len(w)), by_weight[: s.top_k]), w, 0)
        case Stage.TOP_P:
            return reference.keep_shortest_prefix(w, by_weight, reference.share(s.top_p_weight, int(w.sum())))
        case Stage.MIN_P:
            return np.where(w >= -(-s.min_p_weight * int(w.max()) >> 31), w, 0)
        case Stage.TYPICAL_P:
            return reference.typical_p(w, s.typical_p)
        case _:
            x0, x1, _, _ = reference.philox4x32_10(
                (row.position, row.choice, 1, 0), (s.seed & 0xFFFFFFFF, s.seed >> 32)
            )
            dropped = (x0 + (x1 << 32)) >> 33 < reference.integer(s.xtc.probability)
            return reference.xtc(w, s.xtc.threshold) if dropped else w


def random_logits(rng: np.random.Generator, vocab_size: int) -> Floats:
    """Peaked and flat rows, with ties and with -infinity."""
    scale = rng.choice([0.0, 1e-2, 1.0, 4.0, 20.0], (NUM_ROWS, 1))
    logits: Floats = (rng.standard_normal((NUM_ROWS, vocab_size)) * scale + rng.uniform(-9, 9)).astype(np.float32)
    logits[::3] = np.round(logits[::3])
    logits[rng.random(logits.shape) < rng.choice([0.0, 0.4], (NUM_ROWS, 1))] = -np.inf
    logits[:, 0] = 1.5
    return logits


def random_adjustments(rng: np.random.Generator, vocab_size: int) -> Any:
    """Of up to 20 distinct ids."""
    ids = rng.permutation(vocab_size)[: rng.integers(21)]
    result = np.zeros(len(ids), ADJUSTMENT)
    result["token_id"], result["divisor"] = ids, rng.choice([1.0, 1.3, 0.7], len(ids))
    result["subtrahend"] = rng.normal(size=len(ids))
    return result


def random_row(rng: np.random.Generator, vocab_size: int, *, shuffled: bool) -> RowParams:
    """Any mix of stages, each on half of the time."""

    def maybe(values: Sequence[float], default: float) -> Any:
        return rng.choice(values).item() if rng.random() < 0.5 else default

    with_mirostat = rng.random() < 0.2
    order = list(DEFAULT_ORDER)
    if shuffled:
        rng.shuffle(order)
    filters: dict[str, Any] = {
        "top_k": maybe([2, 5, 40], 0),
        "top_p": maybe([1e-7, 0.3, 0.9, 0.9999], 1.0),
        "min_p": maybe([1e-6, 0.05, 0.7, 1.0], 0.0),
        "typical_p": maybe([1e-5, 0.2, 0.7, 0.95], 1.0),
        "top_n_sigma": maybe([0.01, 0.5, 1.0, 3.0], 0.0),
        "xtc": Xtc(probability=maybe([0.5, 1.0], 0.0), threshold=maybe([0.02, 0.3, 1e-8], 0.1)),
    }
    sampling = SamplingParams(
        seed=int(rng.integers(1 << 63)),
        temperature=maybe([0.0, 0.3, 0.8, 1.7, 20.0], 1.0),
        repetition_penalty=maybe([1.2], 1.0),
        order=tuple(Stage(stage) for stage in order),
        **({"mirostat": Mirostat(target=3.0)} if with_mirostat else filters),
    )
    parts = [random_adjustments(rng, vocab_size) for _ in range(2)]
    return RowParams(
        sampling,
        int(rng.integers(1 << 31)),
        int(rng.integers(16)),
        adjustments=Adjustments(parts[0], parts[1] if sampling.has_penalties else parts[1][:0]),
        max_surprise=int(rng.integers(-1, 8 << 14)),
    )


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("vocab_size", [1, 9, 100, 1031])
def test_token_is_the_oracle_s_for_any_mix_and_order_of_stages(
    library: KernelLibrary, vocab_size: int, shuffled: bool
) -> None:
    """Exact ids and surprises, 256 random rows of each kind."""
    rng = np.random.default_rng(vocab_size + shuffled)
    for _ in range(8):
        logits = random_logits(rng, vocab_size)
        rows = [random_row(rng, vocab_size, shuffled=shuffled) for _ in range(NUM_ROWS)]
        tokens = [(token.token_id, token.surprise) for token in sample(library, logits, rows)]
        wanted = [expected(row, params) for row, params in zip(logits, rows, strict=True)]
        different = [i for i in range(NUM_ROWS) if tokens[i] != wanted[i]]
        assert not different, (rows[different[0]], tokens[different[0]], wanted[different[0]])


METHODS: dict[str, dict[str, Any]] = {
    "typical_p": {"typical_p": 0.6},
    "top_n_sigma": {"top_n_sigma": 1.2},
    "min_p": {"min_p": 0.1},
    "xtc": {"xtc": Xtc(probability=0.4, threshold=0.05)},
    "mirostat": {"mirostat": Mirostat(target=3.0)},
}


def probabilities(logits: Floats, sampling: SamplingParams, max_surprise: int) -> Any:
    """Of each token, from the oracle's weights; XTC's two outcomes by how often they come up."""
    if sampling.top_n_sigma:
        logits = reference.top_n_sigma(logits, sampling.top_n_sigma)
    with np.errstate(invalid="ignore"):
        weights = reference.weights(logits, sampling.inverse_temperature)
    shares = [(1.0, weights)]
    if sampling.typical_p < 1:
        shares = [(1.0, reference.typical_p(weights, sampling.typical_p))]
    if sampling.min_p:
        shares = [(1.0, np.where(weights >= -(-sampling.min_p_weight * int(weights.max()) >> 31), weights, 0))]
    if sampling.mirostat:
        shares = [(1.0, reference.mirostat(weights, max_surprise))]
    if chance := sampling.xtc.probability:
        shares = [(1 - chance, weights), (chance, reference.xtc(weights, sampling.xtc.threshold))]
    return sum(share * kept / kept.sum() for share, kept in shares)


@pytest.mark.parametrize("method", METHODS)
def test_frequencies_are_those_of_the_method(library: KernelLibrary, method: str) -> None:
    """Chi-squared of 6,400 draws against the oracle, below its 99.9 % point; dropped tokens never come."""
    row = np.random.default_rng(5).standard_normal(30).astype(np.float32)
    sampling, max_surprise = SamplingParams(seed=9, temperature=1.3, **METHODS[method]), 5 << 14
    counts = np.zeros(30)
    for step in range(200):
        rows = [RowParams(sampling, step, choice, max_surprise=max_surprise) for choice in range(NUM_ROWS)]
        np.add.at(counts, [token.token_id for token in sample(library, np.tile(row, (NUM_ROWS, 1)), rows)], 1)
    wanted = probabilities(row, sampling, max_surprise) * counts.sum()
    kept = wanted > 0
    assert 3 < np.count_nonzero(kept) <= 30 - (method != "xtc")
    assert counts[~kept].sum() == 0
    freedom = np.count_nonzero(kept) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty, 1931
    assert ((counts[kept] - wanted[kept]) ** 2 / wanted[kept]).sum() < limit
