"""A host without a way out: a network namespace of its own, in which there is loopback and nothing else.

The socket on which a host is asked is made before: it stays in the network that it was made in, and so do the
connections that it accepts. The launcher hands it down by its number in LISTEN_FD.

This keeps out what phones home, not what breaks out: files and sockets in the file system are seen as before. Stands
alone on the standard library, and on Python 3.8: `homeport doctor` carries it to machines that have no homeport.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import MutableMapping

LISTEN_FD = "HOMEPORT_LISTEN_FD"
BACKLOG = 2048
NOT_HERE = "only Linux has network namespaces"

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
IFREQ = "16sH22x"
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens there, close-on-exec. Raises OSError."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        # Listening at once makes a second host on this port fail here and not later.
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def adopt_listener(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The socket that the launcher handed down, which programs that this process starts do not inherit; None where
    there is none. A process that executes itself anew hands it on by `hand_down`."""
    number = environ.pop(LISTEN_FD, "")
    if not number:
        return None
    listener = socket.socket(fileno=int(number))
    listener.set_inheritable(False)
    return listener


def hand_down(listener: socket.socket) -> dict[str, str]:
    """What the program that is executed next finds in its environment; the socket stays open for it."""
    listener.set_inheritable(True)
    return {LISTEN_FD: str(listener.fileno())}


def leave() -> str | None:
    """Leave the network, this process and all that it will start; None once it is done, else why it is not permitted:
    then nothing has changed. Where another user than root does it, or a root who may not, a user namespace goes with
    it, in which nobody but this user is known."""
    if not sys.platform.startswith("linux"):
        return NOT_HERE
    refused = _tried(CLONE_NEWNET) if os.geteuid() == 0 else "needs root"
    flags = CLONE_NEWNET
    if refused is not None:
        flags |= CLONE_NEWUSER
        refused = _tried(flags)
    if refused is None:
        _unshare(flags)
        _give_up_return()
    return refused


def why_not() -> str | None:
    """Why this process could not leave the network; None where it could. Changes nothing."""
    if not sys.platform.startswith("linux"):
        return NOT_HERE
    if os.geteuid() == 0 and _tried(CLONE_NEWNET) is None:
        return None
    return _tried(CLONE_NEWUSER | CLONE_NEWNET)


def is_up(interface: str) -> bool:
    """Whether a network card of this process's network is up. Where that cannot be asked: yes."""
    if not sys.platform.startswith("linux"):
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            return bool(_flags(asking, interface.encode()) & IFF_UP)
        except OSError:
            return False


def _tried(flags: int) -> str | None:
    """Why not, found out in a child: half of it, a user namespace in which nobody is known, cannot be taken back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = b""
        try:
            os.close(reading)
            _unshare(flags)
        except OSError as error:
            told = ("%s: %s" % (error.filename, error.strerror)).encode()  # noqa: UP031 - as the rest, for 3.8
        except BaseException as error:  # noqa: BLE001 - whatever it is, this is no second launcher
            told = repr(error).encode()
        os.write(writing, told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told.decode() or None


def _unshare(flags: int) -> None:
    """Raises OSError, whose `filename` says which step it was."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", flags)
    if flags & CLONE_NEWUSER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            _write(f"/proc/self/{name}", text)
    _set_loopback_up()


def _set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            flags = _flags(asking, b"lo")
            fcntl.ioctl(asking, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", flags | IFF_UP))
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), "loopback") from None


def _flags(asking: socket.socket, interface: bytes) -> int:
    told = fcntl.ioctl(asking, SIOCGIFFLAGS, struct.pack(IFREQ, interface, 0))
    return int(struct.unpack(IFREQ, told)[1])


def _give_up_return() -> None:
    """Root could enter the former network again by /proc/1/ns/net: not what it executes from here on."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)


def _call(name: str, argument: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(argument) != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number), name)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(descriptor)
