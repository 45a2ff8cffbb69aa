"""Random processes that are functions of (seed, name, process, time): the same however a range is split."""

import hashlib
from collections.abc import Sequence

import numpy as np


def region_keys(regions: Sequence[str], seed: int) -> np.ndarray:
    """A 64-bit key per region [R, 1]."""
    digests = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in regions]
    return np.frombuffer(b"".join(digests), dtype="<u8")[:, None]


def normal(keys: np.ndarray, process: int, counter: np.ndarray) -> np.ndarray:
    """Standard normal variates as a function of (key, process, counter): splitmix64 and Box-Muller. [R, N]."""

    def uniform(salt: int) -> np.ndarray:
        x = keys ^ np.uint64((process * 2 + salt + 1) * 0xD1342543DE82EF95 & 0xFFFFFFFFFFFFFFFF)
        x = x + counter.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        return ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    return np.sqrt(-2.0 * np.log(uniform(0))) * np.cos(2.0 * np.pi * uniform(1))


def autocorrelated(keys: np.ndarray, process: int, counter: np.ndarray, decay: np.ndarray, memory: int) -> np.ndarray:
    """A unit-variance AR(1) process cut to `memory` steps, at consecutive counters. `decay` per step [R, 1]."""
    noise = normal(keys, process, np.arange(counter[0] - memory + 1, counter[-1] + 1))
    n = len(counter)
    total = np.zeros((len(keys), n))
    for lag in range(memory - 1, -1, -1):
        total *= decay
        total += noise[:, memory - 1 - lag : memory - 1 - lag + n]
    scale = np.sqrt((1 - decay**2) / (1 - decay ** (2 * memory)))
    return total * scale
