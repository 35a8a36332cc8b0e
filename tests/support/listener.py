"""A TCP server for tests: one thread for each connection, on a port of its own."""

import socket
import threading


class Listener:
    """Calls `serve(connection)` of the class that inherits it, for each connection. It listens from the start until `close`."""

    def __init__(self, backlog=2048):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port = self.listener.getsockname()[1]
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
