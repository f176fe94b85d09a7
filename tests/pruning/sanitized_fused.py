"""Drives fused.c, built with sanitizers, over random layers in memory of exactly their sizes.

It runs in a process of its own, without torch: `python sanitized_fused.py LIBRARY TRIALS`. What
the functions return is compared with plain statements of it, so that each really does its work.
"""

import ctypes
import sys

import numpy as np

SIZES = (0, 1, 7, 8, 9, 63, 64, 65, 1023, 1024, 1025, 2048, 2060)


class Trial:
    """Some layers, and the calls of every function on them."""

    def __init__(self, library, rng):
        self.library, self.rng = library, rng
        more = rng.integers(0, 5000, 3).tolist()
        self.sizes = [int(n) for n in rng.choice([*SIZES, *more], rng.integers(1, 5))]
        self.threads = int(rng.integers(1, 5))

    def call(self, name, *arguments):
        """A function of the library; arrays of numpy go as pointers, lists of them as columns."""
        n = len(self.sizes)
        given = [n, (ctypes.c_int64 * n)(*self.sizes)]
        for argument in arguments:
            if isinstance(argument, list):
                argument = (ctypes.c_void_p * n)(*(part.ctypes.data for part in argument))
            elif isinstance(argument, np.ndarray):
                argument = ctypes.c_void_p(argument.ctypes.data)
            elif isinstance(argument, float):
                argument = ctypes.c_float(argument)
            elif isinstance(argument, int):
                argument = ctypes.c_int64(argument)
            given.append(argument)
        getattr(self.library, name)(*given, ctypes.c_int(self.threads))

    def column(self, dtype=np.float32):
        """Random numbers, coarse so that there are ties, some of them broken."""
        made = []
        for n in self.sizes:
            values = (np.round(self.rng.standard_normal(n) * 8) / 8).astype(np.float32)
            values[self.rng.random(n) < 0.01] = np.nan
            values[self.rng.random(n) < 0.01] = np.inf
            if dtype == np.uint16:
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            made.append(values)
        return made

    def masks(self):
        return [self.rng.random(n) < self.rng.random() for n in self.sizes]

    def totals(self, n=None):
        return np.zeros(len(self.sizes) if n is None else n, np.int64)

    def run(self):
        self.bits()
        self.choosing()
        for name, moment in (("float32", np.float32), ("bfloat16", np.uint16)):
            self.seven(name, moment)

    def bits(self):
        masks, totals, again = self.masks(), self.totals(), self.totals()
        self.call("count", masks, totals)
        same([int(mask.sum()) for mask in masks], totals)
        packed = [np.full((n + 7) // 8, 0xA5, np.uint8) for n in self.sizes]
        self.call("pack", masks, packed, again)
        same(totals, again)
        for mask, part in zip(masks, packed, strict=True):
            same(np.packbits(mask, bitorder="little"), part)
        unpacked = [np.ones(n, bool) for n in self.sizes]
        self.call("unpack", unpacked, packed)
        for mask, own in zip(masks, unpacked, strict=True):
            same(mask, own)
        for name, dtype in (("zero_4_bytes", np.float32), ("zero_2_bytes", np.uint16)):
            weights = self.column(dtype)
            expected = [
                np.where(m, w, 0).astype(dtype) for w, m in zip(weights, masks, strict=True)
            ]
            self.call(name, weights, packed)
            for weight, own in zip(weights, expected, strict=True):
                same(weight, own)

    def choosing(self):
        scores, masks = self.column(), self.masks()
        if self.rng.random() < 0.3:
            masks = None
        taking = [m.copy() for m in masks] if masks else [np.ones(n, bool) for n in self.sizes]
        flat, part = np.concatenate(scores), np.concatenate(taking)
        low, high = -0.25, 0.5
        inside = flat[part & (flat > low) & (flat < high)]
        for room in (0, max(0, len(inside) - 1), len(inside), len(inside) + 3):
            between, counts = np.empty(room, np.float32), self.totals(5)
            self.call("partition", scores, masks, low, high, between, room, counts)
            marks = part, part & (flat > high), part & (flat == high), part & (flat == low)
            same([*(mark.sum() for mark in marks), len(inside)], counts)
            if len(inside) <= room:
                same(np.sort(inside), np.sort(between[: len(inside)]))
        for room in (0, 1, 256):
            chosen, found = [np.ones(n, bool) for n in self.sizes], self.totals()
            ties = np.full((len(self.sizes), room), -1, np.int64)
            self.call("best", scores, masks, high, chosen, ties, room, found)
            for i, (score, own, mask) in enumerate(zip(scores, chosen, taking, strict=True)):
                same(mask & (score > high), own)
                equal = (mask & (score == high)).nonzero()[0]
                same([len(equal)], found[i : i + 1])
                if len(equal) <= room:
                    same(equal, np.sort(ties[i, : len(equal)]))

    def seven(self, name, moment):
        weights, grads, scores = self.column(), self.column(), self.column()
        means, squares = self.column(moment), self.column(moment)
        for part in (*means, *squares):
            words = part.view(np.uint16 if moment == np.uint16 else np.uint32)
            words &= np.iinfo(words.dtype).max >> 1  # means of sizes are not negative
        state = (weights, grads, means, squares, scores)
        factors = np.array([256, 0.8, 0.2, 0.9, 0.1, 1.5, 2.5], np.float32)
        old = [np.packbits(mask, bitorder="little") for mask in self.masks()]
        self.call(f"seven_{name}", *state, factors)

        total, stride, number = sum(self.sizes), int(self.rng.integers(1, 40)), self.totals(1)
        sample = np.empty(-(-total // stride), np.float32)
        self.call(f"sampled_{name}", *state, old, factors, stride, sample, number)
        alive = [unpacked(b, n) for b, n in zip(old, self.sizes, strict=True)]
        same([np.concatenate(alive)[::stride].sum()], number)
        drawn = sample[: number[0]]
        drawn = np.sort(drawn[~np.isnan(drawn)])
        low, high = (float(drawn[int(len(drawn) * q)]) if len(drawn) else 0.0 for q in (0.3, 0.7))

        new = [np.full_like(part, 0xA5) for part in old]
        counts, choose = self.totals(2), f"seven_and_best_{name}"
        trial = [[part.copy() for part in column] for column in state]
        empty = np.empty(0, np.float32), self.totals(0)
        self.call(choose, *trial, old, new, factors, low, high, *empty, 0, counts)
        inside = int(counts[1])
        # Also with one place too few, or just enough.
        room = max(0, inside + int(self.rng.choice([-1, 0, 3])))
        values, places = np.empty(room, np.float32), self.totals(room)
        self.call(choose, *state, old, new, factors, low, high, values, places, room, counts)
        same([inside], counts[1:])
        kept = [unpacked(b, n) for b, n in zip(new, self.sizes, strict=True)]
        for own, part, score in zip(kept, alive, scores, strict=True):
            same(part & (score >= low), own)
        if inside > room:
            return
        totals, threshold = self.totals(), (low + high) / 2
        self.call("drop", weights, old, new, values, places, inside, threshold, totals)
        for i, (own, b) in enumerate(zip(weights, new, strict=True)):
            stay = unpacked(b, len(own))
            same([stay.sum()], totals[i : i + 1])
            same(own[~stay], np.zeros((~stay).sum(), np.float32))
            assert (scores[i][stay] >= np.float32(min(threshold, high))).all()


def unpacked(bits, n):
    return np.unpackbits(bits, count=n, bitorder="little").astype(bool)


def same(expected, found):
    np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    library = ctypes.CDLL(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        Trial(library, rng).run()
