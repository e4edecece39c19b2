"""Sessions that move between real hosts with their contexts, by a router's word or because a machine is drained."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from router.app import new_clients
from serving.drain_plan import NAMED
from serving.machine_book import MachineBook
from serving.model import ModelSpec, ParkingSpec
from serving.moving import Anew, Carried, Mover, NotMoved
from serving.pins import Pin
from serving.source import SourceError, bundled_model
from tests.fakes import Behaviour
from tests.host_process import HostProcess, model_spec
from tests.models import gemma
from tests.moving_world import Machines, World, router_of, world

HELLO = "hello " * 60
LONG = pytest.mark.skipif(
    "HOMEPORT_TEST_MOVES" not in os.environ,
    reason="4,000 tokens take a minute: HOMEPORT_TEST_MOVES=1 runs it, and tests/cluster/test_moves.py has as many",
)
MakeWorld = Callable[..., Any]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    numbers = itertools.count()
    made: list[HostProcess] = []

    def make(
        behaviour: Behaviour | None = Behaviour(),  # noqa: B008
        spec: ModelSpec | None = None,
        path: str = "nowhere.gguf",
    ) -> HostProcess:
        host = HostProcess(tmp_path / f"host{next(numbers)}", spec or model_spec(hold_s=0.0), path, behaviour)
        made.append(host)
        return host

    yield make
    for host in made:
        host.kill()


@pytest.fixture
async def make_world(
    tmp_path: Path, make_host: Callable[..., HostProcess], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeWorld]:
    """Makes one of machines by name: (zone, behaviour)."""
    async with AsyncExitStack() as stack:

        async def make(
            spec: ModelSpec | None = None, path: str = "nowhere.gguf", **named: tuple[str, Behaviour | None]
        ) -> World:
            spec, machines = spec or model_spec(hold_s=0.0), Machines()
            for name, (zone, behaviour) in named.items():
                machines.add(name, zone, make_host(behaviour, spec, path))
            await asyncio.gather(*(asyncio.to_thread(host.start) for host in machines.hosts.values()))
            return await stack.enter_async_context(world(tmp_path, machines, spec, monkeypatch))

        yield make


FAKE = Behaviour()
SHORT = Behaviour(mover_s=1.0)
"""Its host waits no five seconds for a mover that is dead; tests/test_host_parked.py has one that does."""


class Talk:
    """A growing conversation of one session through the router."""

    def __init__(self, world: World, name: str, opening: str = HELLO, **fields: Any) -> None:
        self.world = world
        self.name = name
        self.next_words = opening
        self.fields = fields
        self.messages: list[dict[str, str]] = []
        self.machine = ""
        self.public = ""
        self.told: dict[str, Any] = {}
        self.headers: Mapping[str, str] = {}

    async def say(self, words: str | None = None, headers: Mapping[str, str] | None = None) -> str:
        asked = [*self.messages, {"role": "user", "content": words or self.next_words}]
        status, self.headers, body = await self.world.chat(
            self.name, {"messages": asked, **self.fields}, headers
        )
        assert status == 200, body
        self.next_words = "and now?"
        answer = body["choices"][0]["message"]
        self.messages = [*asked, {"role": "assistant", "content": answer["content"]}]
        self.machine, self.public = self.headers["x-homeport-machine"], self.headers["x-homeport-session"]
        self.told = body["homeport"]
        return str(answer["content"])

    async def stream(self) -> tuple[int, Mapping[str, str], str]:
        """A turn that is not remembered, as it came."""
        body = {
            "model": "smollm2",
            "stream": True,
            "messages": [*self.messages, {"role": "user", "content": "and?"}],
        }
        url = self.world.url + "/v1/chat/completions"
        async with self.world.client.post(url, json=body, headers={"x-session-id": self.name}) as answer:
            return answer.status, answer.headers, await answer.text()

    async def move(self, machine: str) -> dict[str, Any]:
        path = f"/api/sessions/{self.public}/move"
        status, told = await self.world.ask("POST", path, {"machine": machine})
        assert status == 200, told
        return dict(told)


def other(world: World, machine: str) -> str:
    return next(name for name in world.machines.hosts if name != machine)


# one session


async def test_a_session_that_moves_takes_its_context_along(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    held = len("".join(each["content"] for each in talk.messages))
    new = other(world, talk.machine)
    told = await talk.move(new)
    assert (told["context"], told["replicas"]) == ("carried", [f"{new}/0"])
    (moved,) = told["moved"]
    assert moved["tokens"] >= held
    assert moved["bytes"] > moved["tokens"]
    await talk.say()
    assert (talk.machine, talk.headers["x-homeport-pin"]) == (new, "moved")
    assert (talk.told["context"], talk.told["cause"]) == ("resumed", None)
    assert talk.told["reused_tokens"] == moved["tokens"]
    await talk.say()
    assert (talk.headers["x-homeport-pin"], talk.told["context"]) == ("kept", "resident")
    back = await talk.move(other(world, new))
    assert back["context"] == "carried"
    await talk.say()
    assert (talk.told["context"], talk.told["pin"]) == ("resumed", "moved")


@pytest.mark.parametrize(
    ("behaviour", "spec", "why"),
    [
        (
            Behaviour(layout="llama-cpp-python 9 4000 cells for 1 f16 flash"),
            model_spec(hold_s=0.0),
            "the engine's build differs",
        ),
        (
            Behaviour(layout="llama-cpp-python 8 4000 cells for 1 q8_0 flash"),
            model_spec(hold_s=0.0),
            "the KV type differs",
        ),
        (
            Behaviour(layout="llama-cpp-python 8 4000 cells for 1 f16 flash"),
            model_spec(hold_s=0.0, parking=ParkingSpec(2**20, 0)),
            "the new home parks nothing on disk",
        ),
    ],
)
async def test_where_the_context_cannot_go_along_it_says_so_and_the_session_moves(
    make_host: Callable[..., HostProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Behaviour,
    spec: ModelSpec,
    why: str,
) -> None:
    ours = Behaviour(layout="llama-cpp-python 8 4000 cells for 1 f16 flash")
    machines = Machines()
    machines.add("den", "home", make_host(ours))
    machines.add("attic", "home", make_host(behaviour, spec))
    for host in machines.hosts.values():
        host.start()
    async with world(tmp_path, machines, spec, monkeypatch) as made:
        talk = Talk(made, "tea")
        await talk.say(headers={"x-homeport-when-lost": "wait"})
        if talk.machine != "den":
            await talk.move("den")
            await talk.say()
        told = await talk.move("attic")
        assert (told["context"], told["why"]) == ("evaluated anew", why)
        await talk.say()
        assert (talk.machine, talk.told["context"], talk.told["cause"]) == ("attic", "evaluated", "moved")


async def test_what_a_session_said_goes_along_and_is_left_nowhere_else(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = world.host(talk.machine), other(world, talk.machine)
    records = [{"id": "r1", "said": "x" * 100_000}, {"id": "r2", "previous": "r1"}]
    for each in records:
        assert old.put(f"/kept/{talk.public}/{each['id']}", each).status == 200
    await talk.move(new)
    assert world.host(new).get(f"/kept/{talk.public}/r2?chain").body["records"] == records
    assert old.get(f"/kept/{talk.public}/r2").status == 404
    async with asyncio.timeout(10):
        while b"x" * 1000 in (old.folder / "kept.sqlite").read_bytes():  # noqa: ASYNC110  (another process's file)
            await asyncio.sleep(0.05)


async def test_what_was_said_that_cannot_go_along_does_not_hold_a_session_back(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = world.host(talk.machine), other(world, talk.machine)
    (world.host(new).folder / "kept.sqlite").mkdir()
    assert old.put(f"/kept/{talk.public}/r1", {"id": "r1"}).status == 200
    assert (await talk.move(new))["context"] == "carried"
    await talk.say()
    assert (talk.machine, talk.told["context"]) == (new, "resumed")
    assert world.host(new).get(f"/kept/{talk.public}/r1").status == 507


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_comes_while_its_session_moves_runs_once_at_the_new_home(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = talk.machine, other(world, talk.machine)
    before = {name: world.host(name).state()["turns"] for name in (old, new)}
    arrive, coming = Mover.arrive, asyncio.Event()

    async def late(mover: Mover, *args: Any) -> None:
        coming.set()
        await asyncio.sleep(0.5)  # the turn is at the old home by then
        await arrive(mover, *args)

    monkeypatch.setattr(Mover, "arrive", late)
    moving = asyncio.create_task(talk.move(new))
    await coming.wait()
    if stream:
        status, headers, text = await talk.stream()
        assert (status, headers["x-homeport-machine"], headers["x-homeport-pin"]) == (200, new, "moved")
        assert text.endswith("data: [DONE]\n\n")
    else:
        await talk.say()
        assert (talk.machine, talk.headers["x-homeport-pin"]) == (new, "moved")
        assert talk.told["context"] == "resumed"
    assert (await moving)["context"] == "carried"
    after = {name: world.host(name).state()["turns"] for name in (old, new)}
    assert (after[old] - before[old], after[new] - before[new]) == (0, 1)


class Dead(BaseException):
    """Whoever moves is killed: nothing of it goes on."""


@pytest.mark.parametrize("dies_at", ["carry", "_hand_over", "_carry_kept", "arrive", "leave"])
async def test_a_mover_that_dies_at_any_step_leaves_a_session_that_answers(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    world = await make_world(den=("home", SHORT), attic=("home", SHORT))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = talk.machine, other(world, talk.machine)

    async def dead(*_: Any) -> None:
        raise Dead

    async with new_clients() as clients:
        mover = Mover(clients.peers, world.machines.bearer)
        monkeypatch.setattr(mover, dies_at, dead)
        (pin,) = [pin for pin in world.host(old).get("/pins").body["pins"] if pin["public"] == talk.public]
        made = Pin(pin["session"], pin["model"], f"{new}/0", 2, time.time())
        source, target = (f"http://127.0.0.1:{world.host(name).port}" for name in (old, new))
        with pytest.raises(Dead):
            await mover.move(source, target, made, pin)
    turns = {name: world.host(name).state()["turns"] for name in (old, new)}
    began = time.monotonic()
    await talk.say()
    assert time.monotonic() - began < 8.0
    ran = {name: world.host(name).state()["turns"] - turns[name] for name in (old, new)}
    assert sum(ran.values()) == 1
    assert talk.told["context"] in ("resident", "resumed"), "nothing was lost"
    if dies_at == "leave":  # The controller reads the new home's journal and tells the old one.
        await asyncio.sleep(1.0)
        await talk.say()
        assert talk.machine == new
    else:
        assert (talk.machine, talk.headers["x-homeport-pin"]) == (old, "kept")
        told = await talk.move(new)
        assert told["context"] == "carried"
        await talk.say()
        assert (talk.machine, talk.told["context"]) == (new, "resumed")


async def test_a_new_home_that_cannot_write_it_down_leaves_the_session_where_it_is(
    make_world: MakeWorld,
) -> None:
    world = await make_world(den=("home", SHORT), attic=("home", SHORT))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = talk.machine, other(world, talk.machine)
    (pin,) = world.host(old).get("/pins").body["pins"]
    made = Pin(pin["session"], pin["model"], f"{new}/0", 2, time.time())
    world.host(new).kill()
    async with new_clients() as clients:
        base = f"http://127.0.0.1:{world.host(old).port}"
        with pytest.raises(NotMoved, match="could not write it down"):
            await Mover(clients.peers, world.machines.bearer).move(base, "http://127.0.0.1:1", made, pin)
    await talk.say()
    assert (talk.machine, talk.told["context"]) == (old, "resident")


async def test_a_session_that_was_ended_meanwhile_is_not_brought_back(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = talk.machine, other(world, talk.machine)
    (pin,) = world.host(old).get("/pins").body["pins"]
    made = Pin(pin["session"], pin["model"], f"{new}/0", 2, time.time())
    assert (await world.ask("DELETE", f"/api/sessions/{talk.public}"))[0] == 200
    async with new_clients() as clients:
        source, target = (f"http://127.0.0.1:{world.host(name).port}" for name in (old, new))
        with pytest.raises(NotMoved, match="it was ended"):
            await Mover(clients.peers, world.machines.bearer).move(source, target, made, pin)
    assert [world.host(name).state()["pins"] for name in (old, new)] == [0, 0]


@pytest.mark.parametrize("ends_before", ["_hand_over", "arrive", "leave"])
async def test_a_session_that_is_ended_while_it_moves_is_not_brought_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, ends_before: str
) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = talk.machine, other(world, talk.machine)
    (pin,) = world.host(old).get("/pins").body["pins"]
    made = Pin(pin["session"], pin["model"], f"{new}/0", 2, time.time())
    async with new_clients() as clients:
        mover = Mover(clients.peers, world.machines.bearer)
        goes_on = getattr(mover, ends_before)

        async def ended_first(*args: Any) -> Any:
            # As the router ends it, whose picture has it at its old home still.
            status = world.host(old).delete(f"/pins/{pin['session']}").status
            assert status == 200
            return await goes_on(*args)

        monkeypatch.setattr(mover, ends_before, ended_first)
        source, target = (f"http://127.0.0.1:{world.host(name).port}" for name in (old, new))
        with pytest.raises(NotMoved, match="it was ended"):
            await mover.move(source, target, made, pin)
    assert [world.host(name).state()["pins"] for name in (old, new)] == [0, 0]
    assert [world.host(name).state()["parking"]["sessions"] for name in (old, new)] == [0, 0]


async def test_a_host_that_dies_while_it_gives_costs_the_context_and_no_more(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talk = Talk(world, "tea")
    await talk.say()
    old, new = talk.machine, other(world, talk.machine)
    (pin,) = world.host(old).get("/pins").body["pins"]
    made = Pin(pin["session"], pin["model"], f"{new}/0", 2, time.time())
    world.host(old).kill()
    async with new_clients() as clients:
        source, target = (f"http://127.0.0.1:{world.host(name).port}" for name in (old, new))
        context = await Mover(clients.peers, world.machines.bearer).move(source, target, made, pin)
    assert isinstance(context, Anew)
    await talk.say()
    assert (talk.machine, talk.told["cause"]) == (new, "moved")


# with a real model


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return bundled_model()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sentences", [25, pytest.param(285, marks=LONG)])
async def test_a_long_session_says_after_a_move_what_it_would_have_said(
    make_host: Callable[..., HostProcess], model: Path, sentences: int
) -> None:
    """A real model. Nobody tells the old home that the session moved, so that it goes on at both."""
    spec, machines = model_spec(context=4608), Machines()
    for name in ("den", "attic"):
        machines.add(name, "home", make_host(None, spec, str(model)))
    den, attic = machines.hosts["den"], machines.hosts["attic"]
    await asyncio.gather(*(asyncio.to_thread(host.start) for host in (den, attic)))
    messages = [
        {"role": "user", "content": "Tell me of a harbour and the ships that come home to it. " * sentences}
    ]
    began = time.monotonic()
    answer = await _asked(den, messages, 1)
    print(f"  {answer['evaluated_tokens']} tokens evaluated in {time.monotonic() - began:.1f} s")
    (pin,) = den.get("/pins").body["pins"]
    made = Pin(pin["session"], pin["model"], "attic/0", 2, time.time())
    async with new_clients() as clients:
        mover = Mover(clients.peers, machines.bearer)
        source, target = (f"http://127.0.0.1:{host.port}" for host in (den, attic))
        moved = await mover.carry(source, target, pin["session"])
        await mover.arrive(target, made, {**pin, **made.to_json()})
    assert isinstance(moved, Carried), moved
    assert moved.tokens > 14 * sentences
    print(f"  {moved.tokens} tokens, {moved.bytes} bytes, carried in {moved.seconds:.2f} s")
    for number, words in enumerate(("Which of them came first?", "And what did it bring?")):
        messages += [{"role": "assistant", "content": answer["text"]}, {"role": "user", "content": words}]
        answer = await _asked(den, messages, 1)
        began = time.monotonic()
        there = await _asked(attic, messages, 2)
        print(
            f"  then {there['evaluated_tokens']} tokens evaluated, {there['reused_tokens']} were there, "
            f"in {time.monotonic() - began:.2f} s"
        )
        same = ("text", "evaluated_tokens", "reused_tokens", "cause")
        assert {name: there[name] for name in same} == {name: answer[name] for name in same}, (
            "token for token, and no more evaluated than where it stayed"
        )
        assert (answer["context"], there["context"]) == ("resident", "resident" if number else "resumed")
        assert (there["cause"], there["evaluated_tokens"] < 50) == (None, True)


async def _asked(host: HostProcess, messages: list[dict[str, str]], generation: int) -> dict[str, Any]:
    """Ann's turn at a host: what it says of homeport, and its text."""
    pin = "kept" if generation > 1 or len(messages) > 1 else "new"
    headers = {"x-homeport-pin": pin, "x-homeport-generation": str(generation)}
    body = {"messages": messages, "temperature": 0, "max_tokens": 16}
    answer = await asyncio.to_thread(host.chat, body, headers, "ann")
    assert answer.status == 200, answer.body
    return {**answer.body["homeport"], "text": answer.body["choices"][0]["message"]["content"]}


