"""Which keep-alive frames client libraries accept. The results are the reason for the frames of
`sse_keepalive`.

The fake sends the frames, so nothing depends on time. `test_dialects.py` runs the same libraries
through Keylatch."""

import re

import pytest
from support import sdks
from support.dialects import FRAMES as FRAMES_OF_FAKE
from support.dialects import TEXT, Fake
from support.keylatch import ROOT

# Frames that every library ignores, except for the entries of `BREAKS`.
FRAMES = [("comment", "between"), ("comment_line", "between"), ("comment_line", "inside"), ("blank_line", "between")]
# Libraries that deviate from WHATWG HTML, section 9.2: the error that a frame causes, and the words
# before it.
NOT_JSON = "Failed to parse response as JSON. Raw response: : keep-alive"
BREAKS = {
    ("google-genai", "comment", "between"): NOT_JSON,
    ("google-genai", "comment_line", "between"): NOT_JSON,
    ("google-genai", "comment_line", "inside"): NOT_JSON,
    ("google-genai-node", "comment_line", "between"): "Incomplete JSON segment at the end",
    ("google-genai-node", "comment_line", "inside"): "Incomplete JSON segment at the end",
    # This library reports each blank line as an empty message, which an application cannot parse as
    # JSON.
    ("fetch-event-source", "comment", "between"): "Unexpected end of JSON input",
    ("fetch-event-source", "blank_line", "between"): "Unexpected end of JSON input",
}
# Ollama's own API has no event stream.
LIBRARIES = [name for name in [*sdks.PYTHON, *sdks.JAVASCRIPT] if name != "ollama"]


@pytest.fixture(scope="module")
def run():
    """Runs a library on a stream with these frames."""
    node = sdks.Node()

    def begin(library, frame, place):
        fields = {"X-Frame": frame, "X-Place": place}
        if library in sdks.PYTHON:
            function, dialect = sdks.PYTHON[library]
            return function(base, {**fields, "X-Dialect": dialect})
        return node.run(library, base, {**fields, "X-Dialect": sdks.JAVASCRIPT[library]})

    with Fake() as fake:
        base = f"http://127.0.0.1:{fake.port}"
        yield begin
    node.close()


@pytest.mark.parametrize(("frame", "place"), FRAMES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frame(run, library, frame, place):
    outcome = run(library, frame, place)
    breaks = BREAKS.get((library, frame, place))
    if breaks:
        assert outcome.error and breaks in outcome.error[1] and outcome.text != TEXT
    else:
        assert (outcome.text, outcome.error) == (TEXT, None) and outcome.finish


def test_a_ping_is_an_anthropic_event(run):
    outcome = run("anthropic", "event", "between")
    assert (outcome.text, outcome.finish, outcome.error) == (TEXT, "end_turn", None)


def test_langchains_timer_counts_only_events():
    """`stream_chunk_timeout` restarts at each chunk of an asynchronous stream. Frames are no chunks
    and do not restart it."""
    with Fake() as fake:
        base = f"http://127.0.0.1:{fake.port}"
        seen = {frame: sdks.langchain_chunks(base, {"X-Frame": frame, "X-Place": "between"}) for frame in FRAMES_OF_FAKE}
    assert {text for _, text in seen.values()} == {TEXT}
    chunks = {frame: count for frame, (count, _) in seen.items()}
    assert chunks["comment"] == chunks["comment_line"] == chunks["blank_line"] < chunks["event"]


def test_the_page_names_the_versions_that_are_tested():
    findings = [ROOT / "findings" / name for name in ("litellm-gemini-comments.sh", "codex-comments.sh")]
    files = [ROOT / "tests" / "requirements.txt", ROOT / "tests" / "node" / "package.json", *findings]
    pinned = set(re.findall(r"\d+\.\d+\.\d+", "".join(path.read_text() for path in files)))
    named = set(re.findall(r"\d+\.\d+\.\d+", (ROOT / "docs" / "explanation" / "streams.md").read_text()))
    assert len(named) > 8 and named <= pinned, named - pinned
