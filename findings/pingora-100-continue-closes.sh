#!/usr/bin/env bash
# Assumption: a proxy that forwards `100 Continue` from the upstream keeps the client's connection for the next request, since the
#   body and the final response follow completely (RFC 9110, section 10.1.1, and RFC 9112, section 9.3).
# Result: the final response has `Connection: close`, and the connection ends. The same holds for every informational response that
#   comes before the end of the request body. The same request without `Expect` keeps the connection.
# Versions: pingora 0.9.1.
# Source: pingora-core/src/protocols/http/v1/server.rs, `prepare_response_header`: a response before the end of the body disables
#   keep-alive, and informational responses are not excepted.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
source "$(dirname "$0")/support/bare_pingora.sh"

cat >"$folder/try.py" <<'PY'
import sys

from helpers import head, run


def serve(connection):
    with connection:
        while request := head(connection):
            if b"expect" in request.lower():
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if connection.recv(5) != b"hello":
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def check(dial):
    for field, ends in ((b"", False), (b"Expect: 100-continue\r\n", True)):
        with dial() as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n" + field + b"\r\n")
            if field:
                assert head(client).startswith(b"HTTP/1.1 100")
            client.sendall(b"hello")
            answer = head(client)
            print("with Expect:" if field else "without:", [line.decode() for line in answer.split(b"\r\n") if line[:11].lower() == b"connection:"])
            assert answer.startswith(b"HTTP/1.1 200") and (b"connection: close" in answer.lower()) == ends
            assert client.recv(2) == b"ok"


run(sys.argv[1], serve, check)
PY
python3 "$folder/try.py" "$folder/target/debug/bare"
