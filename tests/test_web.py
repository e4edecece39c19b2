"""The pages' files over HTTP."""

from hashlib import sha256
from pathlib import Path

from router.web import SAFE, read_files
from tests.standins import AnswersHost, routed


async def test_pages_are_had_without_a_key_and_nothing_else_is(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: anna, sha256: '{sha256(b'anna').hexdigest()}'}}\n")
    keys.chmod(0o600)
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys) as router:
        for path, kind in (
            ("/", "text/html; charset=utf-8"),
            ("/desk/m0", "text/html; charset=utf-8"),
            ("/board/icon.svg", "image/svg+xml"),
        ):
            answer = await router.get(path)
            assert (answer.status, answer.headers["content-type"]) == (200, kind)
            assert {name: answer.headers[name] for name in SAFE} == SAFE
        for path in ("/api/fleet", "/board", "/desk", "/boards/x"):
            assert (await router.get(path)).status == 401
        foreign = await router.get("/", headers={"host": "evil.example"})
        assert (foreign.status, foreign.code) == (403, "host_not_allowed")


async def test_what_is_no_file_of_theirs_is_not_found(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router:
        for path in ("/board/", "/board/nothing.js", "/board/..%2fweb.py", "/board/%2e%2e/web.py"):
            assert (await router.get(path)).code == "not_found"
        answer = await router.ask("POST", "/")
        assert (answer.status, answer.code) == (405, "method_not_allowed")


async def test_a_file_is_sent_small_and_once(tmp_path: Path) -> None:
    plain = read_files()["index.html"].plain
    async with routed(tmp_path, AnswersHost("m0/0")) as router:
        small = await router.get("/", headers={"accept-encoding": "gzip"})
        assert (small.headers["content-encoding"], small.body) == ("gzip", plain)
        whole = await router.get("/", headers={"accept-encoding": "identity"})
        assert (whole.headers.get("content-encoding"), whole.body) == (None, plain)
        again = await router.get("/", headers={"if-none-match": whole.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        head = await router.ask("HEAD", "/", headers={"accept-encoding": "identity"})
        assert (head.status, head.headers["content-length"]) == (200, str(len(plain)))


async def test_pages_are_not_had_below_a_session_or_a_machine(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router:
        for prefix in ("/s/x", "/m/m0", "/s/x/m/m0"):
            for path in ("/", "/desk/m0", "/board/desk.js"):
                assert (await router.get(prefix + path)).code == "not_found"
        assert (await router.get("/desk/%E0%A4")).status == 200
