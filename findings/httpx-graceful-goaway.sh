#!/usr/bin/env bash
# Assumption: a graceful GOAWAY (NO_ERROR, last stream 2^31-1) lets open streams continue (RFC 9113, section 6.8), so a server that
#   stops may send it at once.
# Result: httpx fails the stream that it is reading with a ProtocolError (its own, or that of the library h2), although the
#   server completes the stream.
# Versions: httpx 0.28.1, httpcore 1.0.9, h2 4.3.0.
# Source: h2/connection.py: a GOAWAY puts the connection into the state CLOSED, in which no frame may follow;
#   httpcore/_sync/http2.py, `_receive_events`: after ConnectionTerminated every read raises.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'httpx==0.28.1' 'httpcore==1.0.9' 'h2==4.3.0'

cat >"$folder/try.py" <<'PY'
import socket
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx


def serve(listener, goaway):
    connection, _ = listener.accept()
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    connection.sendall(state.data_to_send())
    while piece := connection.recv(65536):
        for event in state.receive_data(piece):
            if isinstance(event, h2.events.RequestReceived):
                state.send_headers(1, [(":status", "200")])
                state.send_data(1, b"one ")
                connection.sendall(state.data_to_send())
                if goaway:
                    # h2 can no longer send after its own GOAWAY, so the frame is made by hand.
                    connection.sendall(b"\0\0\x08\x07\0\0\0\0\0" + b"\x7f\xff\xff\xff" + b"\0\0\0\0")
                state.send_data(1, b"two", end_stream=True)
                connection.sendall(state.data_to_send())
        connection.sendall(state.data_to_send())


def get(goaway):
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=[listener, goaway], daemon=True).start()
    with httpx.Client(http1=False, http2=True, trust_env=False, timeout=5) as client:
        try:
            return client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/").text
        except (httpx.ProtocolError, h2.exceptions.ProtocolError) as error:
            return f"{type(error).__name__}: {error}"


print("httpx", httpx.__version__)
plain, graceful = get(False), get(True)
print("without GOAWAY:      ", plain)
print("with a graceful one: ", graceful)
assert plain == "one two", "the server of this script works"
assert "ProtocolError: " in graceful, "the behaviour has changed"
PY
"$folder/venv/bin/python" "$folder/try.py"
