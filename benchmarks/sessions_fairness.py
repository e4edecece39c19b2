"""Key A queues 32 turns, key B sends one: how many of A's come before it?"""

from benchmarks.report import Figure
from benchmarks.sessions_ask import Ask, begun, until, user
from benchmarks.sessions_homeport import call, installation, machine_token, replicas
from tests.e2e.installation import Homeport

QUEUED = 32
TOKENS = 24
TARGET = 1
KEYS = {"a": "use", "b": "use", "boss": "admin"}
"""Role by name."""


def measure(rounds: int) -> list[Figure]:
    """On one exclusive replica whose quiet sessions hold nothing, with a file of keys."""
    with installation(count="1", hold="0s", queue="120s") as homeport:
        secrets = _make_keys(homeport)
        homeport.up()
        passed = [_round(homeport, secrets, number) for number in range(rounds)]
    most = max(passed)
    return [
        Figure(
            f"key A queues {QUEUED}, key B sends 1",
            "B waits for at most one turn",
            f"{most} of A's turns ended between B's arrival and B's start",
            most <= TARGET,
            f"the most of {rounds} rounds ({', '.join(map(str, passed))}); {QUEUED} sessions of A with a turn of "
            f"{TOKENS} tokens each, one running and {QUEUED - 1} in the line when B's comes; the order in which the "
            "host ended them; the turn that ran when B came counts",
        )
    ]


def _round(homeport: Homeport, secrets: dict[str, str], number: int) -> int:
    """How many of A's turns were over when B's began, and not when B's came."""
    port = homeport.ports["router"]

    def turn(key: str, name: str) -> Ask:
        headers = {"authorization": f"Bearer {secrets[key]}", "x-request-id": name}
        return Ask(port, name, user("Name three rivers."), TOKENS, headers)

    (replica,) = replicas(port, secrets["boss"])
    host, token = int(replica["port"]), machine_token(homeport)

    def state(name: str) -> int:
        return int(call(host, "GET", "/state", token=token)[1][name])

    before = state("turns")
    first = begun(turn("a", f"a-{number}-0"))
    until(lambda: state("running") == 1, 30, "A's first turn", 0.01)
    rest = [begun(turn("a", f"a-{number}-{each}")) for each in range(1, QUEUED)]
    until(lambda: state("waiting") == QUEUED - 1 - (state("turns") - before), 30, "A's line", 0.01)
    over = state("turns") - before
    b = begun(turn("b", f"b-{number}"))
    for _, thread in (first, *rest, b):
        thread.join()
    if broken := [said.error for said, _ in (first, *rest, b) if said.error is not None]:
        raise RuntimeError(f"a turn failed: {broken}")
    recent = [one["request_id"] for one in call(host, "GET", "/state", token=token)[1]["recent"]]
    after_b = len(recent) - 1 - recent.index(f"b-{number}")
    return QUEUED - after_b - over


def _make_keys(homeport: Homeport) -> dict[str, str]:
    """A file of keys for this installation, named in its config; the secrets by name."""
    file = homeport.folder / "keys.yaml"
    text = homeport.config.read_text()
    listen = f"listen: 127.0.0.1:{homeport.ports['router']}"
    homeport.config.write_text(text.replace(listen, f"{listen}, keys_file: {file}"))
    return {name: _new_key(homeport, name, role) for name, role in KEYS.items()}


def _new_key(homeport: Homeport, name: str, role: str) -> str:
    done = homeport.run("key", "new", name, "--role", role, "--config", str(homeport.config))
    if done.returncode != 0:
        raise RuntimeError(f"no key: {done.stdout}{done.stderr}")
    return next(word for word in done.stdout.split() if word.startswith("hp-"))
