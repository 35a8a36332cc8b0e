"""Client libraries that applications use: what each returns for one stream of a fake, as plain
data.

Every function takes a base URL and header fields and returns an `Outcome`."""

import asyncio
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import threading

import anthropic
import cohere
import cohere.core.api_error
import groq
import httpx
import httpx2
import langchain_openai
import mcp
import mistralai.client
import ollama
import openai
import together
from google import genai
from mcp.client.streamable_http import streamable_http_client

from .dialects import MESSAGES
from .keylatch import ROOT

NODE = ROOT / "target" / "node"


@dataclasses.dataclass
class Outcome:
    """The result that an application sees."""

    text: str = ""
    finish: str | None = None
    # The class of the error, and its message.
    error: tuple | None = None


def _collect(outcome, steps):
    """Runs `steps`, which yields words and finish reasons; an exception becomes the error of the
    outcome."""
    try:
        for text, finish in steps():
            outcome.text += text or ""
            outcome.finish = finish or outcome.finish
    except Exception as error:  # noqa: BLE001, what a library raises is what is compared
        outcome.error = (type(error).__name__, error_text(error))
    return outcome


def error_text(error):
    """The message of an error, without the header fields that Cohere's text includes."""
    if isinstance(error, cohere.core.api_error.ApiError):
        return f"{error.status_code} {error.body}"
    return str(error)


# All connections are plaintext on loopback, so no client needs to load CA certificates.
def _http(fields):
    return httpx.Client(headers=fields, timeout=20, trust_env=False, verify=False)


def _http2(fields):
    return httpx2.Client(headers=fields, timeout=20, trust_env=False, verify=False)


def openai_chat(base, fields):
    def steps():
        with openai.OpenAI(base_url=f"{base}/v1", api_key="sk-1", max_retries=0, http_client=_http2(fields)) as client:
            for part in client.chat.completions.create(model="demo", messages=MESSAGES, stream=True):
                for choice in part.choices:
                    yield choice.delta.content, choice.finish_reason

    return _collect(Outcome(), steps)


def openai_responses(base, fields):
    def steps():
        with openai.OpenAI(base_url=f"{base}/v1", api_key="sk-1", max_retries=0, http_client=_http2(fields)) as client:
            for part in client.responses.create(model="demo", input="Say some words.", stream=True):
                yield part.delta if part.type == "response.output_text.delta" else "", part.type

    return _collect(Outcome(), steps)


def _openai_like(kind, prefix):
    """A client from the generator of OpenAI's library, with its own error and stream types."""

    def run(base, fields):
        def steps():
            with kind(base_url=base + prefix, api_key="k1", max_retries=0, http_client=_http(fields)) as client:
                for part in client.chat.completions.create(model="demo", messages=MESSAGES, stream=True):
                    for choice in part.choices:
                        yield choice.delta.content, choice.finish_reason

        return _collect(Outcome(), steps)

    return run


def _langchain(base, **options):
    return langchain_openai.ChatOpenAI(model="demo", base_url=f"{base}/v1", api_key="sk-1", max_retries=0, **options)


def langchain_chat(base, fields):
    def steps():
        with _http2(fields) as client:
            for part in _langchain(base, http_client=client).stream("Say some words."):
                yield part.text, part.response_metadata.get("finish_reason")

    return _collect(Outcome(), steps)


def langchain_responses(base, fields):
    def steps():
        with _http2(fields) as client:
            for part in _langchain(base, http_client=client, use_responses_api=True).stream("Say some words."):
                yield part.text, part.response_metadata.get("status")

    return _collect(Outcome(), steps)


def langchain_chunks(base, fields):
    """The number of chunks that LangChain's timer of an asynchronous stream has counted, and the
    text."""

    async def run():
        async with httpx2.AsyncClient(headers=fields, timeout=20, trust_env=False, verify=False) as client:
            parts = [part.text async for part in _langchain(base, http_async_client=client).astream("Say some words.")]
        return len(parts), "".join(parts)

    return asyncio.run(run())


def anthropic_messages(base, fields):
    def steps():
        with anthropic.Anthropic(base_url=base, api_key="sk-1", max_retries=0, http_client=_http2(fields)) as client:
            for part in client.messages.create(model="demo", max_tokens=100, messages=MESSAGES, stream=True):
                delta = getattr(part, "delta", None)
                yield getattr(delta, "text", ""), getattr(delta, "stop_reason", None)

    return _collect(Outcome(), steps)


def _google(base, fields):
    options = genai.types.HttpOptions(base_url=base, headers=fields, client_args={"trust_env": False, "timeout": 20, "verify": False})
    return genai.Client(api_key="k1", http_options=options)


def google_genai(base, fields):
    def steps():
        client = _google(base, fields)
        for part in client.models.generate_content_stream(model="demo", contents="Say some words."):
            for candidate in part.candidates or []:
                yield part.text, candidate.finish_reason and candidate.finish_reason.name

    return _collect(Outcome(), steps)


