"""Keyed random numbers: a pure function of what they are used for, independent of rank, thread and time of the call.

Each number is keyed by (seed, epoch, id, slot, purpose): the counter-based generator Philox4x32-10 (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3") turns the key into four 32-bit words. So a view is the same on
every rank, at every world size, with any number of threads and after every resume; no generator state is ever saved.

Counter words: id (low 32 bits), id (high 32 bits), epoch, purpose << 24 | slot << 12 | block.
Key words: seed (low, high). A block holds four draws. float32 = (word >> 8) * 2**-24, so 0 <= x < 1 exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from dist_ssl.core.tokens import ALL_TOKENS, Tokens

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
SLOT_BITS = 12
BLOCK_BITS = 12


class Purpose(IntEnum):
    """Purpose that a random number is drawn for; the values determine every run's random numbers and never change."""

    SHARD_ORDER = 1
    WINDOW_ORDER = 2
    REPLACEMENT = 3
    CROP = 4
    FLIP = 5
    JITTER = 6
    GRAY = 7
    BLUR = 8
    SOLARIZE = 9
    PROBE = 10
    STEP = 11
    TURN = 12
    INVERT = 13
    NEGATIVE = 14
    SHUFFLE = 15
    ROTATION = 16
    MIX = 17
    DROP_PATH = 18
    TOKENS = 19
    CANDIDATE = 20


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Apply ten rounds of Philox4x32 to four arrays of 32-bit words (stored as uint64); return four such arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ np.uint64(k0), p1 & LOW, (p0 >> HALF) ^ c3 ^ np.uint64(k1), p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """All random numbers of one epoch of one run. `seed`: 0 to 2**64 - 1; `epoch`: 0 to 2**32 - 1."""

    seed: int
    epoch: int = 0

    def words(self, purpose: Purpose, ids: Ints, slot: int, count: int) -> Words:
        """Return [len(ids), count] random 32-bit words, stored as uint64. `slot`: 0 to 4095; `count`: 1 to 16384."""
        found: Words = self._words({purpose: count}, ids, range(slot, slot + 1))[purpose][0]
        return found

    def _words(self, counts: Mapping[Purpose, int], ids: Ints, slots: range | Ints) -> dict[Purpose, Words]:
        """Return the words of each purpose, [S, B, count] each; see `of_slots`."""
        rows = np.array(slots)[:, None] if isinstance(slots, range) else slots
        assert 0 <= rows.min() <= rows.max() < 1 << SLOT_BITS
        blocks = {purpose: (count + 3) // 4 for purpose, count in counts.items()}
        assert all(0 < number <= 1 << BLOCK_BITS for number in blocks.values())
        firsts = [(int(purpose) << 24, number) for purpose, number in blocks.items()]
        block = np.concatenate([np.arange(first, first + number, dtype=np.uint64) for first, number in firsts])
        slot = rows.astype(np.uint64)[:, :, None] << np.uint64(BLOCK_BITS)
        wide = ids.astype(np.uint64)[None, :, None]
        epoch = np.full_like(wide, self.epoch)
        counter, key = (wide & LOW, wide >> HALF, epoch, slot | block), (self.seed & 0xFFFFFFFF, self.seed >> 32)
        out = np.stack(philox(counter, key), axis=-1)
        ends = np.cumsum(list(blocks.values()))
        parts = zip(counts.items(), np.split(out, ends[:-1], axis=2), strict=True)
        return {
            purpose: part.reshape(*part.shape[:2], 4 * part.shape[2])[..., :count] for (purpose, count), part in parts
        }

    def uniform(self, purpose: Purpose, ids: Ints, slot: int, count: int) -> Floats:
        """Return [len(ids), count] float32 numbers, uniform in [0, 1): row i depends on ids[i] alone."""
        return self.uniforms({purpose: count}, ids, slot)[purpose]

    def uniforms(self, counts: Mapping[Purpose, int], ids: Ints, slot: int) -> dict[Purpose, Floats]:
        """Return `uniform` for several purposes (purpose -> count), computed in one pass."""
        return {p: drawn[0] for p, drawn in self.of_slots(counts, ids, range(slot, slot + 1)).items()}

    def of_slots(self, counts: Mapping[Purpose, int], ids: Ints, slots: range | Ints) -> dict[Purpose, Floats]:
        """Return `uniform` for several purposes and slots, [S, B, count] each, computed in one pass.

        `slots`: the same for all samples, or those of every sample, [S, B] (or [S, 1]).
        One pass saves time: for few numbers nearly all of the cost is the overhead of the NumPy calls.
        """
        words = self._words(counts, ids, slots)
        return {p: (drawn >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24) for p, drawn in words.items()}

    def order(self, purpose: Purpose, ids: Ints, slot: int = 0) -> Ints:
        """Return a random order of the ids as positions, [len(ids)]: sorted by a 64-bit number drawn for each id."""
        words = self.words(purpose, ids, slot, 2)
        return np.argsort(words[:, 0] << HALF | words[:, 1], kind="stable")

    def chosen(self, purpose: Purpose, ids: Ints, slots: range, among: int, count: int) -> Ints:
        """Return `count` different numbers of 0 to `among` - 1, [len(slots), len(ids), count], ascending.

        Every choice is equally likely. `among`: 1 to 16384; `count`: 1 to `among`.
        """
        words = self._words({purpose: among}, ids, slots)[purpose]
        numbered = words << HALF | np.arange(among, dtype=np.uint64)  # no two are equal
        lowest = np.partition(numbered, count - 1, axis=-1)[..., :count]
        return np.sort((lowest & LOW).astype(np.int64), axis=-1)

    def of(self, ids: Ints, tokens: Tokens = ALL_TOKENS) -> "SampleDraws":
        """Return the draws of these samples, whose views a transformer cuts into `tokens`."""
        return SampleDraws(self, ids, tokens)

    def torch_seed(self, step: int) -> int:
        """Return a 63-bit seed for a torch generator at one step."""
        words = self.words(Purpose.STEP, np.array([step], dtype=np.int64), 0, 2)
        return int((words[0, 0] << HALF | words[0, 1]) >> np.uint64(1))


@dataclass(frozen=True)
class SampleDraws:
    """The random numbers of the samples `ids`, [B]: passed to a method together with a part of a batch."""

    draws: Draws
    ids: Ints
    tokens: Tokens = ALL_TOKENS
    """How a transformer cuts the views of these samples."""

    def uniform(self, purpose: Purpose, slot: int, count: int) -> Floats:
        """Return [B, count] float32 numbers, uniform in [0, 1); row i depends on ids[i] alone."""
        return self.draws.uniform(purpose, self.ids, slot, count)
