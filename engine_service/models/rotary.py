"""The rotary table: cos and sin of every position and frequency, scaling included.

Sources: RoFormer (arXiv:2104.09864); YaRN (arXiv:2309.00071); `ggml_rope_yarn_corr_dims`, `rope_yarn` and
`ggml_rope_cache_init` in llama.cpp's ggml/src/ggml-cpu/ops.cpp, with the attention factor of llama-context.cpp.

Library pow, log, cos and sin give different last bits on different processors. The same table everywhere needs
operations that are rounded correctly everywhere: frequencies are computed in decimal with 40 digits and rounded once
to float64, cos and sin with float64 + and × alone.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from engine_service.models.hyperparameters import MAX_CONTEXT_LENGTH, Hyperparameters
from engine_service.models.tensor_table import ROPE_FREQS
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader

_DIGITS = 40
_TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021")
_CHUNK = 4096  # positions whose float64 intermediates are alive at a time

# No angle may pass 2^24 × π/2, the domain of cos_sin: MAX_CONTEXT_LENGTH positions at 1 / _MIN_FREQ_FACTOR radians
# each. Factors in use are at least 1.
_MIN_FREQ_FACTOR = 0.7

# π/2 as a sum of parts of 29 bits, so that part × n is exact for n < 2^24.
_HALF_PI_PARTS = (1.570796325802803, 9.920935774287987e-10, 2.2517417706346578e-18)

# fdlibm's k_sin.c and k_cos.c: minimax polynomials in r² on |r| ≤ π/4, error below 2^-57.
_SIN_COEFFICIENTS = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS_COEFFICIENTS = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)


def rotary_table(
    hyperparameters: Hyperparameters, num_positions: int, freq_factors: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """cos and sin for positions 0 … num_positions − 1: float32 (num_positions, rope_dim / 2, 2), cos first.

    `freq_factors`, (rope_dim / 2,), divides the frequencies (`rope_freq_factors`). Values are rounded once from
    float64; the same bits on every host. Raises ValueError above MAX_CONTEXT_LENGTH positions.
    """
    if not 0 <= num_positions <= MAX_CONTEXT_LENGTH:
        raise ValueError(f"num_positions is {num_positions}; must be 0 to {MAX_CONTEXT_LENGTH}")
    frequencies = rotary_frequencies(hyperparameters, freq_factors)
    magnitude = rotary_magnitude(hyperparameters)
    table = np.empty((num_positions, len(frequencies), 2), np.float32)
    for start in range(0, num_positions, _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, num_positions), dtype=np.float64)
        cos, sin = cos_sin(positions[:, np.newaxis] * frequencies)
        table[start : start + _CHUNK, :, 0] = cos * magnitude
        table[start : start + _CHUNK, :, 1] = sin * magnitude
    return table


def rope_freq_factors(reader: GGUFReader, hyperparameters: Hyperparameters) -> NDArray[np.float32] | None:
    """The file's frequency factors (Llama 3), float32 (rope_dim / 2,), or None where it has none.

    Raises ModelFileError unless they are F32, finite and at least 0.7.
    """
    if ROPE_FREQS not in reader.tensors:
        return None
    info = reader.tensors[ROPE_FREQS]
    if info.type != GGMLQuantizationType.F32:
        raise ModelFileError(reader.name, f"type of {ROPE_FREQS}", info.type.name, "must be F32")
    factors = reader.tensor_bytes(ROPE_FREQS).view("<f4").reshape(hyperparameters.rope_dim // 2)
    good = np.isfinite(factors) & (factors >= _MIN_FREQ_FACTOR)
    if not good.all():
        worst = float(factors[~good][0])
        raise ModelFileError(reader.name, ROPE_FREQS, worst, f"every factor must be finite, {_MIN_FREQ_FACTOR} or more")
    return factors.copy()


def rotary_frequencies(
    hyperparameters: Hyperparameters, freq_factors: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Radians per position of each pair i, float64 (rope_dim / 2,).

    θᵢ = base^(−2i / rope_dim) ÷ factorᵢ, divided by the scaling factor s under 'linear'; under 'yarn'
    θᵢ × (rᵢ + (1 − rᵢ) ÷ s), where the ramp rᵢ falls from 1 to 0 between the two correction dimensions.
    """
    h = hyperparameters
    with localcontext(prec=_DIGITS):
        base, scale = Decimal(h.rope_base), 1 / Decimal(h.rope_scaling.factor)
        low, high = _correction_dims(h) if h.rope_scaling.kind == "yarn" else (Decimal(0), Decimal(0))
        frequencies = []
        for pair in range(h.rope_dim // 2):
            theta = base ** (Decimal(-2 * pair) / h.rope_dim)
            if freq_factors is not None:
                theta /= Decimal(float(freq_factors[pair]))
            ramp = Decimal(0)
            if h.rope_scaling.kind == "yarn":
                ramp = 1 - min(Decimal(1), max(Decimal(0), (pair - low) / max(Decimal("0.001"), high - low)))
            frequencies.append(float(theta * (ramp + (1 - ramp) * scale)))
    return np.array(frequencies, np.float64)


def _correction_dims(h: Hyperparameters) -> tuple[Decimal, Decimal]:
    """The pairs between which YaRN ramps: those that turn beta_fast and beta_slow times over the original context."""
    scaling = h.rope_scaling

    def dim(turns: float) -> Decimal:
        wavelengths = scaling.original_context_length / (Decimal(turns) * _TWO_PI)
        return h.rope_dim * wavelengths.ln() / (2 * Decimal(h.rope_base).ln())

    low = dim(scaling.beta_fast).to_integral_value(ROUND_FLOOR)
    high = dim(scaling.beta_slow).to_integral_value(ROUND_CEILING)
    return max(Decimal(0), low), min(Decimal(h.rope_dim - 1), high)


def rotary_magnitude(hyperparameters: Hyperparameters) -> float:
    """What cos and sin are multiplied with: attn_factor × (1 + 0.1 ln s) under 'yarn' with s > 1, else 1."""
    scaling = hyperparameters.rope_scaling
    if scaling.kind != "yarn":
        return 1.0
    with localcontext(prec=_DIGITS):
        stretch = 1 + Decimal("0.1") * max(Decimal(1), Decimal(scaling.factor)).ln()
        return float(Decimal(scaling.attn_factor) * stretch)


def cos_sin(angles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """cos and sin of 0 ≤ angle < 2^24 × π/2, to within 2e-16, from correctly rounded operations only.

    Cody and Waite's reduction to |r| ≤ π/4, then fdlibm's polynomials, then the quadrant's swap and signs.
    """
    quadrant = np.rint(angles * (2 / math.pi))
    r = angles
    for part in _HALF_PI_PARTS:
        r = r - quadrant * part
    z = r * r
    sin = r + r * z * _horner(z, _SIN_COEFFICIENTS)
    cos = (1.0 - 0.5 * z) + z * z * _horner(z, _COS_COEFFICIENTS)
    turn = quadrant.astype(np.int64) & 3
    odd = (turn & 1).astype(bool)
    cosine = np.where(odd, sin, cos) * np.where((turn == 1) | (turn == 2), -1.0, 1.0)
    sine = np.where(odd, cos, sin) * np.where(turn >= 2, -1.0, 1.0)
    return cosine, sine


def _horner(z: NDArray[np.float64], coefficients: tuple[float, ...]) -> NDArray[np.float64]:
    total = np.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total
