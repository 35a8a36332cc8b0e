#!/usr/bin/env bash
# Assumption: LiteLLM ignores comment lines in a stream, or reports an error.
# Result: on a stream of Gemini's API, LiteLLM stops at the first comment line, drops the rest without an
# error, and reports finish_reason "stop". A bare blank line is ignored. Streams of OpenAI's API are not affected.
# Version: litellm 1.110.2 (PyPI), litellm/llms/vertex_ai/gemini/vertex_and_google_ai_studio_gemini.py,
# ModelResponseIterator.
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check litellm==1.110.2
venv/bin/pip list --disable-pip-version-check 2>/dev/null | grep '^litellm '
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
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

for port in sys.argv[1:]:
    text, finish, error = "", None, None
    arguments = {"model": "gemini/demo", "api_base": f"http://127.0.0.1:{port}", "api_key": "k", "stream": True, "num_retries": 0}
    try:
        for part in litellm.completion(messages=[{"role": "user", "content": "Hello"}], **arguments):
            text += part.choices[0].delta.content or ""
            finish = part.choices[0].finish_reason or finish
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    print(f"{text!r} {finish} {error}")
PY

servers=""
trap '[ -z "$servers" ] || kill $servers 2>/dev/null || true; rm -rf "$folder"' EXIT
for frame in none comment comment_line blank_line; do
    python3 server.py "$frame" >"port-$frame" &
    servers="$servers $!"
done
for frame in none comment comment_line blank_line; do
    until [ -s "port-$frame" ]; do sleep 0.05; done
done
# One process for all cases, because the library takes seconds to load.
NO_PROXY=127.0.0.1 venv/bin/python client.py "$(cat port-none)" "$(cat port-comment)" "$(cat port-comment_line)" "$(cat port-blank_line)" 2>/dev/null >saw
cat >wanted <<'TEXT'
'word0 word1 word2 word3 ' stop None
'word0 ' stop None
'word0 ' stop None
'word0 word1 word2 word3 ' stop None
TEXT
echo "saw, with nothing, a comment and a blank line, a comment line, and a blank line between events:"
cat saw
diff wanted saw || { echo "changed" >&2; exit 1; }
