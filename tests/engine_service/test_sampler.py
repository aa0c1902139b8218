"""The sampler against its oracle: exact ids, exact bits, whatever else is in the batch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.row_params import RowParams
from engine_service.compute.sampler import Sampler
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import SamplingParams
from service_common.errors import InternalError
from tests.engine_service import reference_sampling as reference
from tests.engine_service.reference_sampling import Floats

MAX_ROWS = 64


def sample(library: KernelLibrary, logits: Floats, rows: Sequence[RowParams]) -> list[SampledToken]:
    """The tokens of logits [R][V], in one step."""
    sampler = Sampler(library.device, library, logits.shape[1], MAX_ROWS)
    sampler.enqueue(library.device.upload(logits, "logits"), rows)
    return sampler.read()


def expected_id(row: Floats, params: RowParams) -> int:
    """The oracle's token."""
    s = params.sampling
    return reference.sample(
        row,
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p,
        seed=s.seed,
        position=params.position,
        choice=params.choice,
        banned_ids=params.banned_ids,
    )


def random_logits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Floats:
    """Rows of many kinds: peaked and flat, with ties, with -infinity, all equal."""
    scale = rng.choice([0.0, 1e-3, 1.0, 4.0, 30.0], (num_rows, 1))
    values = rng.standard_normal((num_rows, vocab_size)) * scale + rng.uniform(-50, 50, (num_rows, 1))
    logits: Floats = values.astype(np.float32)
    logits[::3] = np.round(logits[::3])
    masked = rng.random((num_rows, vocab_size)) < rng.choice([0.0, 0.5], (num_rows, 1))
    masked[:, 0] = False
    logits[masked] = -np.inf
    return logits


def random_row(rng: np.random.Generator, vocab_size: int) -> RowParams:
    """Parameters of any mix, each filter off half of the time."""
    on = rng.random(5) < 0.5
    sampling = SamplingParams(
        seed=int(rng.integers(1 << 64, dtype=np.uint64)),
        temperature=float(rng.choice([0.0, 0.05, 0.7, 1.5, 100.0])) if on[0] else 1.0,
        top_k=int(rng.integers(1, vocab_size + 3)) if on[1] else 0,
        top_p=float(rng.choice([1e-7, 0.3, 0.9, 0.999999])) if on[2] else 1.0,
        min_p=float(rng.choice([1e-6, 0.05, 0.7, 1.0])) if on[3] else 0.0,
    )
    banned = tuple(rng.integers(1, vocab_size, rng.integers(1, 19)).tolist()) if on[4] and vocab_size > 1 else ()
    return RowParams(sampling, int(rng.integers(1 << 31)), int(rng.integers(16)), banned)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_oracle_gives_the_published_answers_of_philox(counter: str, key: str, answer: str) -> None:
    """The vectors of Random123's kat_vectors for philox4x32, 10 rounds."""
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, answer)]
    assert list(reference.philox4x32_10(words[0], words[1])) == words[2]


