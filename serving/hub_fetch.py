"""Files from Hugging Face: what they are, and their bytes. The only file that imports huggingface_hub.

Runs in a process of its own (serving/bring_model.py): a keeper loads none of this. Over plain HTTP with ranges, so that
what broke off goes on where it was. Where the hub is, and with which token it is asked, is huggingface_hub's matter:
HF_ENDPOINT, HF_TOKEN, or what `hf auth login` left.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import httpx2
from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from serving.model_files import HubSource
from serving.model_trouble import Trouble

USER_AGENT = "homeport"
CHUNK_BYTES = 256 * 1024
SMALL_BYTES_MAX = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Found:
    """What the hub says of one file."""

    name: str
    size: int
    etag: str
    """The SHA-256 of a large file; the SHA-1 of a git blob of a small one."""
    commit: str


def listed(hub: HubSource) -> tuple[str, tuple[str, ...]]:
    """The commit that this repository is at, and the paths of all its files then. Raises Trouble."""
    from huggingface_hub import HfApi  # a third of a second, for folders only

    with _told(hub, "", None):
        found = HfApi(user_agent=USER_AGENT).model_info(
            hub.repo, revision=hub.revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
    if not found.sha or found.siblings is None:
        raise Trouble("hub", f"{constants.ENDPOINT} does not say which files {hub.repo} has", _OTHER_HUB)
    return found.sha, tuple(str(each.rfilename) for each in found.siblings)


def read_small(hub: HubSource, name: str, commit: str) -> bytes:
    """All of a file of this repository that is no larger than `SMALL_BYTES_MAX`. Raises Trouble."""
    found = look(hub, name, commit)
    if found.size > SMALL_BYTES_MAX:
        words = f"{name} of {hub.repo} has {found.size} bytes, more than such a file needs"
        raise Trouble("not_served", words, "Name another repository")
    data = io.BytesIO()
    download(hub, found, data, 0, lambda _: None)
    return data.getvalue()


def look(hub: HubSource, name: str, commit: str | None) -> Found:
    """Ask the hub about a file of this repository, at `commit` where that is known already. Raises Trouble."""
    url = _url(hub, name, commit)
    with _told(hub, name, commit):
        found = get_hf_file_metadata(url, token=None, user_agent=USER_AGENT)
    if not found.etag or found.size is None or not found.commit_hash:
        raise Trouble(
            "hub",
            f"{constants.ENDPOINT} does not say size and digest of {name}",
            _OTHER_HUB,
        )
    if found.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        most = constants.MAX_HTTP_DOWNLOAD_SIZE // 10**9
        raise Trouble(
            "too_large",
            f"{name} is larger than {most} GB, which the hub gives to nobody in one piece over HTTP",
            "Name a model in several parts, or put the file there by hand and give its path",
        )
    return Found(name, found.size, found.etag, found.commit_hash)


def download(hub: HubSource, found: Found, file: BinaryIO, at: int, wrote: Callable[[int], None]) -> None:
    """Append what is missing of it to `file`, whose end is at byte `at`; `wrote` hears how much there is.

    Raises Trouble, and OSError of the disk.
    """
    counted = _Counted(file, at, found, wrote)
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    with _told(hub, found.name, found.commit):
        http_get(
            _url(hub, found.name, found.commit),
            counted,  # type: ignore[arg-type]  # what it uses of a file
            resume_size=at,
            headers=build_hf_headers(token=None, user_agent=USER_AGENT),
            expected_size=found.size,
            displayed_filename=found.name,
        )


def read_part(hub: HubSource, name: str, begin: int, end: int) -> tuple[bytes, int]:
    """Bytes `begin` to `end` of a file of this repository, and the size of all of it. Raises Trouble."""
    with _told(hub, name, None):
        headers = build_hf_headers(token=None, user_agent=USER_AGENT)
        return _part(_url(hub, name, None), headers, begin, end)


def read_web_part(url: str, begin: int, end: int) -> tuple[bytes, int]:
    """The same of a file anywhere; no token is sent. Raises Trouble."""
    try:
        return _part(url, {"user-agent": USER_AGENT}, begin, end)
    except errors.HfHubHTTPError as error:
        words = f"{url}: the server answered with status {error.response.status_code}"
        raise Trouble("hub", words, "Correct the address") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        raise Trouble("network", f"{url} cannot be reached ({_words(error)})", _REACH) from None


def _part(url: str, headers: dict[str, str], begin: int, end: int) -> tuple[bytes, int]:
    """Leaves a server that sends everything after what it was asked for."""
    asked = {**headers, "range": f"bytes={begin}-{end - 1}", "accept-encoding": "identity"}
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        _, _, size = answer.headers.get("content-range", "").rpartition("/")
        if answer.status_code != 206 or not size.isdecimal():
            raise Trouble(
                "hub", f"{url}: the server gives files as a whole only", "Fetch it, and give its path"
            )
        data = bytearray()
        for piece in answer.iter_bytes():
            data += piece
            if len(data) >= end - begin:
                break
    return bytes(data[: end - begin]), int(size)


class _Counted:
    """The file, and how much there is of it. An error of the disk is told apart from those of the network."""

    def __init__(self, file: BinaryIO, at: int, found: Found, wrote: Callable[[int], None]) -> None:
        self._file = file
        self._at = at
        self._found = found
        self._wrote = wrote

    def write(self, data: bytes) -> int:
        if self._at + len(data) > self._found.size:
            # Room was made for no more.
            what = f"{constants.ENDPOINT} sends more of {self._found.name} than the {self._found.size} bytes it has"
            raise Trouble("hub", what, "It is tried again")
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise _DiskError(error) from error
        self._at += len(data)
        self._wrote(self._at)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = self._file.seek(at)
        return self._at

    def truncate(self) -> int:
        return self._file.truncate(self._at)


class _DiskError(Exception):
    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _url(hub: HubSource, name: str, commit: str | None) -> str:
    return hf_hub_url(hub.repo, name, revision=commit or hub.revision)


@contextmanager
def _told(hub: HubSource, name: str, commit: str | None) -> Iterator[None]:
    """The hub's and the network's errors as Trouble."""
    page = f"{constants.ENDPOINT}/{hub.repo}"
    try:
        yield
    except _DiskError as error:
        raise error.error from None
    except errors.GatedRepoError:
        raise Trouble(
            "gated", f"{hub.repo} is gated, and this machine has no leave to read it", _leave(page)
        ) from None
    except errors.RepositoryNotFoundError:
        remedy = f"Correct the name; if it is private: {_LOG_IN}"
        raise Trouble("not_found", f"{constants.ENDPOINT} has no repository {hub.repo}", remedy) from None
    except errors.RevisionNotFoundError:
        raise Trouble(
            "not_found", f"{hub.repo} has no revision {commit or hub.revision}", f"Look at {page}"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise Trouble("not_found", f"{hub.repo} has no file {name}", f"Look at {page}/tree/main") from None
    except errors.HfHubHTTPError as error:
        raise _refusal(error, page) from None
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        raise Trouble(
            "network", f"{constants.ENDPOINT} cannot be reached ({_words(error)})", _REACH
        ) from None


def _words(error: Exception) -> str:
    words = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if "bearer" in words.lower():  # a header that cannot be sent is quoted, and that one is the token
        words = f"{type(error).__name__}: see that HF_TOKEN holds nothing but the token"
    return words


def _refusal(error: Any, page: str) -> Trouble:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return Trouble("unauthorized", f"{page}: the hub does not know who asks", _LOG_IN)
    if status == 403:
        return Trouble("gated", f"{page}: the hub does not let this account read it", _leave(page))
    if status == 404:
        return Trouble("not_found", f"{page}: there is no such file", f"Look at {page}/tree/main")
    return Trouble("hub", f"{page}: the hub answered with status {status}", "It is tried again")


_OTHER_HUB = "Unset HF_ENDPOINT, or set it to a hub that does"
_REACH = "See that this machine reaches it, and that HF_HUB_OFFLINE is not set"
_LOG_IN = "Run `.venv/bin/hf auth login` on this machine, or start homeport there with HF_TOKEN set"


def _leave(page: str) -> str:
    return f"Accept its terms at {page}. {_LOG_IN}"
