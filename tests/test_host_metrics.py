"""A host's state as families of metrics: the numbers by hand, and those of a real host."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.counts import Counts
from serving.exposition import Labels, add, counter, gauge, text
from serving.host_metrics import families, own
from tests.fakes import Behaviour
from tests.host_process import HostProcess, model_spec

LABELS = {"model": "tiny", "machine": "den", "replica": "den/0"}


def samples(told: bytes) -> dict[tuple[str, str], float]:
    """By name, and the labels that are not the replica's."""
    found = {}
    for family in text_string_to_metric_families(told.decode()):
        for sample in family.samples:
            more = {key: value for key, value in sample.labels.items() if key not in LABELS}
            assert family.name == "homeport_build" or sample.labels.items() >= LABELS.items()
            found[sample.name, ",".join(f"{key}={more[key]}" for key in sorted(more))] = sample.value
    return found


def state(**changes: Any) -> dict[str, Any]:
    counts = Counts()
    for gap_s in (None, 0.003, 0.04, 0.04, 12.0):
        counts.text(3, gap_s)
    counts.left_line("granted", 0.0)
    counts.left_line("queue_timeout", 61.0)
    counts.left_line("session_ended", 2.0)
    counts.left_line("client_gone", 3.0)
    counts.parks.note(0.5, 1000)
    counts.resumes.note(0.25, 700)
    counts.cached, counts.evaluated = 40, 60
    return {
        "pins": 9,
        "residents": [{}, {}],
        "waiting": 1,
        "running": 2,
        "places": 4,
        "parking": {
            "sessions": 5,
            "memory_bytes": 1,
            "memory_limit_bytes": 2,
            "disk_bytes": 3,
            "disk_limit_bytes": 4,
        },
        "memory": {"rss_bytes": 77},
        "counts": counts.report(),
    } | changes


def test_what_a_host_counted_and_has_is_told() -> None:
    found = samples(text(families([(LABELS, state())])))
    gaps = "homeport_time_between_tokens_seconds"
    assert found[f"{gaps}_bucket", "le=0.001"] == 0
    assert found[f"{gaps}_bucket", "le=0.005"] == 1
    assert found[f"{gaps}_bucket", "le=0.05"] == found[f"{gaps}_bucket", "le=10.0"] == 3
    assert found[f"{gaps}_bucket", "le=+Inf"] == found[f"{gaps}_count", ""] == 4
    assert found[f"{gaps}_sum", ""] == pytest.approx(12.083)
    assert found["homeport_line_wait_seconds_bucket", "le=60.0"] == 3
    assert found["homeport_line_wait_seconds_count", ""] == 4
    assert found["homeport_prompt_tokens_total", "source=cached"] == 40
    assert found["homeport_prompt_tokens_total", "source=evaluated"] == 60
    assert found["homeport_generated_tokens_total", ""] == 15
    assert found["homeport_leases_total", "reason=,result=granted"] == 1
    assert found["homeport_leases_total", "reason=queue_timeout,result=expired"] == 1
    assert found["homeport_leases_total", "reason=session_ended,result=refused"] == 1
    assert found["homeport_leases_total", "reason=client_gone,result=left"] == 1
    assert found["homeport_leases_total", "reason=host_stopping,result=refused"] == 0
    assert found["homeport_parks_total", ""] == found["homeport_resumes_total", ""] == 1
    assert found["homeport_park_seconds_total", ""] == 0.5
    assert found["homeport_park_bytes_total", ""] == 1000
    assert found["homeport_resume_seconds_total", ""] == 0.25
    assert found["homeport_resume_bytes_total", ""] == 700
    in_state = {
        key.removeprefix("state="): v for (name, key), v in found.items() if name == "homeport_sessions"
    }
    assert in_state == {"pinned": 9, "resident": 2, "parked": 5, "waiting": 1, "running": 2}
    assert found["homeport_places", ""] == 4
    assert found["homeport_parked_bytes", "where=memory"] == 1
    assert found["homeport_parking_limit_bytes", "where=disk"] == 4
    assert found["homeport_memory_bytes", ""] == 77


