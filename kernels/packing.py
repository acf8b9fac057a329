"""Fixed-width codes as a dense stream of bits, least significant bit first, with no padding between streams.

A stream is a tensor of non-negative integers and the width every one of them takes. Streams follow each other at the
next bit, so n values of width b cost exactly n*b bits and only the end of the whole payload is padded, to a byte.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

_CHUNK = 1 << 18  # values expanded to single bits at a time: bounds the memory at width * 256 KiB


def pack(streams: Iterable[tuple[torch.Tensor, int]]) -> bytes:
    """Pack streams of (values, width), values integers in [0, 2^width), width 1 to 32, into ceil(bits / 8) bytes.

    >>> pack([(torch.tensor([1, 2, 3]), 2), (torch.tensor([1]), 3)]).hex()
    '7900'
    """
    out, carry = [], np.zeros(0, dtype=np.uint8)
    for values, width in streams:
        flat = values.detach().cpu().reshape(-1).numpy()
        for start in range(0, flat.size, _CHUNK):
            bits = np.concatenate([carry, _to_bits(flat[start : start + _CHUNK], width)])
            whole = bits.size // 8 * 8
            out.append(np.packbits(bits[:whole], bitorder="little").tobytes())
            carry = bits[whole:]
    out.append(np.packbits(carry, bitorder="little").tobytes())
    return b"".join(out)


def unpack(payload: bytes, streams: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """The inverse of `pack`: streams of (count, width) give int64 tensors (count,).

    Raises `ValueError` if the payload does not have exactly the bytes that the streams need.

    >>> unpack(bytes.fromhex("7900"), [(3, 2), (1, 3)])
    [tensor([1, 2, 3]), tensor([1])]
    """
    expected = (sum(count * width for count, width in streams) + 7) // 8
    if len(payload) != expected:
        raise ValueError(f"payload has {len(payload)} bytes, its streams need {expected}")
    data, position, found = np.frombuffer(payload, dtype=np.uint8), 0, []
    for count, width in streams:
        values = np.empty(count, dtype=np.int64)
        for start in range(0, count, _CHUNK):
            n = min(_CHUNK, count - start)
            first, skip = divmod(position + start * width, 8)
            last = -(-(position + (start + n) * width) // 8)
            bits = np.unpackbits(data[first:last], bitorder="little")[skip : skip + n * width]
            values[start : start + n] = _from_bits(bits.reshape(n, width))
        position += count * width
        found.append(torch.from_numpy(values))
    return found


def _to_bits(values: np.ndarray, width: int) -> np.ndarray:
    octets = np.ascontiguousarray(values.astype("<u4")).view(np.uint8).reshape(-1, 4)
    return np.unpackbits(octets[:, : -(-width // 8)], axis=1, count=width, bitorder="little").reshape(-1)


def _from_bits(bits: np.ndarray) -> np.ndarray:
    octets = np.packbits(bits, axis=1, bitorder="little")
    weights = 256 ** np.arange(octets.shape[1], dtype=np.int64)
    return octets.astype(np.int64) @ weights