def cohere_chat(base, fields):
    def steps():
        client = cohere.ClientV2("k1", base_url=base, httpx_client=_http(fields), max_retries=0)
        for part in client.chat_stream(model="demo", messages=MESSAGES):
            if part.type == "content-delta":
                yield part.delta.message.content.text, None
            elif part.type == "message-end":
                yield "", f"{part.delta.finish_reason} {part.delta.error or ''}".strip()

    return _collect(Outcome(), steps)


def mistral_chat(base, fields):
    def steps():
        with mistralai.client.Mistral(api_key="k1", server_url=f"{base}/mistral", client=_http(fields)) as client:
            for part in client.chat.stream(model="demo", messages=MESSAGES):
                for choice in part.data.choices:
                    yield choice.delta.content, choice.finish_reason

    return _collect(Outcome(), steps)


def ollama_chat(base, fields):
    def steps():
        for part in ollama.Client(host=base, headers=fields, trust_env=False, verify=False).chat(model="demo", messages=MESSAGES, stream=True):
            yield part.message.content, part.done_reason

    return _collect(Outcome(), steps)


def mcp_tool(base, fields):
    """Calls a tool that reports progress."""
    progress, outcome = [], Outcome()

    async def note(done, total, message):
        progress.append(message)

    async def call():
        async with (
            httpx2.AsyncClient(headers=fields, timeout=20, trust_env=False, verify=False) as client,
            streamable_http_client(f"{base}/mcp", http_client=client) as (read, write, *_),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            result = await session.call_tool("say", {}, progress_callback=note, read_timeout_seconds=10)
            outcome.finish = result.content[0].text

    try:
        asyncio.run(call())
    except* Exception as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        outcome.error = (type(error).__name__, str(error))
    outcome.text = "".join(progress)
    return outcome


def plain(name, base, fields):
    """The text of an answer without streaming."""
    question = {"model": "demo", "messages": MESSAGES}
    if name in ("openai", "openai-responses"):
        with openai.OpenAI(base_url=f"{base}/v1", api_key="sk-1", max_retries=0, http_client=_http2(fields)) as client:
            if name == "openai":
                return client.chat.completions.create(**question).choices[0].message.content
            return client.responses.create(model="demo", input="Say some words.").output_text
    if name == "anthropic":
        with anthropic.Anthropic(base_url=base, api_key="sk-1", max_retries=0, http_client=_http2(fields)) as client:
            return client.messages.create(**question, max_tokens=100).content[0].text
    if name == "google-genai":
        # The library closes its connections when it is garbage-collected.
        client = _google(base, fields)
        return client.models.generate_content(model="demo", contents="Say some words.").text
    if name == "cohere":
        return cohere.ClientV2("k1", base_url=base, httpx_client=_http(fields), max_retries=0).chat(**question).message.content[0].text
    with mistralai.client.Mistral(api_key="k1", server_url=f"{base}/mistral", client=_http(fields)) as client:
        return client.chat.complete(**question).choices[0].message.content


class Node:
    """A Node process that runs the clients of `tests/node/clients.mjs`: one line of JSON per
    request and per answer."""

    def __init__(self):
        program = shutil.which("node")
        assert program, "the tests need Node 20 or later"
        assert (NODE / "node_modules").is_dir(), "run scripts/test, which installs the clients into target/node"
        script = pathlib.Path(ROOT / "tests" / "node" / "clients.mjs").read_text()
        # Node resolves packages from the working directory if the program is passed as an argument.
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            [program, "--input-type=module", "--eval", script], cwd=NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.lock, self.waiting, self.count = threading.Lock(), {}, 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            answer = json.loads(line)
            waiting = self.waiting.pop(answer.pop("id"))
            waiting["answer"] = answer
            waiting["done"].set()
        for waiting in self.waiting.values():
            waiting["done"].set()

    def run(self, client, base, fields):
        waiting = {"done": threading.Event()}
        with self.lock:
            self.count += 1
            self.waiting[self.count] = waiting
            self.process.stdin.write(json.dumps({"id": self.count, "client": client, "base": base, "fields": fields}) + "\n")
            self.process.stdin.flush()
        assert waiting["done"].wait(30), f"{client} did not answer in time"
        assert "answer" in waiting, "the Node process has ended"
        answer = waiting["answer"]
        return Outcome(answer["text"], answer["finish"], answer["error"] and tuple(answer["error"]))

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


# Python clients, each with its dialect.
PYTHON = {
    "openai": (openai_chat, "openai"),
    "openai-responses": (openai_responses, "responses"),
    "groq": (_openai_like(groq.Groq, ""), "openai"),
    "together": (_openai_like(together.Together, "/v1"), "openai"),
    "langchain": (langchain_chat, "openai"),
    "langchain-responses": (langchain_responses, "responses"),
    "anthropic": (anthropic_messages, "anthropic"),
    "google-genai": (google_genai, "gemini"),
    "cohere": (cohere_chat, "cohere"),
    "mistralai": (mistral_chat, "mistral"),
    "ollama": (ollama_chat, "ollama"),
    "mcp": (mcp_tool, "mcp"),
}
# Node clients, each with its dialect.
JAVASCRIPT = {
    "openai-node": "openai",
    "openai-node-responses": "responses",
    "google-genai-node": "gemini",
    "ai-sdk-google": "gemini",
    "fetch-event-source": "openai",
    "eventsource-parser": "openai",
}
