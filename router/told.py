"""What pages know of a request: who asks, and what its path and headers name; and how they refuse it."""

from dataclasses import dataclass

from fastapi.responses import Response
from starlette.requests import Request

from router.errors import ApiError
from router.keys import Entry, Key
from router.request import Address, Head


@dataclass(frozen=True, slots=True)
class Told:
    """What `front` found out about a request."""

    entry: Entry | None
    head: Head
    address: Address

    @property
    def is_below(self) -> bool:
        """Whether a session or a machine stood before its path."""
        return self.address.session is not None or self.address.machine is not None


def told(request: Request) -> Told:
    found = request.scope.get("homeport")
    return found if isinstance(found, Told) else Told(None, Head(b""), Address(request.url.path))


def who(request: Request) -> Key:
    """Whose request it is; `front` lets nobody in without a key but to pages that do not ask for it."""
    return entry_of(request)[0]


def entry_of(request: Request) -> Entry:
    return told(request).entry or (Key(""), b"")


def refusal(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """In OpenAI's shape."""
    own = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, {**own, **(headers or {})})
