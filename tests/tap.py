"""Somebody on the way between two machines, who hears all that they say."""

import contextlib
import socket
import socketserver
import threading


class Tap:
    """Listens on `port` of loopback, passes on to the other port what two say to each other, and keeps it."""

    def __init__(self, to: int) -> None:
        self.asked, self.answered = bytearray(), bytearray()
        tap = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", to)) as there:
                    back = threading.Thread(target=pass_on, args=(there, self.request, tap.answered))
                    back.start()
                    pass_on(self.request, there, tap.asked)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.at = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Tap":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def pass_on(here: socket.socket, there: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while said := here.recv(65536):
            kept += said
            there.sendall(said)
        there.shutdown(socket.SHUT_WR)