def test_oracle_rounds_a_fused_multiply_add_once() -> None:
    """Against exact fractions, where the two roundings of a float64 detour would differ."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(3000).astype(np.float32) for _ in range(2))
    c = (-a * b * rng.choice([1.0, 2.0**-30, 2.0**20], 3000)).astype(np.float32)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    for value, fused in zip(exact, reference.fma(a, b, c), strict=True):
        neighbours = (np.nextafter(fused, np.float32(-np.inf)), np.nextafter(fused, np.float32(np.inf)))
        error = abs(Fraction(float(fused)) - value)
        assert all(error <= abs(Fraction(float(other)) - value) for other in neighbours)


@pytest.mark.parametrize("vocab_size", [1, 7, 8, 9, 100, 515, 2048])
def test_token_is_the_oracle_s_for_any_mix_of_parameters(library: KernelLibrary, vocab_size: int) -> None:
    """Exact ids, 640 random rows for each size of vocabulary."""
    rng = np.random.default_rng(vocab_size)
    for _ in range(10):
        logits = random_logits(rng, MAX_ROWS, vocab_size)
        rows = [random_row(rng, vocab_size) for _ in range(MAX_ROWS)]
        tokens = sample(library, logits, rows)
        assert [token.token_id for token in tokens] == [
            expected_id(row, params) for row, params in zip(logits, rows, strict=True)
        ]


@pytest.mark.parametrize("vocab_size", [32_001, 152_064])
def test_token_is_the_oracle_s_with_a_real_vocabulary(library: KernelLibrary, vocab_size: int) -> None:
    """Sums beyond 32 bits, and every digit of the radix select."""
    rng = np.random.default_rng(2)
    logits = random_logits(rng, 16, vocab_size)
    rows = [random_row(rng, vocab_size) for _ in range(16)]
    assert [t.token_id for t in sample(library, logits, rows)] == list(map(expected_id, logits, rows))


def test_frequencies_follow_the_filtered_probabilities(library: KernelLibrary) -> None:
    """Chi-squared of 12,800 draws against float64 probabilities of the tokens kept, below its 99.9 % point."""
    row = np.random.default_rng(3).standard_normal(30).astype(np.float32)
    sampling = SamplingParams(seed=4, temperature=1.5, top_k=20, top_p=0.8)
    kept = reference.kept_weights(row, temperature=1.5, top_k=20, top_p=0.8, min_p=0.0) > 0
    assert np.count_nonzero(kept) == 12
    sampler = Sampler(library.device, library, 30, MAX_ROWS)
    buffer = library.device.upload(np.tile(row, (MAX_ROWS, 1)), "logits")
    counts = np.zeros(30)
    for step in range(200):
        sampler.enqueue(buffer, [RowParams(sampling, step, choice) for choice in range(MAX_ROWS)])
        np.add.at(counts, [token.token_id for token in sampler.read()], 1)
    assert counts[~kept].sum() == 0
    likelihood = np.exp(row[kept].astype(np.float64) / 1.5)
    wanted = counts.sum() * likelihood / likelihood.sum()
    assert ((counts[kept] - wanted) ** 2 / wanted).sum() < 31.26  # 11 degrees of freedom


def test_greedy_is_top_k_1_and_the_limit_of_low_temperature(library: KernelLibrary) -> None:
    """Three ways to ask for the largest logit; the first two break ties by lowest id."""
    logits = np.random.default_rng(5).standard_normal((30, 1000)).astype(np.float32)
    asked = [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-6}]
    for kwargs in asked:
        rows = [RowParams(SamplingParams(seed=6, **kwargs), 0)] * 30  # type: ignore[arg-type]
        assert [token.token_id for token in sample(library, logits, rows)] == logits.argmax(1).tolist()
    tied = np.zeros((1, 77), np.float32)
    tied[0, [40, 9, 33]] = 2.0
    assert [sample(library, tied, [RowParams(SamplingParams(seed=6, **k), 0)])[0].token_id for k in asked[:2]] == [9, 9]  # type: ignore[arg-type]


def test_draw_depends_on_seed_position_and_choice_and_on_nothing_else(library: KernelLibrary) -> None:
    """The same three give the same token again; changing any of them changes the sequence."""
    logits = np.zeros((MAX_ROWS, 5000), np.float32)

    def draws(seed: int, first_position: int, choice: int) -> list[int]:
        rows = [RowParams(SamplingParams(seed=seed), first_position + i, choice) for i in range(MAX_ROWS)]
        return [token.token_id for token in sample(library, logits, rows)]

    base = draws(7, 0, 0)
    assert draws(7, 0, 0) == base
    assert draws(7, 1, 0)[:-1] == base[1:]
    for other in (draws(7, 100, 0), draws(7, 0, 1), draws(8, 0, 0), draws(7 + (1 << 32), 0, 0)):
        assert sum(a == b for a, b in zip(base, other, strict=True)) <= 2


def test_row_in_a_full_batch_is_the_row_alone(library: KernelLibrary) -> None:
    """Token, log-probabilities and their bits do not depend on the other rows."""
    rng = np.random.default_rng(9)
    logits = random_logits(rng, MAX_ROWS, 300)
    rows = [random_row(rng, 300)._replace(num_logprobs=i % 22 - 1 if i % 22 else None) for i in range(MAX_ROWS)]
    batch = sample(library, logits, rows)
    for i in range(0, MAX_ROWS, 3):
        assert sample(library, logits[i : i + 1], [rows[i]]) == [batch[i]]


def tokens_of_a_fixed_batch(library: KernelLibrary) -> list[SampledToken]:
    """A batch of all kinds of rows with log-probabilities."""
    rng = np.random.default_rng(10)
    logits = random_logits(rng, MAX_ROWS, 4099)
    return sample(library, logits, [random_row(rng, 4099)._replace(num_logprobs=5) for _ in range(MAX_ROWS)])


def test_portable_kernel_gives_the_same_bits(device: Device) -> None:
    """Tokens and log-probabilities of both builds are equal."""
    native, portable = (tokens_of_a_fixed_batch(KernelLibrary(device, portable=portable)) for portable in (False, True))
    assert native == portable


def digest(tokens: list[SampledToken]) -> str:
    """A hash of ids and of the bits of log-probabilities."""
    return hashlib.sha256(repr(tokens).encode()).hexdigest()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_number_of_threads_changes_no_bit(device: Device, num_threads: int) -> None:
    """A process with that many PoCL threads gives this process's tokens."""
    program = (
        "from tests.engine_service.test_sampler import *; d = Device.open(); "
        "print(d.handle.max_compute_units, digest(tokens_of_a_fixed_batch(KernelLibrary(d))))"
    )
    environment = {**os.environ, "POCL_MAX_PTHREAD_COUNT": str(num_threads)}
    root = Path(__file__).parent.parent.parent
    output = subprocess.check_output([sys.executable, "-c", program], cwd=root, env=environment, text=True)
    compute_units, their_digest = output.split()
    assert int(compute_units) <= num_threads
    assert their_digest == digest(tokens_of_a_fixed_batch(KernelLibrary(device)))


