"""Random numbers as a pure function of named integers, for many samples at once.

A generator with a state would tie what one patient gets to who came before; here each sample's
numbers depend on its own key alone (seed, epoch, patient, eye, purpose), so they are the same
after a resume and on any number of ranks. A key is hashed into the start of a SplitMix64 stream
(Steele, Lea and Flood, OOPSLA 2014), which is integer arithmetic only and therefore the same on
every machine and under every NumPy version.

Legend: N samples, K numbers for each.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(words):
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


def _as_words(value):
    # one-element arrays, not scalars: only array arithmetic wraps without a warning
    return np.atleast_1d(np.asarray(value, dtype=np.int64)).astype(np.uint64)


def uniforms(key, count):
    """Return (N, K) float64 numbers in [0, 1), K = `count`, one row per sample.

    `key` is a sequence of integers or (N,) integer arrays (anything that fits int64, also
    negative), which are broadcast against each other; equal keys give equal rows.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mix(state ^ _mix(_as_words(part) + _GAMMA)) + _GAMMA
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    bits = _mix(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
