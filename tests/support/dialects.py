"""Fakes of model APIs, written from their public documentation: a stream, a plain answer and an
error of each.

`Fake` serves all of them on one port. Header fields of the request choose its behaviour:
`X-Dialect` the API, `X-Case` one of `CASES`, `X-Cut` one of `CUTS`. With `X-Frame`, a frame of
`FRAMES`, and `X-Place`, one of `PLACES`, the fake sends frames itself."""

import dataclasses
import json
import time

from .upstreams import Scripted, chunk, plain

WORDS = tuple(f"word{n} " for n in range(4))
TEXT = "".join(WORDS)
# Pause between two pieces of a stream, in seconds: longer than the shortest interval of frames, 100
# ms.
PAUSE = 0.13
# Delay before the header, in seconds: longer than `before_headers: 100ms`.
THINKS = 0.5
RETRY_AFTER = "7"

# Behaviours of the upstream. `late_…` answers after a delay; `cut` closes the connection after an
# event, `cut_inside` within one.
CASES = ("stream", "late_stream", "json", "late_json", "error_before", "late_error", "error_inside", "cut", "cut_inside")
# How a stream is divided into chunks: after each event, after each line, or after every seventh
# byte, also inside CRLF.
CUTS = ("events", "lines", "bytes")
FRAMES = {
    "comment": b": keep-alive\n\n",
    "comment_line": b": keep-alive\n",
    "blank_line": b"\n",
    "event": b'event: ping\ndata: {"type": "ping"}\n\n',
}
# Places of frames: before the first event and after each, or inside each event, between its data
# and its blank line.
PLACES = ("between", "inside")


def event(data, name=None, identifier=None, end="\n"):
    """One event of a stream."""
    fields = [("id", identifier), ("event", name), ("data", data if isinstance(data, str) else json.dumps(data))]
    return "".join(f"{field}: {value}{end}" for field, value in fields if value is not None).encode() + end.encode()


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One API."""

    name: str
    path: str
    request: dict
    events: tuple
    answer: dict
    status: str
    refusal: dict
    failure: bytes
    fields: tuple = ()
    content_type: str = "text/event-stream"

    @property
    def is_event_stream(self):
        return self.content_type == "text/event-stream"


MESSAGES = [{"role": "user", "content": "Say some words."}]
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


def openai_chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1750000000, "model": "demo", "choices": [choice]})


def openai():
    """https://platform.openai.com/docs/api-reference/chat-streaming"""
    message = {"role": "assistant", "content": TEXT}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1750000000, "model": "demo", "usage": USAGE}
    return Dialect(
        name="openai",
        path="/v1/chat/completions",
        request={"model": "demo", "messages": MESSAGES, "stream": True},
        events=(
            openai_chunk({"role": "assistant", "content": ""}),
            *(openai_chunk({"content": word}) for word in WORDS),
            openai_chunk({}, "stop"),
            event("[DONE]"),
        ),
        answer={**answer, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]},
        status="429 Too Many Requests",
        refusal={"error": {"message": "Rate limit reached for demo.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}},
        failure=event({"error": {"message": "The model has failed.", "type": "server_error", "param": None, "code": "model_failed"}}),
    )


def mistral():
    """https://docs.mistral.ai/api: OpenAI's stream, and errors without the object `error`. The
    route sets the dialect, not the path."""
    refusal = {"object": "error", "message": "Requests rate limit exceeded", "type": "rate_limited", "param": None, "code": "1300"}
    return dataclasses.replace(
        openai(),
        name="mistral",
        path="/mistral/v1/chat/completions",
        refusal=refusal,
        failure=event({"object": "error", "message": "The model has failed.", "type": "internal_server_error", "param": None, "code": "3000"}),
    )


def responses():
    """https://platform.openai.com/docs/api-reference/responses-streaming"""
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole = {"id": "resp_1", "object": "response", "created_at": 1750000000, "model": "demo", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    usage = {
        "input_tokens": 5, "output_tokens": 4, "total_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    begun, done = {**whole, "status": "in_progress", "output": []}, {**whole, "status": "completed", "output": [item], "usage": usage}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    steps = [
        ("response.created", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**place, "part": {**part, "text": ""}}),
        *(("response.output_text.delta", {**place, "delta": word, "logprobs": []}) for word in WORDS),
        ("response.output_text.done", {**place, "text": TEXT, "logprobs": []}),
        ("response.completed", {"response": done}),
    ]
    error = {"type": "server_error", "code": "model_failed", "message": "The model has failed.", "param": None}
    return Dialect(
        name="responses",
        path="/v1/responses",
        request={"model": "demo", "input": "Say some words.", "stream": True},
        events=tuple(event({"type": name, "sequence_number": n, **step}, name) for n, (name, step) in enumerate(steps)),
        answer=done,
        status="429 Too Many Requests",
        refusal=openai().refusal,
        failure=event({"type": "error", "sequence_number": 4, "error": error}, "error"),
    )


def anthropic():
    """https://docs.claude.com/en/docs/build-with-claude/streaming"""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "demo", "stop_sequence": None}
    usage = {"input_tokens": 5, "output_tokens": 4}
    steps = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in WORDS),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    ]
    refusal = {"type": "rate_limit_error", "message": "This request would exceed your rate limit."}
    return Dialect(
        name="anthropic",
        path="/v1/messages",
        request={"model": "demo", "max_tokens": 100, "messages": MESSAGES, "stream": True},
        events=tuple(event(step, step["type"]) for step in steps),
        answer={**message, "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn", "usage": usage},
        status="429 Too Many Requests",
        refusal={"type": "error", "error": refusal, "request_id": "req_1"},
        failure=event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error"),
    )


