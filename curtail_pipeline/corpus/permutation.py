"""A seeded shuffle of 0..n-1 that needs no memory: a Feistel network with cycle-walking.

Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002): a balanced Feistel network permutes
0..4^k-1 for the smallest 4^k >= n; a result outside 0..n-1 is fed back until it falls inside, at most four times as
often as not. Not for secrecy: the round function is a 64-bit mixer.
"""

import hashlib

import numpy as np

ROUNDS = 6
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Permutation:
    """A bijection of 0..n-1 chosen by `key`, any hashable-to-text parts (seed, site, epoch)."""

    def __init__(self, n: int, *key: object) -> None:
        if n < 1:
            raise ValueError(f"a permutation of {n} elements does not exist")
        self.n = n
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS, person=b"curtail-shuffle").digest()
        self._keys = [np.uint64(k) for k in np.frombuffer(digest, dtype="<u8")]
        half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where each position (any integer array within 0..n-1) goes; int64 of the same shape."""
        out = self._network(positions.astype(np.uint64))
        limit = np.uint64(self.n)
        while True:
            outside = np.flatnonzero(out >= limit)
            if not outside.size:
                return out.astype(np.int64)
            out[outside] = self._network(out[outside])

    def _network(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            # splitmix64's finaliser as the round function; uint64 arithmetic wraps by definition
            f = (right + key) * _MIX_1
            f ^= f >> np.uint64(29)
            f *= _MIX_2
            f ^= f >> np.uint64(32)
            left, right = right, left ^ (f & self._mask)
        return (left << self._half) | right
