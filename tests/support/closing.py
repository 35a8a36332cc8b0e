"""An upstream that closes idle keep-alive connections, and records the requests that it
processed."""

import select
import socket

from support.listener import Listener
from support.upstreams import plain, read_request


class Closing(Listener):
    """Closes a connection that is idle for `idle` seconds after a response. With `announce` it
    sends that time-out as `Keep-Alive`. `closed` counts these connections, `left` those that the
    peer closed first."""

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
                # Counted here, because a connection without a request is a health probe.
                self.connections += first
                first = False
                self.processed.append(request["target"])
                connection.sendall(plain(headers=fields))
        except (OSError, ValueError):
            pass
        finally:
            file.close()
            connection.close()
            # Counted after the close, so that a test that reads the counter finds the connection
            # closed.
            self.closed += ended
