"""A TCP relay that can freeze its connections: they stay open and carry no more data."""

import contextlib
import socket
import threading

from .keylatch import free_port


class Relay:
    def __init__(self, target):
        self.target, self.port = target, free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.generation, self.open, self.is_away = 0, [], False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                if self.is_away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.open += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other, self.generation), daemon=True).start()

    def _pump(self, one, other, generation):
        try:
            while data := one.recv(65536):
                if generation != self.generation:
                    return
                other.sendall(data)
            if generation == self.generation:
                other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def freeze(self):
        """Freezes the open connections. New connections work."""
        self.generation += 1

    def away(self, away):
        """Refuses new connections and closes the open ones, until called with False."""
        self.is_away = away
        if away:
            self.generation += 1
            for each in self.open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for each in self.open:
            each.close()
