"""What `homeport connect` says to a client program, put where it looks: a chat's home is its person's."""

from pathlib import Path

from router.connect import CLIENTS
from router.connect_files import file_of, put
from router.connect_settings import Reach
from router.connect_text import block
from tests.clients.chat import Chat

CONTEXT = 131_072


def connected(chat: Chat, name: str, session: str | None = None) -> Path:
    """The client's file, in which now stands what `homeport connect NAME --write` writes."""
    client = CLIENTS[name]
    file = file_of(client, {}, chat.folder)
    assert file is not None
    put(file, client.form, client.settings(_reach(chat, session)))
    return file


def printed(chat: Chat, name: str) -> str:
    """What `homeport connect NAME` prints."""
    client = CLIENTS[name]
    return block(client.form, client.settings(_reach(chat, None)))


def _reach(chat: Chat, session: str | None) -> Reach:
    return Reach(chat.recorder.url, chat.model, CONTEXT, chat.key is not None, chat.key, session=session)
