"""A plaintext HTTP/2 upstream that refuses requests by script, and counts the requests that it
processed."""

import threading

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from support.listener import Listener


class H2Upstream(Listener):
    """Calls `script(number, method)` for each request, numbered from 1 in the order of arrival. It
    returns "answer", "refuse" (RST_STREAM with REFUSED_STREAM), "goaway" (GOAWAY with the last
    stream before this one), "goaway_late" (GOAWAY that names this stream as processed, and the end
    of the connection), or "cancel" (RST_STREAM with CANCEL)."""

    def __init__(self, script):
        self.script, self.attempts, self.processed = script, [], []
        self.lock = threading.Lock()
        super().__init__()

    def serve(self, sock):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        streams = {}
        try:
            while data := sock.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        fields = dict(event.headers)
                        with self.lock:
                            self.attempts.append((fields[":method"], fields[":path"]))
                            action = self.script(len(self.attempts), fields[":method"])
                        streams[event.stream_id] = [fields, b"", action]
                        if action == "refuse":
                            connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
                        elif action == "goaway":
                            connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, last_stream_id=event.stream_id - 2 if event.stream_id > 1 else 0)
                    elif isinstance(event, h2.events.DataReceived):
                        streams[event.stream_id][1] += event.data
                        if streams[event.stream_id][2] == "answer":
                            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        if not self._whole(connection, event.stream_id, *streams[event.stream_id]):
                            sock.sendall(connection.data_to_send())
                            return
                sock.sendall(connection.data_to_send())
        except (OSError, h2.exceptions.ProtocolError):
            # Frames after a GOAWAY are ignored.
            pass
        finally:
            sock.close()

    def _whole(self, connection, stream, fields, body, action):
        if action == "answer":
            self.processed.append((fields[":method"], fields[":path"], body))
            connection.send_headers(stream, [(":status", "200"), ("content-length", "2")])
            connection.send_data(stream, b"ok", end_stream=True)
        elif action == "cancel":
            self.processed.append((fields[":method"], fields[":path"], body))
            connection.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        elif action == "goaway_late":
            self.processed.append((fields[":method"], fields[":path"], body))
            connection.close_connection(last_stream_id=stream)
            return False
        return True
