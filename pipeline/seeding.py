"""The way randomness is made: a generator from a seed and the names of what it is for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seeded(seed: int, *tags: str | int) -> np.random.Generator:
    """A generator for this seed and purpose, the same in every process and on every platform.

    `seeded(seed, "split")` and `seeded(seed, "augment", epoch, position)` are independent streams;
    no code draws from a global generator.
    """
    import numpy as np

    text = "\0".join(f"{type(tag).__name__}:{tag}" for tag in tags)
    words = hashlib.blake2b(text.encode(), digest_size=16).digest()
    entropy = [seed, *(int.from_bytes(words[i : i + 4], "little") for i in range(0, 16, 4))]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
