"""The accept loop of the test servers: one thread for each connection."""

import socket
import threading


class Listener:
    """Calls `serve(connection)` of the subclass for each connection, from construction until
    `close`.

    Without `listener` it listens on a free port of 127.0.0.1. `port` is `None` for a Unix
    socket."""

    def __init__(self, backlog=2048, listener=None):
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port = None if self.listener.family == socket.AF_UNIX else self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        """Serves one connection, and closes it."""
        raise NotImplementedError

    def close(self):
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
