"""The packed formats once more, in numpy and from their definitions alone: an oracle for tests.

e4m3 is a table of 256 numbers; rounding looks for the nearest of them. Slow and plain on purpose.
Knows nothing of how the package stores or computes anything.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


def _e4m3(code: int) -> float:
    """1 sign, 4 exponent and 3 mantissa bits, bias 7; no infinity, all ones is NaN."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 7
    if exponent == 0xF and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3: Floats = np.array([_e4m3(code) for code in range(256)], dtype=np.float32)
_POSITIVE = E4M3[:127].astype(np.float64)  # ascending; code 127 is NaN


def e4m3_codes(values: NDArray[np.floating]) -> Codes:
    """The nearest e4m3 number of each finite value, ties to the even code, beyond 448 to 448."""
    size = np.abs(values.astype(np.float64))
    above = np.searchsorted(_POSITIVE, size).clip(1, 126)
    low, high = _POSITIVE[above - 1], _POSITIVE[above]
    nearer_high = (high - size < size - low) | ((high - size == size - low) & (above % 2 == 0))
    codes = np.where(nearer_high, above, above - 1).astype(np.uint8)
    return codes | (np.signbit(values).astype(np.uint8) << 7)


def mxfp8_encode(values: Floats) -> tuple[Codes, Codes]:
    """Codes [N, K] and scales [N, K / 32]: the smallest power of two that saturates nothing."""
    rows, columns = values.shape
    scales = np.zeros((rows, columns // 32), dtype=np.uint8)
    codes = np.zeros(values.shape, dtype=np.uint8)
    for row in range(rows):
        for group in range(columns // 32):
            part = values[row, 32 * group : 32 * group + 32].astype(np.float64)
            largest = np.abs(part).max()
            exponent = -127
            while 448.0 * 2.0**exponent < largest and exponent < 127:
                exponent += 1
            scales[row, group] = exponent + 127
            codes[row, 32 * group : 32 * group + 32] = e4m3_codes(part * 2.0**-exponent)
    return codes, scales


def mxfp8_decode(codes: Codes, scales: Codes) -> Floats:
    powers = np.array([2.0 ** (scale - 127) for scale in range(255)] + [math.nan])
    values = E4M3[codes].astype(np.float64) * powers[np.repeat(scales, 32, axis=-1)]
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def fp8_block_encode(values: Floats) -> tuple[Codes, Floats]:
    """Codes [N, K] and factors [N / 128, K / 128], counts rounded up."""
    rows, columns = values.shape
    factors = np.ones((-(-rows // 128), -(-columns // 128)), dtype=np.float32)
    codes = np.zeros(values.shape, dtype=np.uint8)
    for i, j in np.ndindex(*factors.shape):
        block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
        largest = np.abs(values[block]).max()
        if largest > 0:
            factors[i, j] = largest / np.float32(448)
        codes[block] = e4m3_codes(values[block] / factors[i, j])
    return codes, factors


def fp8_block_decode(codes: Codes, factors: Floats) -> Floats:
    rows, columns = codes.shape
    row, column = np.arange(rows) // 128, np.arange(columns) // 128
    return E4M3[codes] * factors[row[:, None], column]


def int8_encode(values: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Integers within +-127 and a factor per row [N, 1]."""
    factors = np.abs(values).max(-1, keepdims=True) / np.float32(127)
    factors[factors == 0] = 1.0
    return np.rint(values / factors).astype(np.int8), factors


def int8_linear(x: Floats, weight: NDArray[np.int8], factors: Floats) -> Floats:
    """Every token quantized by its largest value; integers summed as integers."""
    scales = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    integers = np.rint(x / np.where(scales == 0, np.float32(1), scales)).astype(np.int64)
    sums = integers @ weight.astype(np.int64).T
    return sums.astype(np.float32) * (scales * factors.reshape(1, -1))


def int8_linear_static(
    x: Floats,
    weight: NDArray[np.int8],
    input_scale: float,
    input_offset: float,
    quant_bias: NDArray[np.int32],
    deq_scale: Floats,
) -> Floats:
    integers = np.rint(x / np.float32(input_scale)).astype(np.int64) + round(input_offset)
    sums = integers.clip(-128, 127) @ weight.astype(np.int64).T + quant_bias
    return sums.astype(np.float32) * deq_scale
