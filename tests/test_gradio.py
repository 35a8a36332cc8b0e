"""Gradio's Python client through Keylatch: its requests, the frames that it accepts, and equal
results with and without Keylatch.

The upstream imitates a Gradio 6.31 server (protocol `sse_v3`): a call enters a queue, and its
events arrive in a separate stream that a `GET` requests."""

import concurrent.futures
import dataclasses
import json
import time

import gradio_client
import pytest
from support import raw
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

WORDS = ["word0 ", "word0 word1 ", "word0 word1 word2 "]
HEARTBEAT = b'data: {"msg":"heartbeat"}\n\n'
FRAMES = {
    "comment": b": keep-alive\n\n",
    "comment_line": b": keep-alive\n",
    "blank_line": b"\n",
    "event": b'event: keepalive\ndata: {"type":"keepalive"}\n\n',
    "two_blank_lines": b"\n\n",
    "heartbeat": HEARTBEAT,
}
# Seconds; several intervals of 100 ms.
PAUSE = 0.35
CASES = ["stream", "late_stream", "error_before", "error_inside", "cut"]

DEPENDENCY = {"id": 0, "inputs": [1], "outputs": [2], "backend_fn": True, "api_name": "say", "api_visibility": "public", "queue": True}
TEXTBOX = {"type": "textbox", "props": {}, "skip_api": False, "api_info": {"type": "string"}, "example_inputs": "Hello!!"}
APP = {
    "version": "6.31.0",
    "api_prefix": "/gradio_api",
    "protocol": "sse_v3",
    "enable_queue": True,
    "connect_heartbeat": False,
    "dependencies": [{**DEPENDENCY, "types": {"generator": True, "cancel": False}}],
    "components": [{**TEXTBOX, "id": 1}, {**TEXTBOX, "id": 2}],
}
PARAMETER = {"label": "text", "parameter_name": "text", "parameter_has_default": False, "parameter_default": None, "type": {"type": "string"}}
VALUE = {"label": "value", "type": {"type": "string"}, "python_type": {"type": "str", "description": ""}, "component": "Textbox"}
SAY = {"parameters": [{**PARAMETER, **VALUE, "example_input": "Hello!!"}], "returns": [VALUE], "api_visibility": "public"}


def message(name, **values):
    return b"data: " + json.dumps({"msg": name, "event_id": "e1", **values}, separators=(",", ":")).encode() + b"\n\n"


def messages(case):
    """The events of a call. After the first output, each output is a difference to the previous
    one."""
    added = [[WORDS[0]], *([[["append", [], f"word{n} "]]] for n in (1, 2))]
    outputs = [message("process_generating", output={"data": data, "is_generating": True}, success=True) for data in added]
    begin = [message("estimation", rank=0, queue_size=1, rank_eta=None), message("process_starts", eta=None)]
    if case in ("error_inside", "cut"):
        failed = message("process_completed", output={"error": "The model has failed.", "title": "Error"}, success=False)
        return [*begin, outputs[0], *([failed] if case == "error_inside" else [])]
    done = message("process_completed", output={"data": [WORDS[-1]], "is_generating": False}, success=True)
    return [*begin, *outputs, done, b'data: {"msg":"close_stream","event_id":null}\n\n']


def answer(request, send):
    fields, path = dict(request["headers"]), request["target"].partition("?")[0]
    case, frame = fields.get("x-case", "stream"), FRAMES.get(fields.get("x-frame"))
    if path != "/gradio_api/queue/data":
        bodies = {"/config": APP, "/gradio_api/info": {"named_endpoints": {"/say": SAY}, "unnamed_endpoints": {}}, "/gradio_api/queue/join": {"event_id": "e1"}}
        status = "503 Service Unavailable" if case == "error_before" and path.endswith("join") else "200 OK" if path in bodies else "404 Not Found"
        send(plain(status, json.dumps(bodies.get(path, {})).encode(), ["Content-Type: application/json"]))
        return True
    time.sleep(PAUSE if case == "late_stream" else 0)
    send(STREAM_HEAD)
    for one in messages(case):
        send(chunk(one))
        if frame:
            send(chunk(frame))
        elif case != "cut":
            time.sleep(PAUSE)
    if case == "cut":
        return False
    send(chunk(b""))
    return True


@dataclasses.dataclass
class CallResult:
    """The result of a call, as the application sees it."""

    outputs: list
    result: str | None
    error: tuple | None


def call(port, **fields):
    options = {"verbose": False, "analytics_enabled": False, "download_files": False, "httpx_kwargs": {"trust_env": False}}
    client = gradio_client.Client(f"http://127.0.0.1:{port}", headers={f"x-{name}": value for name, value in fields.items()}, **options)
    job, result, error = client.submit("Say some words.", api_name="/say"), None, None
    try:
        result = job.result(timeout=20)
    except (Exception, concurrent.futures.CancelledError) as raised:  # noqa: BLE001, what a library raises is what is compared
        error = (type(raised).__name__, str(raised))
    client.close()
    return CallResult(job.outputs(), result, error)


@pytest.fixture(scope="module")
def upstream():
    with Scripted(answer) as made:
        yield made


CONFIG = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: memory
shutdown: {{drain: 1s}}
upstreams: [{{name: app, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
routes:
  - name: app
    upstream: app
    filters:
      - sse_keepalive: {{interval: 100ms, before_headers: 100ms}}
"""


def test_the_client_sees_the_same(start, upstream):
    keylatch = start(upstream, config=CONFIG)
    calls = [(place, case) for case in CASES for place in (upstream.port, keylatch.port)]
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        seen = dict(zip(calls, pool.map(lambda one: call(one[0], case=one[1]), calls), strict=True))
    for case in CASES:
        assert seen[keylatch.port, case] == seen[upstream.port, case], case
    for case in ("stream", "late_stream"):
        assert seen[keylatch.port, case] == CallResult(WORDS, WORDS[-1], None)
    assert seen[keylatch.port, "error_before"].error == ("QueueError", "Queue is full! Please try again.")
    assert seen[keylatch.port, "error_inside"] == CallResult(WORDS[:1], None, ("AppError", "The model has failed."))
    assert seen[keylatch.port, "cut"].error[0] == "CancelledError"
    assert keylatch.metrics()["keylatch_stream_frames_total"] >= 20


def test_the_client_is_recognised_by_its_user_agent(start, upstream):
    """The `User-Agent` matches the table, and the client gets Gradio's own heartbeat."""
    call(upstream.port, case="error_before")
    agents = {dict(request["headers"])["user-agent"] for request in upstream.requests if request["target"].startswith("/config")}
    assert all(agent.startswith(f"gradio_client/{gradio_client.__version__}; hf_hub/") for agent in agents), agents
    keylatch = start(upstream, config=CONFIG)
    answer = raw.request(keylatch.port, "/gradio_api/queue/data?session_hash=s1", headers=[("User-Agent", agents.pop())])
    assert answer.body.count(HEARTBEAT) > 6 and answer.body.replace(HEARTBEAT, b"") == b"".join(messages("stream"))


# A blank line stays in the buffer before the next event, which then does not begin with `data:`.
@pytest.mark.parametrize(("frame", "works"), [*((frame, frame in ("two_blank_lines", "heartbeat")) for frame in FRAMES)])
def test_frames_that_the_client_accepts(upstream, frame, works):
    seen = call(upstream.port, frame=frame)
    assert seen == (CallResult(WORDS, WORDS[-1], None) if works else CallResult([], None, ("CancelledError", "")))
