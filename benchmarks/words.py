"""Made-up messages: common words, each mostly one token, in an order of its own for each seed."""

import random

COMMON = """
the harbour was calm and a small boat came home with fish bread water light stone river garden winter
morning people walk along old street where children play under tall trees while birds sing about summer
rain falls on red roof green field blue sky white house black cat slow train long road good friend
"""


def words(seed: str, count: int) -> str:
    chosen, known = random.Random(seed), COMMON.split()
    return " ".join(chosen.choice(known) for _ in range(count))