async def test_a_sliding_window_goes_along_with_its_checkpoints(make_world: MakeWorld) -> None:
    """Longer than Gemma's window; its last answer is taken back at the new home, which only a checkpoint allows."""
    spec = model_spec(context=2048, hold_s=0.0)
    world = await make_world(spec, str(gemma()), den=("home", None), attic=("home", None))
    start = "The ships came home, one after another, each with its own story. " * 60

    async def complete(session: str, prompt: str) -> tuple[str, dict[str, Any], Mapping[str, str]]:
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": 16, "temperature": 0}
        async with world.client.post(
            world.url + "/v1/completions", json=body, headers={"x-session-id": session}
        ) as answer:
            told = await answer.json()
            assert answer.status == 200, told
            return told["choices"][0]["text"], told["homeport"], answer.headers

    texts = {name: (await complete(name, start))[0] for name in ("stays", "goes")}
    said, _, headers = await complete("goes", start + texts["goes"] + " And then")
    assert (await complete("stays", start + texts["stays"] + " And then"))[0] == said
    new, path = (
        other(world, headers["x-homeport-machine"]),
        f"/api/sessions/{headers['x-homeport-session']}/move",
    )
    status, told = await world.ask("POST", path, {"machine": new})
    assert (status, told["context"]) == (200, "carried")
    after = [await complete(name, start + texts[name] + " And then" + said[:4]) for name in ("goes", "stays")]
    (text, moved, _), (expected, stayed, _) = after
    assert (text, moved["evaluated_tokens"]) == (expected, stayed["evaluated_tokens"])
    assert moved["reused_tokens"] > 600


