#!/usr/bin/env bash
# Assumption: once a proxy has forwarded 101, the upgraded connection lasts until one side closes it, however fast the upstream
#   answered.
# Result: if the 101 is read before the proxy has handled the end of the request's own (empty) body, Pingora takes that end for the
#   end of the upgraded connection: the client gets the 101 and then the end of the stream. A fast upstream or a busy machine
#   suffices. Here the upstream answers at once, and some of 400 connections end (4 to 28 % in three runs).
# Versions: pingora 0.9.1 (reported as issue 946 of its repository).
# Source: pingora-proxy/src/proxy_h1.rs, `proxy_handle_upstream`: the end of the request body after `was_upgraded()` also ends the
#   response; the two are read in random order.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
source "$(dirname "$0")/support/bare_pingora.sh"

cat >"$folder/try.py" <<'PY'
import sys

from helpers import head, run


def serve(connection):
    with connection:
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        head(connection)
        while data := connection.recv(4096):
            connection.sendall(data)


def check(dial):
    closed = 0
    for _ in range(400):
        with dial() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert head(client).startswith(b"HTTP/1.1 101")
            client.settimeout(0.05)
            try:
                closed += client.recv(1) == b""
            except TimeoutError:
                pass
    print("upgraded connections that ended at once:", closed, "of 400")
    assert 0 < closed < 400


run(sys.argv[1], serve, check)
PY
python3 "$folder/try.py" "$folder/target/debug/bare"