def test_logprobs_are_those_of_the_raw_logits(library: KernelLibrary) -> None:
    """Equal to a float64 log-softmax within 1e-6, exactly the definition's f32, and untouched by filters and bans."""
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((MAX_ROWS, 1003)) * 2).astype(np.float32)
    rows = [random_row(rng, 1003)._replace(num_logprobs=i % 21) for i in range(MAX_ROWS)]
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    for i, token in enumerate(sample(library, logits, rows)):
        assert token.logprob is not None
        ids = [token.token_id, *(index for index, _ in token.top)]
        values = [token.logprob, *(value for _, value in token.top)]
        np.testing.assert_allclose(values, exact[i, ids], rtol=0, atol=1e-6)
        assert values == reference.logprobs(logits[i])[ids].tolist()
        assert ids[1:] == reference.top_ids(logits[i], i % 21)


def test_top_logprobs_break_ties_by_lowest_id_and_end_with_the_vocabulary(library: KernelLibrary) -> None:
    """Best first; a vocabulary of 11 has 11 of them, -infinity included."""
    row = np.array([[1, 3, -np.inf, 3, 2, 3, 2, 0, 0, -np.inf, 1]], np.float32)
    (token,) = sample(library, row, [RowParams(SamplingParams(seed=0), 0, num_logprobs=20)])
    assert [index for index, _ in token.top] == [1, 3, 5, 4, 6, 0, 10, 7, 8, 2, 9]
    assert [value for _, value in token.top][-2:] == [-np.inf, -np.inf]


def test_logprobs_are_given_only_to_the_rows_that_ask(library: KernelLibrary) -> None:
    """None asks for nothing, 0 for the chosen token's alone."""
    rows = [RowParams(SamplingParams(seed=0, temperature=0.0), 0, num_logprobs=n) for n in (None, 0, 2)]
    silent, chosen, both = sample(library, np.tile(np.arange(9, dtype=np.float32), (3, 1)), rows)
    assert silent == SampledToken(8, None, ())
    assert chosen.logprob == both.logprob == both.top[0][1]
    assert (chosen.top, [index for index, _ in both.top]) == ((), [8, 7])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_ids_are_never_chosen_and_logits_stay(library: KernelLibrary, temperature: float) -> None:
    """With all but one banned the one is chosen, however unlikely; the caller's logits are as before."""
    logits = np.full((1, 19), 50.0, np.float32)
    logits[0, 7] = -50.0
    buffer = library.device.upload(logits, "logits")
    sampler = Sampler(library.device, library, 19, 1)
    banned = tuple(index for index in range(19) if index != 7)
    sampler.enqueue(buffer, [RowParams(SamplingParams(seed=1, temperature=temperature), 0, 0, banned)])
    assert sampler.read() == [SampledToken(7, None, ())]
    after = np.empty_like(logits)
    library.device.read(buffer, after)
    assert after.tobytes() == logits.tobytes()