# drained machines


async def talks_at(world: World, machine: str, names: list[str], **headers: str) -> list[Talk]:
    """Sessions whose home is on this machine, each with one turn."""
    talks = [Talk(world, name) for name in names]
    for talk in talks:
        await talk.say(headers=headers)
        if talk.machine != machine:
            await talk.move(machine)
            await talk.say()
    return talks


async def drain(world: World, machine: str, within_s: float) -> None:
    status, told = await world.ask("POST", f"/api/machines/{machine}/drain", {"within_s": within_s})
    assert status == 200, told


async def test_a_drained_machine_is_empty_at_once_where_nobody_waits(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE), far=("office", FAKE))
    talks = await talks_at(world, "den", ["one", "two", "three"])
    await drain(world, "den", 0)
    told = await world.drained("den")
    assert (told["moved"], told["anew"], told["stay"]) == (3, {}, {})
    den = (await world.fleet())["den"]
    assert (den["state"], den["cordoned"]) == ("draining", True)
    for talk in talks:
        await talk.say()
        assert (talk.machine, talk.headers["x-homeport-pin"]) == ("attic", "moved")
        assert talk.told["context"] == "resumed"
    newcomer = Talk(world, "new")
    await newcomer.say(headers={"x-homeport-zone": "home"})
    assert newcomer.machine == "attic"
    assert world.host("den").state()["pins"] >= 3, "it knows where they went"
    status, _ = await world.ask("POST", "/api/machines/den/uncordon")
    assert status == 200
    assert (await world.fleet())["den"]["state"] == "ready"