def gemini_part(text, finish=None):
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **({"finishReason": finish} if finish else {})}
    counts = {"promptTokenCount": 5, "candidatesTokenCount": 4, "totalTokenCount": 9}
    return {"candidates": [candidate], "usageMetadata": counts, "modelVersion": "demo", "responseId": "r1"}


def gemini():
    """https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent, with
    `alt=sse`: lines end with CRLF."""
    parts = [gemini_part(word, "STOP" if word == WORDS[-1] else None) for word in WORDS]
    failure = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    return Dialect(
        name="gemini",
        path="/v1beta/models/demo:streamGenerateContent?alt=sse",
        request={"contents": [{"role": "user", "parts": [{"text": "Say some words."}]}]},
        events=tuple(event(part, end="\r\n") for part in parts),
        answer=gemini_part(TEXT, "STOP"),
        status="429 Too Many Requests",
        refusal={"error": {"code": 429, "message": "Resource has been exhausted.", "status": "RESOURCE_EXHAUSTED"}},
        failure=event(failure, end="\r\n"),
    )


def gemini_array():
    """Gemini's stream without `alt=sse`: one JSON array, sent in pieces."""
    parts = [json.dumps(gemini_part(word, "STOP" if word == WORDS[-1] else None)) for word in WORDS]
    marks = ["[", *[",\r\n"] * (len(parts) - 1)]
    pieces = [(mark + part).encode() for mark, part in zip(marks, parts, strict=True)]
    return dataclasses.replace(
        gemini(),
        name="gemini_array",
        path="/v1beta/models/demo:streamGenerateContent",
        events=(*pieces[:-1], pieces[-1] + b"]"),
        failure=b"," + json.dumps({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}).encode() + b"]",
        content_type="application/json",
    )


def cohere():
    """https://docs.cohere.com/reference/chat-stream (API v2)"""
    tokens = {"input_tokens": 5, "output_tokens": 4}
    start = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    usage = {"billed_units": tokens, "tokens": tokens}
    steps = [
        {"type": "message-start", "id": "c1", "delta": {"message": start}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        *({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": word}}}} for word in WORDS),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}},
    ]
    failure = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "The model has failed."}}
    return Dialect(
        name="cohere",
        path="/v2/chat",
        request={"model": "demo", "messages": MESSAGES, "stream": True},
        events=tuple(event(step, step["type"]) for step in steps),
        answer={
            "id": "c1", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}, "usage": usage,
        },
        status="429 Too Many Requests",
        refusal={"id": "e1", "message": "You are past the per minute request limit."},
        failure=event(failure, "message-end"),
    )  # fmt: skip