def packed(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """A mask of the sampler for allowed [V]."""
    words = np.zeros((len(allowed) + 31) // 32 * 4, np.uint8)
    bits = np.packbits(allowed, bitorder="little")
    words[: len(bits)] = bits
    return words.view("<u4")


@pytest.mark.parametrize("vocab_size", [1, 31, 33, 515, 2048])
def test_masked_token_is_the_oracle_s_with_all_others_at_minus_infinity(
    library: KernelLibrary, vocab_size: int
) -> None:
    """Any mix of parameters, half of the rows masked; reports and the caller's logits stay raw."""
    rng = np.random.default_rng(vocab_size)
    logits = random_logits(rng, MAX_ROWS, vocab_size)
    allowed = rng.random((MAX_ROWS, vocab_size)) < rng.choice([0.02, 0.5, 0.98], (MAX_ROWS, 1))
    allowed[np.arange(MAX_ROWS), rng.integers(vocab_size, size=MAX_ROWS)] = True
    allowed[::2] = True
    rows = [random_row(rng, vocab_size)._replace(num_logprobs=2) for _ in range(MAX_ROWS)]
    rows = [
        row._replace(allowed=packed(a) if i % 2 else None) for i, (row, a) in enumerate(zip(rows, allowed, strict=True))
    ]
    for row, mask, params, token in zip(logits, allowed, rows, sample(library, logits, rows), strict=True):
        masked = np.where(mask, row, np.float32(-np.inf))
        masked[list(params.banned_ids)] = -np.inf
        wanted = expected_id(masked, params) if masked.max() > -np.inf else int(mask.argmax())
        assert token.token_id == wanted
        assert token.logprob == reference.logprobs(row)[wanted]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mask_holds_where_no_allowed_token_has_a_finite_logit(library: KernelLibrary, temperature: float) -> None:
    """The lowest allowed id is chosen, whether the others are impossible, NaN or banned."""
    logits = np.zeros((3, 99), np.float32)
    logits[0, [70, 80]], logits[1, [70, 80]] = -np.inf, np.nan
    params = SamplingParams(seed=1, temperature=temperature)
    mask = packed(np.isin(np.arange(99), [70, 80]))
    rows = [RowParams(params, 0, banned_ids=(70, 80) if i == 2 else (), allowed=mask) for i in range(3)]
    assert [token.token_id for token in sample(library, logits, rows)] == [70, 70, 70]


def test_mask_that_allows_nothing_is_an_error_before_the_device_sees_it(library: KernelLibrary) -> None:
    """It names the row."""
    rows = [RowParams(SamplingParams(seed=1), 0, allowed=packed(np.arange(9) < n)) for n in (3, 0)]
    with pytest.raises(InternalError, match="row 1"):
        sample(library, np.zeros((2, 9), np.float32), rows)


def test_tiny_top_p_keeps_the_best_token(library: KernelLibrary) -> None:
    """One token is always kept; among equals it is the lowest id."""
    logits = np.zeros((MAX_ROWS, 130), np.float32)
    logits[:, [5, 90]] = 1.0
    rows = [RowParams(SamplingParams(seed=i, top_p=1e-30), i) for i in range(MAX_ROWS)]
    assert {token.token_id for token in sample(library, logits, rows)} == {5}


def test_filters_are_exact_at_their_limits(library: KernelLibrary) -> None:
    """A prefix that just reaches top_p is enough, a weight of just min_p is kept, and one step further is not."""

    def drawn(logits: list[float], **kwargs: float) -> set[int]:
        rows = [RowParams(SamplingParams(seed=1, **kwargs), i) for i in range(MAX_ROWS)]  # type: ignore[arg-type]
        return {token.token_id for token in sample(library, np.tile(np.array(logits, np.float32), (MAX_ROWS, 1)), rows)}

    def above(value: float) -> float:
        return float(np.nextafter(np.float32(value), np.float32(2)))

    assert drawn([0, 0], top_p=0.5) == {0}
    assert drawn([0, 0], top_p=above(0.5)) == {0, 1}
    second = int(reference.weights(np.array([0, -1], np.float32), np.float32(1))[1]) / 2**31
    assert drawn([0, -1], min_p=second) == {0, 1}
    assert drawn([0, -1], min_p=above(second)) == {0}


def test_tokens_down_to_a_weight_of_one_count(library: KernelLibrary) -> None:
    """Many tokens about 2^-31 as likely as the best one lower its log-probability, by the definition's exact sum."""
    row = np.full(30_000, -21.4, np.float32)
    row[:2] = 0, -22.1
    row[2:10_000] = -22.3
    (token,) = sample(library, row[np.newaxis], [RowParams(SamplingParams(seed=0, temperature=0.0), 0, num_logprobs=0)])
    assert token.logprob == reference.logprobs(row)[0]
    assert token.logprob == pytest.approx(-20_001 / 2**31, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("num_bad", [1, 50, 99])
def test_non_finite_logits_give_some_token_and_no_crash(library: KernelLibrary, bad: float, num_bad: int) -> None:
    """A broken row stays inside the vocabulary and does not touch its neighbours."""
    logits = random_logits(np.random.default_rng(12), 4, 99)
    broken = logits.copy()
    broken[[0, 2], :num_bad] = bad
    sampling = SamplingParams(seed=13, top_k=50, top_p=0.9)
    for params in (sampling, SamplingParams(seed=13), SamplingParams(seed=13, temperature=0.0)):
        rows = [RowParams(params, 0, num_logprobs=3)] * 4
        tokens = sample(library, broken, rows)
        assert all(0 <= token.token_id < 99 for token in tokens)
        assert tokens[1::2] == sample(library, logits, rows)[1::2]


def test_a_step_may_sample_nothing(library: KernelLibrary) -> None:
    """A step of prefill chunks alone has no rows, and leaves none of an earlier step's tokens behind."""
    sampler = Sampler(library.device, library, 9, 2)
    buffer = library.device.upload(np.zeros((2, 9), np.float32), "logits")
    sampler.enqueue(buffer, [RowParams(SamplingParams(seed=0), 0)])
    assert len(sampler.read()) == 1
    sampler.enqueue(buffer, [])
    assert sampler.read() == []
