"""An upstream that closes kept connections after a short time, as servers do, and keeps what it processed."""

import select
import socket

from support.listener import Listener
from support.upstreams import plain, read_request


class Closing(Listener):
    """Closes a connection on which nothing came for `idle` seconds after a response. With `announce` it says so before.
    `closed` counts those, `left` those that the other end closed first."""

    def __init__(self, idle, announce=None):
        self.idle, self.announce, self.left = idle, announce, 0
        self.processed, self.connections, self.closed = [], 0, 0
        super().__init__()

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = connection.makefile("rb")
        fields = [f"Keep-Alive: timeout={self.announce}"] if self.announce else []
        first, ended = True, False
        try:
            while True:
                if not first and not select.select([connection], [], [], self.idle)[0]:
                    ended = True
                    return
                request = read_request(file)
                if request is None:
                    self.left += not first
                    return
                # A connection alone only shows that this server is there.
                self.connections += first
                first = False
                self.processed.append(request["target"])
                connection.sendall(plain(headers=fields))
        except (OSError, ValueError):
            pass
        finally:
            file.close()
            connection.close()
            # Only now: whoever sees it counted finds the connection closed.
            self.closed += ended
