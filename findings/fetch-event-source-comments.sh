#!/usr/bin/env bash
# Assumption: the application does not see a comment followed by a blank line, the usual keep-alive.
# Result: @microsoft/fetch-event-source dispatches an empty message at every blank line, even if no field
# precedes it (WHATWG HTML, section 9.2.6: an event without data is not dispatched). Applications that parse
# each message as JSON fail. A comment line without a blank line is ignored.
# Version: @microsoft/fetch-event-source 2.0.1 (npm), src/parse.ts, getMessages.
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
cat >package.json <<'JSON'
{"private": true, "type": "module"}
JSON
npm install --silent --ignore-scripts --no-audit --no-fund --save-exact @microsoft/fetch-event-source@2.0.1
echo "node $(node --version), @microsoft/fetch-event-source 2.0.1"
cat >server.py <<'PY'
"""Serves OpenAI's stream. The first argument names the frame between two events; with a second one, inside each event."""
import http.server
import json
import sys

BETWEEN = {"none": "", "comment": ": keep-alive\n\n", "comment_line": ": keep-alive\n", "blank_line": "\n"}
FRAME = BETWEEN[sys.argv[1]]
INSIDE = len(sys.argv) > 2


def event(n):
    choice = {"index": 0, "delta": {"content": f"word{n} "}, "finish_reason": "stop" if n == 3 else None}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "demo", "choices": [choice]}


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
cat >client.mjs <<'JS'
// The package is written for browsers; it uses these globals.
globalThis.window = { clearTimeout, setTimeout, fetch };
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import('@microsoft/fetch-event-source');

const messages = [];
await fetchEventSource(`http://127.0.0.1:${process.argv[2]}/`, {
  method: 'POST', body: '{}', fetch, openWhenHidden: true,
  async onopen() {},
  onmessage: (message) => messages.push(message.data === '' ? 'empty' : 'data'),
  onerror(error) { throw error; },
});
console.log(messages.join(' '));
JS

server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
# Runs the client against a server with this frame; prints what the client saw.
try() {
    rm -f port
    python3 server.py "$@" >port & server=$!
    until [ -s port ]; do kill -0 "$server"; sleep 0.05; done
    node client.mjs "$(cat port)"
    kill "$server"; wait "$server" 2>/dev/null || true; server=""
}
expect() { # what, saw, wanted
    printf '%-34s %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; exit 1; }
}

expect "nothing between events" "$(try none)" "data data data data"
expect "comment and blank line" "$(try comment)" "data empty data empty data empty data empty"
expect "comment line between events" "$(try comment_line)" "data data data data"
expect "comment line inside an event" "$(try comment_line inside)" "data data data data"
expect "blank line" "$(try blank_line)" "data empty data empty data empty data empty"
