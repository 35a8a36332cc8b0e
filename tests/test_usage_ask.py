"""The upstream is asked for the usage of streams, and the client's bytes stay as if it was not."""

import json

import httpx
import pytest
from support.keylatch import wait_for
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

HEARTBEATS = "      - sse_keepalive: {interval: 1s}\n"


def events(asked):
    """The stream of a server that reports usage only if it is asked."""
    null = ',"usage":null' if asked else ""
    for text in ("Hel", "lo", ""):
        yield f'data: {{"id":"c","model":"gpt-x","choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]{null}}}\n\n'
    if asked:
        yield 'data: {"id":"c","model":"gpt-x","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}}\n\n'
    yield "data: [DONE]\n\n"


class Model:
    """`cut`: the size of the pieces that events are sent in; 0: an event a piece."""

    def __init__(self, cut):
        self.cut = cut

    def __call__(self, request, send):
        body = json.loads(request["body"])
        if not body.get("stream"):
            send(plain(body=json.dumps(body).encode(), headers=["Content-Type: application/json"]))
            return True
        asked = bool((body.get("stream_options") or {}).get("include_usage"))
        send(STREAM_HEAD)
        stream = list(events(asked))
        if self.cut:
            whole = "".join(stream)
            stream = [whole[at:at + self.cut] for at in range(0, len(whole), self.cut)]
        for piece in stream:
            send(chunk(piece.encode()))
        send(chunk(b""))
        return True


def body(**more):
    return {"messages": [{"role": "user", "content": "Hi"}], "stream": True, **more, "model": "gpt-x"}


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 100])
@pytest.mark.parametrize("before", ["", HEARTBEATS])
def test_the_stream_is_unchanged_and_its_usage_known(start, cut, before, http2):
    with Scripted(Model(cut)) as upstream:
        keylatch = start(upstream, route_filters=f"{before}      - usage: {{ask_upstream: true}}")
        with httpx.Client(http1=not http2, http2=http2) as client:
            answer = client.post(keylatch.url("/v1/chat/completions"), json=body())
        assert answer.text == "".join(events(asked=False))
        sent = json.loads(upstream.requests[0]["body"])
        assert sent == {"stream_options": {"include_usage": True}, **body()}
        wait_for(lambda: keylatch.access_log(), "an access line")
        line = keylatch.access_log()[0]
        assert (line["usage_source"], line["input_tokens"], line["output_tokens"]) == ("reported", 11, 2)


def test_requests_that_are_left_alone(start):
    with Scripted(Model(0)) as upstream:
        keylatch = start(upstream, route_filters="      - usage: {ask_upstream: true}", limits="{read_ahead_bytes: 64KiB}")
        for path, asked in [
            ("/v1/chat/completions", body(stream=False)),
            ("/v1/chat/completions", body(stream_options={})),
            ("/v1/chat/completions", body(stream_options=None)),
            ("/v1/chat/completions", body(stream_options={"include_usage": False})),
            ("/v1/chat/completions", body(pad="x" * 100_000)),
            ("/v1/messages", body()),
            ("/v1/responses", body()),
        ]:
            answer = httpx.post(keylatch.url(path), json=asked)
            assert answer.status_code == 200 and json.loads(upstream.requests[-1]["body"]) == asked
        asking = httpx.post(keylatch.url("/v1/chat/completions"), json=body(stream_options={"include_usage": True}))
        assert asking.text == "".join(events(asked=True)), "the client asked itself"
        wait_for(lambda: keylatch.access_log()[-1]["usage_source"] == "reported", "the usage is read")


def test_a_chunked_request(start):
    with Scripted(Model(0)) as upstream:
        keylatch = start(upstream, route_filters="      - usage: {ask_upstream: true}")
        whole = json.dumps(body()).encode()
        answer = httpx.post(keylatch.url("/v1/completions"), content=iter([b" ", whole[:5], whole[5:]]), headers={"Content-Type": "application/json"})
        assert answer.text == "".join(events(asked=False))
        assert json.loads(upstream.requests[0]["body"])["stream_options"] == {"include_usage": True}