async def test_until_the_deadline_a_session_is_served_where_it_lives_and_then_its_turn_ends(
    make_world: MakeWorld,
) -> None:
    spec = model_spec(hold_s=0.0, sessions=2)
    endless = Behaviour(endless=True, step_s=0.02, sequences=2)
    world = await make_world(spec, den=("home", endless), attic=("home", endless))
    talk = Talk(world, "talks", max_tokens=3)
    await talk.say(headers={})
    machine = talk.machine
    await drain(world, machine, 4.0)
    await world.until(lambda fleet: fleet[machine]["draining"]["left"] == 1, "it has looked")
    await talk.say()
    assert (talk.machine, talk.headers["x-homeport-pin"]) == (machine, "kept")
    asked = {"messages": [*talk.messages, {"role": "user", "content": "go on"}], "max_tokens": 3000}
    status, _, body = await world.chat("talks", asked)
    assert (status, body["error"]["code"]) == (503, "host_stopping")
    told = await world.drained(machine)
    assert (told["moved"], told["anew"]) == (1, {})
    await talk.say("go on")
    assert (talk.machine, talk.told["context"]) == (other(world, machine), "resumed")


async def test_who_names_the_machine_and_whom_nobody_takes_stay_and_it_is_said(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE), far=("office", FAKE))
    body = {"model": "smollm2@den", "messages": [{"role": "user", "content": HELLO}]}
    status, _, told = await world.chat("named", body)
    assert status == 200, told
    (free,) = await talks_at(world, "den", ["free"])
    await drain(world, "den", 0)
    told = await world.until(
        lambda fleet: (told := fleet["den"]["draining"])["moved"] == 1 and told["left"] == 1 and told,
        "one left",
    )
    assert told["stay"] == {NAMED: 1}
    status, headers, _ = await world.chat("named", body)
    assert (status, headers["x-homeport-machine"], headers["x-homeport-pin"]) == (200, "den", "kept")
    await free.say()
    assert free.machine == "attic"
    (lonely,) = await talks_at(world, "far", ["lonely"], **{"x-homeport-zone": "office"})
    await drain(world, "far", 0)
    told = await world.until(lambda fleet: fleet["far"]["draining"]["stay"], "it stays")
    assert told == {"no machine in zone office takes them": 1}
    await lonely.say(headers={"x-homeport-zone": "office"})
    assert (lonely.machine, lonely.headers["x-homeport-pin"]) == ("far", "kept")


