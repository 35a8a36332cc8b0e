#!/usr/bin/env bash
# Assumption: the comment lines that WHATWG HTML, section 9.2.7, proposes against time-outs keep a stream to Codex open, and an
# `error` event of the Responses API is shown to the user.
# Result: only events with data reset Codex's idle timer (`stream_idle_timeout_ms`, default 5 min), whatever their
# type. Comments, blank lines and events without data do not. An `error` event is ignored: Codex reports "stream
# closed before response.completed". `response.failed` is shown.
# Version: @openai/codex 0.171.0 (npm), codex exec. The package is large, 424 MB on disk.
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
mkdir home work
echo '{"private": true}' >package.json
npm install --silent --ignore-scripts --no-audit --no-fund --save-exact @openai/codex@0.171.0
node_modules/.bin/codex --version
cat >server.py <<'PY'
"""Serves a Responses stream. Arguments: the frame sent during pauses, and the end of the stream."""
import http.server
import json
import sys
import time

FRAME = {
    "none": b"",
    "comment": b": keep-alive\n\n",
    "blank_line": b"\n",
    "no_data": b"event: keepalive\n\n",
    "event": b'event: keepalive\ndata: {"type":"keepalive"}\n\n',
}[sys.argv[1]]
END = sys.argv[2]
PART = {"type": "output_text", "text": "Hello.", "annotations": []}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [PART]}
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
ERROR = {"code": "server_error", "message": "The model has failed."}
LAST = {
    "completed": ("response.completed", {"response": {"id": "r1", "status": "completed", "output": [ITEM], "usage": USAGE}}),
    "failed": ("response.failed", {"response": {"id": "r1", "status": "failed", "error": ERROR}}),
    "error": ("error", {"error": {"type": "server_error", **ERROR}}),
}
STEPS = [
    ("response.created", {"response": {"id": "r1", "status": "in_progress", "output": []}}),
    ("response.output_item.done", {"output_index": 0, "item": ITEM}),
    LAST[END],
]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with open("agent", "w") as file:
            file.write(self.headers["User-Agent"].split("/")[0])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number, (name, step) in enumerate(STEPS):
            self.wfile.write(f"event: {name}\ndata: {json.dumps({'type': name, 'sequence_number': number, **step})}\n\n".encode())
            # Twice the idle time-out in all, with 20 frames per time-out.
            for _ in range(40 if END == "completed" else 0):
                self.wfile.write(FRAME)
                time.sleep(0.1)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PY

server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
# Runs Codex against a server with this frame and end; prints the answer or the error.
try() {
    rm -f port
    python3 server.py "$@" >port 2>/dev/null & server=$!
    until [ -s port ]; do kill -0 "$server"; sleep 0.05; done
    cat >home/config.toml <<TOML
model = "demo"
model_provider = "local"
[analytics]
enabled = false
[model_providers.local]
name = "local"
base_url = "http://127.0.0.1:$(cat port)/v1"
wire_api = "responses"
env_key = "LOCAL_KEY"
stream_idle_timeout_ms = 2000
stream_max_retries = 0
request_max_retries = 0
TOML
    CODEX_HOME="$folder/home" LOCAL_KEY=k node_modules/.bin/codex exec --json --skip-git-repo-check -C work -s read-only "Hello" </dev/null >events 2>/dev/null || true
    python3 - <<'PY'
import json

for line in open("events"):
    event = json.loads(line)
    if event["type"] == "turn.failed":
        print(event["error"]["message"].removeprefix("stream disconnected before completion: "))
    elif event.get("item", {}).get("type") == "agent_message" and "turn.completed" in open("events").read():
        print(event["item"]["text"])
PY
    kill "$server"; wait "$server" 2>/dev/null || true; server=""
}
expect() { # what, saw, wanted
    printf '%-32s %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; exit 1; }
}

silence="idle timeout waiting for SSE"
expect "pauses without a frame" "$(try none completed)" "$silence"
expect "User-Agent begins with" "$(cat agent)" "codex_exec"
expect "pauses with comments" "$(try comment completed)" "$silence"
expect "pauses with blank lines" "$(try blank_line completed)" "$silence"
expect "pauses with events without data" "$(try no_data completed)" "$silence"
expect "pauses with events with data" "$(try event completed)" "Hello."
expect "response.failed at the end" "$(try none failed)" "The model has failed."
expect "error at the end" "$(try none error)" "stream closed before response.completed"
