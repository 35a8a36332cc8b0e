#!/usr/bin/env bash
# Assumption: a client of server-sent events ignores comment lines at any position (WHATWG HTML, section 9.2.6).
# Result: @google/genai splits the stream at blank lines and reads the first field of each part. A comment
# followed by a blank line is ignored. A comment line that becomes part of an event makes the stream fail: before
# the data with "Incomplete JSON segment at the end", after it with a JSON syntax error. A bare blank line is ignored.
# Version: @google/genai 2.32.0 (npm; the last that runs on Node 20), src/_api_client.ts, processStreamResponse.
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
cat >package.json <<'JSON'
{"private": true, "type": "module"}
JSON
npm install --silent --ignore-scripts --no-audit --no-fund --save-exact @google/genai@2.32.0
echo "node $(node --version), @google/genai 2.32.0"
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
cat >client.mjs <<'JS'
import { GoogleGenAI } from '@google/genai';

const client = new GoogleGenAI({ apiKey: 'k', httpOptions: { baseUrl: `http://127.0.0.1:${process.argv[2]}` } });
let text = '';
let error = 'none';
try {
  for await (const part of await client.models.generateContentStream({ model: 'demo', contents: 'Hello' })) text += part.text;
} catch (raised) {
  error = raised.message;
}
console.log(`'${text}' ${error}`);
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

expect "nothing between events" "$(try none)" "'word0 word1 word2 word3 ' none"
expect "comment and blank line" "$(try comment)" "'word0 word1 word2 word3 ' none"
expect "comment line between events" "$(try comment_line)" "'word0 ' Incomplete JSON segment at the end"
expect "comment line inside an event" "$(try comment_line inside)" "'' Unexpected non-whitespace character after JSON at position 116"
expect "blank line" "$(try blank_line)" "'word0 word1 word2 word3 ' none"
