"""Raw samples of every format as float32 between -1 and 1."""

import numpy as np
from numpy.typing import NDArray

_S16_SCALE = np.float32(1 / 32_768)


def to_float32(encoding: str, data: bytes) -> NDArray[np.float32]:
    """Whole samples of a raw format (see `formats.SAMPLE_BYTES`) as a new float32 [n], nominally within -1 and 1."""
    match encoding:
        case "f32":
            return np.frombuffer(data, dtype="<f4").astype(np.float32)
        case "s16":
            return np.frombuffer(data, dtype="<i2").astype(np.float32) * _S16_SCALE
        case "mulaw":
            return _MULAW[np.frombuffer(data, dtype=np.uint8)]
        case "alaw":
            return _ALAW[np.frombuffer(data, dtype=np.uint8)]
    raise ValueError(f"expected a raw format, got {encoding!r}")


def to_mulaw(samples: NDArray[np.float32]) -> bytes:
    """float32 [n] as the nearest of mu-law's levels."""
    return _MULAW_CODES[np.searchsorted(_BETWEEN_MULAW_LEVELS, samples)].tobytes()


def _mulaw_table() -> NDArray[np.float32]:
    """ITU-T G.711 mu-law for each byte, float32 [256]: sign, exponent and mantissa, all inverted."""
    code = ~np.arange(256) & 0xFF
    exponent, mantissa = code >> 4 & 7, code & 0xF
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32) * _S16_SCALE


def _alaw_table() -> NDArray[np.float32]:
    """ITU-T G.711 A-law for each byte, float32 [256]: every second bit inverted; a set sign bit is positive."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 0xF
    step = (mantissa << 4) + 8
    magnitude = np.where(exponent == 0, step, (step + 0x100) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.float32) * _S16_SCALE


_MULAW = _mulaw_table()
_MULAW_CODES = np.argsort(_MULAW).astype(np.uint8)
_BETWEEN_MULAW_LEVELS = (_MULAW[_MULAW_CODES][1:] + _MULAW[_MULAW_CODES][:-1]) / 2
_ALAW = _alaw_table()