def test_of_an_older_host_is_told_what_it_tells() -> None:
    found = samples(text(families([(LABELS, {"pins": 1, "memory": None, "counts": None})])))
    assert found["homeport_sessions", "state=pinned"] == 1
    assert not any(name.startswith("homeport_time_between") for name, _ in found)


WRONG: dict[str, Any] = {
    "gaps": {"counts": {"gaps": 5}},
    "bounds": {"counts": Counts().report() | {"waits": {"bounds": [1.0], "counts": [3], "sum": 1.0}}},
    "leases": {"counts": Counts().report() | {"leases": [1, 2]}},
    "tokens": {"counts": Counts().report() | {"tokens": {"cached": "many", "evaluated": 1, "generated": 2}}},
    "counts": {"counts": 7},
    "parking": {"parking": {"disk_bytes": 4}},
    "memory": {"memory": 12},
    "places": {"places": None},
    "residents": {"residents": 3},
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_what_one_host_tells_wrongly_is_left_out_and_the_rest_is_told(kind: str) -> None:
    other, wrong = {**LABELS, "replica": "den/1"}, list[tuple[str, str]]()

    def note(labels: Labels, family: str, _error: Exception) -> None:
        wrong.append((labels["replica"], family))

    good, bad = (LABELS, state()), (other, state(**WRONG[kind]))
    lines = text(families([bad, good], note)).decode().splitlines()
    alone = text(families([good])).decode().splitlines()
    assert {line for line in lines if 'replica="den/1"' not in line} == set(alone)
    assert {replica for replica, _ in wrong} == {"den/1"}
    theirs = {line.partition("{")[0] for line in lines if 'replica="den/1"' in line}
    assert theirs, "what is right of it is told"
    assert not any(name.startswith(family) for name in theirs for _, family in wrong)


def test_each_family_is_told_once_for_all_hosts() -> None:
    hosts = [({**LABELS, "replica": f"den/{number}"}, state()) for number in range(3)]
    lines = text(families(hosts)).decode().splitlines()
    assert lines.count("# TYPE homeport_generated_tokens_total counter") == 1
    assert sum(line.startswith("homeport_generated_tokens_total{") for line in lines) == 3


def test_the_text_is_the_librarys() -> None:
    labels = {"b": 'a "quoted" \\ back\nline', "a": "plain", "c": ""}
    strange = counter("homeport_strange", "Says \\ and\na new line.")
    add(strange, labels, 1e21)
    add(strange, {}, 0.1)
    empty, told = gauge("homeport_empty", "None of it."), [strange, *families([(LABELS, state())])]

    class Given(Collector):
        def collect(self) -> list[Metric]:
            return told

    assert text([empty, *told]) == generate_latest(Given())


def test_no_text_of_a_session_is_in_what_is_told() -> None:
    secret = "a-secret-session"
    residents = [{"session": secret, "quiet_s": 1.0, "busy": False, "tokens": 7}]
    line = [{"session": secret, "position": 1, "waited_s": 1.0, "about_s": None}]
    recent = [{"request_id": secret, "generated": 1, "after_disconnect": 0}]
    told = own(LABELS, state(residents=residents, line=line, recent=recent, detail=secret, journal=secret))
    assert secret.encode() not in told


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    made = HostProcess(tmp_path, model_spec(), "none", Behaviour())
    try:
        made.start()
        yield made
    finally:
        made.kill()


def metrics(host: HostProcess, token: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=10)
    try:
        connection.request("GET", "/metrics", headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read()
    finally:
        connection.close()


def test_a_host_tells_its_own_to_who_has_the_token(host: HostProcess) -> None:
    assert host.chat("Hello", {"x-session-id": "my-secret"}).status == 200
    status, kind, told = metrics(host, host.token)
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert b"my-secret" not in told
    lines = told.decode().splitlines()
    assert any(line.startswith("homeport_build_info{version=") for line in lines)
    assert sum(line.startswith("homeport_leases_total{") and line.endswith(" 1.0") for line in lines) == 1
    assert metrics(host, "wrong")[0] == 401
