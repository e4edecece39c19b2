"""What is asked of this machine's logind over D-Bus: to stay awake, to put sleep off, to say when it comes.

The only file that imports jeepney. It needs no network: D-Bus is a socket in the file system. When to ask is for others
to decide.
"""

import os
import socket
from contextlib import suppress
from typing import Any

ANSWER_S = 2.0
"""How long logind may take to answer: a bus without one may try to start it."""
WHO = "homeport"
MANAGER = "org.freedesktop.login1.Manager"
NAME = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
SIGNAL = "PrepareForSleep"
DENIED = ("AccessDenied", "InteractiveAuthorizationRequired", "AuthFailed")


class NoLogind(Exception):
    """It cannot be asked, or does not do it. The message says why; `denied`: this user may not."""

    def __init__(self, message: str, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


class Bus:
    """One connection, for one thread."""

    def __init__(self) -> None:
        """Raises NoLogind where there is no system bus."""
        try:
            from jeepney import DBusErrorResponse
            from jeepney.io.blocking import open_dbus_connection
        except ImportError:
            raise NoLogind("jeepney is not installed; `make setup` does it") from None
        try:
            self._connection = open_dbus_connection("SYSTEM", enable_fds=True)
        except (OSError, ValueError, RuntimeError) as error:  # also an address that cannot be read
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoLogind(f"there is no system D-Bus ({reason})") from None
        except DBusErrorResponse as error:  # a user may have so many connections, and no more
            raise NoLogind(f"the system D-Bus lets nobody in ({error.name.rpartition('.')[2]})") from None

    def inhibit(self, what: str, why: str, mode: str) -> int:
        """The descriptor of a lock, which holds until that is closed. `what`: sleep, idle, or both with a colon between
        them. `mode`: block or delay. Raises NoLogind."""
        (lock,) = self._ask(NAME, PATH, MANAGER, "Inhibit", "ssss", (what, WHO, why, mode))
        descriptor: int = lock.to_raw_fd()
        os.set_inheritable(descriptor, False)
        return descriptor

    def listen(self) -> None:
        """From here on `sleeps` hears. Raises NoLogind."""
        rule = f"type='signal',sender='{NAME}',interface='{MANAGER}',member='{SIGNAL}',path='{PATH}'"
        bus = "org.freedesktop.DBus"
        self._ask(bus, "/org/freedesktop/DBus", bus, "AddMatch", "s", (rule,))

    def sleeps(self) -> bool:
        """Waits for logind's next word: True, the machine is about to sleep; False, it is awake again. Raises NoLogind
        once the bus is gone."""
        from jeepney import HeaderFields, MessageType

        while True:
            try:
                message = self._connection.receive()
            except (OSError, ValueError, RuntimeError) as error:
                raise NoLogind(f"the system D-Bus is gone ({type(error).__name__})") from None
            header = message.header
            member = header.fields.get(HeaderFields.member)
            if header.message_type is MessageType.signal and member == SIGNAL and message.body:
                return bool(message.body[0])

    def interrupt(self) -> None:
        """From any thread: `sleeps` raises from now on."""
        with suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()

    def _ask(self, name: str, path: str, interface: str, method: str, kind: str, body: Any) -> Any:
        from jeepney import DBusAddress, DBusErrorResponse, new_method_call
        from jeepney.wrappers import unwrap_msg

        asked = new_method_call(DBusAddress(path, name, interface), method, kind, body)
        try:
            return unwrap_msg(self._connection.send_and_get_reply(asked, timeout=ANSWER_S))
        except DBusErrorResponse as error:
            short = error.name.rpartition(".")[2]
            raise NoLogind(f"logind says {short}", denied=short in DENIED) from None
        except TimeoutError:
            raise NoLogind(f"logind does not answer within {ANSWER_S:.0f} s") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise NoLogind(f"the system D-Bus is gone ({type(error).__name__})") from None


def inhibit(what: str, why: str, mode: str) -> int:
    """As `Bus.inhibit`, over a connection for that alone: the lock does not need it any more."""
    bus = Bus()
    try:
        return bus.inhibit(what, why, mode)
    finally:
        bus.close()
