"""Log probabilities out of a model's logits."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from serving.engine import Likely, Sampled


class Scores:
    """What the model alone thinks of each token, taken from its logits before anything is done to them."""

    __slots__ = ("_logprobs",)

    def __init__(self, logits: NDArray[np.float32]) -> None:
        shifted = logits - logits.max()
        self._logprobs = shifted - np.log(np.exp(shifted).sum(dtype=np.float64))

    def sampled(self, token: int, top: int, spelled: Callable[[int], bytes]) -> Sampled:
        """`token` and the `top` likeliest, of equals the smaller number first."""

        def likely(token: int) -> Likely:
            return Likely(token, spelled(token), float(self._logprobs[token]))

        return Sampled(likely(token), tuple(likely(int(best)) for best in self._best(top)))

    def _best(self, count: int) -> NDArray[np.intp]:
        count = min(count, len(self._logprobs))
        if not count:
            return np.empty(0, dtype=np.intp)
        best = np.argpartition(self._logprobs, -count)[-count:]
        return best[np.lexsort((best, -self._logprobs[best]))]
