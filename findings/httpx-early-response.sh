#!/usr/bin/env bash
# Assumption: a server that refuses an upload on HTTP/2 sends the whole response and then RST_STREAM with NO_ERROR. A client must not
#   discard the response because of it (RFC 9113, section 8.1).
# Result: httpx never reads the response. It waits for space in the flow-control window of the reset stream until
#   its read time-out (ReadTimeout), although the response has arrived. A body that fits into the first window gets its response.
# Versions: httpx 0.28.1, httpcore 1.0.9, h2 4.3.0. curl 7.88.1 of Debian 12 fails in the same case (exit code 92).
# Source: httpcore/_sync/http2.py, `_wait_for_outgoing_flow`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'httpx==0.28.1' 'httpcore==1.0.9' 'h2==4.3.0'

cat >"$folder/try.py" <<'PY'
import contextlib
import socket
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx


def serve(listener):
    connection, _ = listener.accept()
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    connection.sendall(state.data_to_send())
    with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
        while piece := connection.recv(65536):
            for event in state.receive_data(piece):
                if isinstance(event, h2.events.RequestReceived):
                    state.send_headers(1, [(":status", "401")])
                    state.send_data(1, b"no", end_stream=True)
                    state.reset_stream(1, error_code=0)
            connection.sendall(state.data_to_send())


def post(size):
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=[listener], daemon=True).start()
    with httpx.Client(http1=False, http2=True, trust_env=False, timeout=3) as client:
        try:
            return str(client.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", content=b"a" * size).status_code)
        except httpx.HTTPError as error:
            return type(error).__name__


print("httpx", httpx.__version__)
small, large = post(30_000), post(1_000_000)
print("30 kB, refused with 401: ", small)
print("1 MB, refused with 401:  ", large)
assert small == "401", "the server of this script works"
assert large != "401", "the behaviour has changed"
PY
"$folder/venv/bin/python" "$folder/try.py"
