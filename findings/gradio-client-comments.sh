#!/usr/bin/env bash
# Assumption: a client of server-sent events ignores comment lines and blank lines between events (WHATWG HTML, section 9.2.6).
# Result: gradio_client splits the stream at "\n\n" and ends it with "Unexpected SSE line" if a part does not begin
# with "data:". A comment is such a part, and so is an event after a single blank line, which stays in front of it. The job
# ends with CancelledError, and its outputs are lost. Two blank lines and Gradio's own heartbeat message are ignored.
# Version: gradio_client 2.7.2 (PyPI), gradio_client/client.py, Client.stream_messages.
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check gradio_client==2.7.2
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^gradio_client '
cat >server.py <<'PY'
"""Serves Gradio's queue with one function. The first argument names the frame between two events."""
import http.server
import json
import sys

FRAME = {
    "none": "",
    "comment": ": keep-alive\n\n",
    "comment_line": ": keep-alive\n",
    "event": "event: keepalive\ndata: {}\n\n",
    "blank_line": "\n",
    "two_blank_lines": "\n\n",
    "heartbeat": 'data: {"msg":"heartbeat"}\n\n',
}[sys.argv[1]]
TEXTBOX = {"type": "textbox", "skip_api": False, "api_info": {"type": "string"}}
DEPENDENCY = {"id": 0, "inputs": [1], "outputs": [2], "backend_fn": True, "api_name": "say", "api_visibility": "public"}
APP = {
    "version": "6.31.0", "api_prefix": "/gradio_api", "protocol": "sse_v3", "enable_queue": True, "connect_heartbeat": False,
    "dependencies": [{**DEPENDENCY, "types": {"generator": True, "cancel": False}}],
    "components": [{**TEXTBOX, "id": 1}, {**TEXTBOX, "id": 2}],
}
VALUE = {"label": "text", "type": {"type": "string"}, "python_type": {"type": "str"}, "component": "Textbox"}
PARAMETER = {**VALUE, "parameter_name": "text", "parameter_has_default": False}
INFO = {"named_endpoints": {"/say": {"parameters": [PARAMETER], "returns": [VALUE]}}, "unnamed_endpoints": {}}


def event(msg, **values):
    return f"data: {json.dumps({'msg': msg, 'event_id': 'e1', **values})}\n\n"


EVENTS = [
    event("process_starts"),
    event("process_generating", output={"data": ["one "]}, success=True),
    event("process_generating", output={"data": [[["append", [], "two"]]]}, success=True),
    event("process_completed", output={"data": ["one two"]}, success=True),
    event("close_stream"),
]


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        if self.path.startswith("/gradio_api/queue/data"):
            self.answer("text/event-stream", "".join(one + FRAME for one in EVENTS))
        else:
            self.answer("application/json", json.dumps(INFO if "info" in self.path else APP))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer("application/json", '{"event_id": "e1"}')

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PY
cat >client.py <<'PY'
import concurrent.futures
import sys
import gradio_client

options = {"verbose": False, "analytics_enabled": False, "httpx_kwargs": {"trust_env": False}}
client = gradio_client.Client(f"http://127.0.0.1:{sys.argv[1]}", **options)
if sys.argv[2:]:
    print(client.headers["user-agent"].split("/")[0])
    sys.exit()
job = client.submit("Hello", api_name="/say")
try:
    result = job.result(timeout=20)
except (Exception, concurrent.futures.CancelledError) as raised:
    result = type(raised).__name__
print(job.outputs(), result)
PY

server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
# Runs the client against a server with this frame; prints what the client saw.
try() {
    rm -f port
    python3 server.py "$1" >port & server=$!
    until [ -s port ]; do kill -0 "$server"; sleep 0.05; done
    venv/bin/python client.py "$(cat port)" "${@:2}" 2>errors
    grep -o 'Unexpected SSE line' errors | head -n 1 || true
    kill "$server"; wait "$server" 2>/dev/null || true; server=""
}
expect() { # what, saw, wanted
    printf '%-28s %s\n' "$1" "$(echo "$2" | tr '\n' ' ')"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; exit 1; }
}

whole="['one ', 'one two'] one two"
broken="[] CancelledError
Unexpected SSE line"
expect "User-Agent begins with" "$(try none user-agent)" "gradio_client"
expect "nothing between events" "$(try none)" "$whole"
expect "comment and blank line" "$(try comment)" "$broken"
expect "comment line" "$(try comment_line)" "$broken"
expect "event with a name" "$(try event)" "$broken"
expect "one blank line" "$(try blank_line)" "$broken"
expect "two blank lines" "$(try two_blank_lines)" "$whole"
expect "Gradio's heartbeat" "$(try heartbeat)" "$whole"