def ollama():
    """https://github.com/ollama/ollama/blob/main/docs/api.md: one JSON object per line, no event
    stream."""
    about = {"model": "demo", "created_at": "2025-06-01T00:00:00.000000Z"}
    lines = [
        *({**about, "message": {"role": "assistant", "content": word}, "done": False} for word in WORDS),
        {**about, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 4},
    ]
    return Dialect(
        name="ollama",
        path="/api/chat",
        request={"model": "demo", "messages": MESSAGES, "stream": True},
        events=tuple(json.dumps(line).encode() + b"\n" for line in lines),
        answer={**about, "message": {"role": "assistant", "content": TEXT}, "done": True, "done_reason": "stop"},
        status="503 Service Unavailable",
        refusal={"error": "server busy, please try again.  maximum pending requests exceeded"},
        failure=json.dumps({"error": "an error was encountered while running the model"}).encode() + b"\n",
        content_type="application/x-ndjson",
    )


def mcp():
    """https://modelcontextprotocol.io/specification/2025-06-18/basic/transports: a tool that
    reports progress. Lines end with CRLF."""

    def message(number, body):
        return event({"jsonrpc": "2.0", **body}, "message", identifier=f"s1_{number}", end="\r\n")

    progress = [{"method": "notifications/progress", "params": {"progressToken": "t1", "progress": n, "message": word}} for n, word in enumerate(WORDS)]
    result = {"id": "call-1", "result": {"content": [{"type": "text", "text": TEXT}], "isError": False}}
    call = {"name": "say", "arguments": {}, "_meta": {"progressToken": "t1"}}
    error = {"id": "call-1", "error": {"code": -32603, "message": "The tool has failed."}}
    return Dialect(
        name="mcp",
        path="/mcp",
        request={"jsonrpc": "2.0", "id": "call-1", "method": "tools/call", "params": call},
        events=tuple(message(n, body) for n, body in enumerate([*progress, result])),
        answer={"jsonrpc": "2.0", **result},
        status="503 Service Unavailable",
        refusal={"jsonrpc": "2.0", "id": "call-1", "error": {"code": -32000, "message": "Too many sessions."}},
        failure=message(4, error),
        fields=(("Accept", "application/json, text/event-stream"), ("MCP-Protocol-Version", "2025-06-18")),
    )


def dashscope():
    """https://help.aliyun.com/zh/model-studio/qwen-api-via-dashscope: a comment field in each
    event, no space after the colons."""

    def result(number, body, name="result", status=200):
        return f"id:{number}\nevent:{name}\n:HTTP_STATUS/{status}\ndata:{json.dumps(body)}\n\n".encode()

    def output(text, finish):
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {"output": {"choices": [choice]}, "usage": {"input_tokens": 5, "output_tokens": 4, "total_tokens": 9}, "request_id": "d1"}

    failure = {"code": "InternalError", "message": "The model has failed.", "request_id": "d1"}
    return Dialect(
        name="dashscope",
        path="/api/v1/services/aigc/text-generation/generation",
        request={"model": "demo", "input": {"messages": MESSAGES}, "parameters": {"incremental_output": True, "result_format": "message"}},
        events=tuple(result(n, output(word, "stop" if word == WORDS[-1] else "null")) for n, word in enumerate(WORDS, 1)),
        answer=output(TEXT, "stop"),
        status="429 Too Many Requests",
        refusal={"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded.", "request_id": "d1"},
        failure=result(3, failure, "error", 500),
        fields=(("X-DashScope-SSE", "enable"), ("Accept", "text/event-stream")),
    )


DIALECTS = {
    made.name: made
    for made in (openai(), responses(), anthropic(), gemini(), gemini_array(), cohere(), mistral(), ollama(), mcp(), dashscope())
}


class Fake(Scripted):
    """All dialects on one port."""

    def __init__(self):
        super().__init__(_answer)