async def test_a_drain_goes_on_without_a_router_and_with_another_controller(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    talks = await talks_at(world, "den", ["one", "two"])
    await drain(world, "den", 2.0)
    assert set(MachineBook(world.controller.paths.revision.with_name("machines.json")).draining) == {"id-den"}
    world.parts.fleet  # noqa: B018
    await world.client.close()
    den, deadline = world.host("den"), time.monotonic() + 30
    while any(pin["replica"] == "den/0" for pin in den.get("/pins").body["pins"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    den.signal(signal.SIGTERM)
    assert den.wait_end() == 0
    async with router_of(world, tmp_path, den.model, without=("den",)):
        for talk in talks:
            await talk.say()
            assert (talk.machine, talk.told["context"]) == ("attic", "resumed")


async def test_before_the_deadline_a_session_whose_context_does_not_go_along_stays(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Mover, *_: Any) -> Anew:
        return Anew("it broke off on its way")

    monkeypatch.setattr(Mover, "_hand_over", broken)
    monkeypatch.setattr("serving.drain_plan.QUIET_S", 0.0)
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    (talk,) = await talks_at(world, "den", ["one"])
    await drain(world, "den", 600.0)
    draining = world.controller._draining
    await world.until(lambda _: any(each.again_s for each in draining._progress.values()), "it was tried")
    assert (await world.fleet())["den"]["draining"]["moved"] == 0
    await talk.say()
    assert (talk.machine, talk.told["context"]) == ("den", "resident")
    await drain(world, "den", 0.0)
    told = await world.drained("den")
    assert (told["moved"], told["anew"]) == (1, {"it broke off on its way": 1}), "then it goes all the same"


async def test_an_uncordon_stops_a_drain_where_it_is(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    (talk,) = await talks_at(world, "den", ["one"])
    await drain(world, "den", 600.0)
    await world.until(lambda fleet: fleet["den"]["draining"]["left"] == 1, "it has looked")
    assert (await world.ask("POST", "/api/machines/den/uncordon"))[0] == 200
    await drain(world, "den", 600.0)
    assert (await world.ask("POST", "/api/machines/den/uncordon"))[0] == 200
    await talk.say()
    assert (talk.machine, talk.headers["x-homeport-pin"]) == ("den", "kept")


async def test_a_drain_by_no_time_is_refused(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE))
    bodies: tuple[Any, ...] = ({"within_s": -1}, {"within_s": "10m"}, {"within_s": True}, [])
    for body in bodies:
        assert (await world.ask("POST", "/api/machines/den/drain", body))[0] == 400, body
    assert (await world.ask("POST", "/api/machines/shed/drain", {"within_s": 1}))[0] == 404
    assert (await world.fleet())["den"]["draining"] is None
