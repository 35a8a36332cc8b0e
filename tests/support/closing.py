"""An upstream that closes kept connections after a short time, as servers do, and keeps what it processed."""

import select
import socket
import threading

from support.upstreams import plain, read_request


class Closing:
    """Closes a connection on which nothing came for `idle` seconds after a response. With `announce` it says so before.
    `closed` counts those, `left` those that the other end closed first."""

    def __init__(self, idle, announce=None):
        self.idle, self.announce, self.left = idle, announce, 0
        self.processed, self.connections, self.closed = [], 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
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

    def close(self):
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
