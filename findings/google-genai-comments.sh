#!/usr/bin/env bash
# Assumption: a client of server-sent events ignores comment lines (WHATWG HTML, section 9.2.6).
# Result: google-genai for Python takes a comment for the start of an error in JSON and raises
# UnknownApiResponseError; the rest of the text is lost. A bare blank line between events is ignored.
# Version: google-genai 3.6.1 (PyPI), google/genai/_api_client.py, HttpResponse._iter_response_stream.
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check google-genai==3.6.1
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^google-genai '
cat >server.py <<'PY'
"""Serves Gemini's stream. The first argument names the frame between two events; with a second one, inside each event."""
import http.server
import json
import sys

BETWEEN = {"none": "", "comment": ": keep-alive\n\n", "comment_line": ": keep-alive\n", "blank_line": "\n"}
FRAME = BETWEEN[sys.argv[1]]
INSIDE = len(sys.argv) > 2


def event(n):
    part = {"content": {"parts": [{"text": f"word{n} "}], "role": "model"}, "index": 0, **({"finishReason": "STOP"} if n == 3 else {})}
    return {"candidates": [part], "modelVersion": "demo"}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for n in range(4):
            line = f"data: {json.dumps(event(n))}\n"
            self.wfile.write((line + (FRAME if INSIDE else "") + "\n" + ("" if INSIDE else FRAME)).encode())
            self.wfile.flush()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PY
cat >client.py <<'PY'
import sys
from google import genai

options = genai.types.HttpOptions(base_url=f"http://127.0.0.1:{sys.argv[1]}", client_args={"trust_env": False})
client = genai.Client(api_key="k", http_options=options)
text, error = "", None
try:
    for part in client.models.generate_content_stream(model="demo", contents="Hello"):
        text += part.text
except Exception as raised:
    error = f"{type(raised).__name__}: {raised}"
print(f"{text!r} {error}")
PY

server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
# Runs the client against a server with this frame; prints what the client saw.
try() {
    rm -f port
    python3 server.py "$@" >port & server=$!
    until [ -s port ]; do kill -0 "$server"; sleep 0.05; done
    venv/bin/python client.py "$(cat port)"
    kill "$server"; wait "$server" 2>/dev/null || true; server=""
}
expect() { # what, saw, wanted
    printf '%-34s %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; exit 1; }
}

expect "nothing between events" "$(try none)" "'word0 word1 word2 word3 ' None"
expect "comment and blank line" "$(try comment)" "'word0 ' UnknownApiResponseError: Failed to parse response as JSON. Raw response: : keep-alive"
expect "comment line" "$(try comment_line)" "'word0 ' UnknownApiResponseError: Failed to parse response as JSON. Raw response: : keep-alive"
expect "blank line" "$(try blank_line)" "'word0 word1 word2 word3 ' None"