def _answer(request, send):
    fields = dict(request["headers"])
    dialect = DIALECTS[fields.get("x-dialect") or _dialect_of(request["target"])]
    case = fields.get("x-case", "stream")
    if dialect.name == "mcp" and (done := _mcp_session(request)) is not None:
        send(done)
        return True
    if case.startswith("late"):
        time.sleep(THINKS)
    if case in ("error_before", "late_error"):
        body = _for_call(request, [json.dumps(dialect.refusal).encode()])[0]
        send(plain(dialect.status, body, ["Content-Type: application/json", f"Retry-After: {RETRY_AFTER}"]))
        return True
    if case in ("json", "late_json"):
        send(plain(body=_for_call(request, [json.dumps(dialect.answer).encode()])[0], headers=["Content-Type: application/json"]))
        return True
    *events, failure = _for_call(request, [*dialect.events, dialect.failure])
    if case in ("error_inside", "cut", "cut_inside"):
        events = events[: len(events) // 2 + 1]
    if case == "cut_inside":
        events = [*events[:-1], events[-1][: len(events[-1]) * 2 // 3]]
    if case == "error_inside":
        events = (*events, failure)
    send(f"HTTP/1.1 200 OK\r\nContent-Type: {dialect.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    if "x-frame" in fields:
        for piece in framed(events, FRAMES[fields["x-frame"]], fields["x-place"]):
            send(chunk(piece))
        events = ()
    for piece, pauses in pieces(events, fields.get("x-cut", "events")):
        send(chunk(piece))
        time.sleep(PAUSE if pauses else 0)
    if case in ("cut", "cut_inside"):
        return False
    send(chunk(b""))
    return True


def framed(events, frame, place):
    """The chunks of a stream with frames inserted."""
    if place == "between":
        return [frame, *(part for one in events for part in (one, frame))]
    lines = b"".join(events).splitlines(keepends=True)
    return [line + frame if line.startswith(b"data") else line for line in lines]


def pieces(events, cut):
    """The chunks of a stream, as pairs of bytes and whether a pause follows."""
    if not events:
        return []
    whole = b"".join(events)
    if cut == "events":
        return [(one, True) for one in events]
    if cut == "lines":
        return [(line, True) for line in whole.splitlines(keepends=True)]
    # Seven divides no line length evenly, so a pause falls inside a line, at its end, or inside
    # CRLF.
    cuts = sorted({*range(7, len(whole), 7), *(at + 1 for at in range(len(whole) - 1) if whole[at : at + 2] == b"\r\n")})
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    every = max(1, len(parts) // 8)
    return [(part, n % every == 0 or part.endswith((b"\r", b"\n"))) for n, part in enumerate(parts)]


def _dialect_of(target):
    path = target.partition("?")[0]
    if path.startswith("/v1beta/"):
        return "gemini" if "alt=sse" in target else "gemini_array"
    return next((name for name, dialect in DIALECTS.items() if dialect.path == path), "openai")


def _mcp_session(request):
    """The answer to an MCP request that opens or closes a session. `None` for a tool call."""
    if request["method"] != "POST":
        return plain("405 Method Not Allowed", b"")
    asked = json.loads(request["body"])
    results = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "fake", "version": "1"}},
        "tools/list": {"tools": [{"name": "say", "inputSchema": {"type": "object"}}]},
    }
    if asked.get("method") in results:
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": results[asked["method"]]}).encode()
        return plain(body=body, headers=["Content-Type: application/json", "Mcp-Session-Id: s1"])
    if "id" not in asked:
        return plain("202 Accepted", b"")
    return None


def _for_call(request, parts):
    """The parts with the request id and progress token of the call, which the MCP client
    chooses."""
    if not request["target"].startswith("/mcp"):
        return parts
    asked = json.loads(request["body"])
    token = asked.get("params", {}).get("_meta", {}).get("progressToken", "t1")
    return [part.replace(b'"call-1"', json.dumps(asked["id"]).encode()).replace(b'"t1"', json.dumps(token).encode()) for part in parts]


def sse_events(body):
    """The events of a body by WHATWG HTML, section 9.2.6: (type, last event id, data)."""
    lines = body.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found, kind, identifier, data = [], "", "", []
    for line in lines[:-1]:
        if not line:
            if data:
                found.append((kind or "message", identifier, "\n".join(data)))
            kind, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            identifier = value
    return found
