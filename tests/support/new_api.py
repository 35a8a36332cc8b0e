"""A model of New API's `TokenAuth` (November 2026): which part of a request it takes the key
from."""

import urllib.parse


def stripped(value):
    """The value without a leading `Bearer `."""
    return value[7:].strip() if value[:7] in ("Bearer ", "bearer ") else value


def key_taken(target, headers):
    """The stored key that the request uses, or None if it is refused. `headers` are ordered pairs
    with lower-case names. MySQL compares case-insensitively, so the key is in lower case."""
    path, _, query = target.partition("?")
    path = urllib.parse.unquote(path)

    def first(name):
        return next((value for key, value in headers if key == name), "")

    authorization = first("authorization")
    protocols = ",".join(value for key, value in headers if key == "sec-websocket-protocol").split(",")
    prefix = "openai-insecure-api-key."
    browser = next((protocol.strip()[len(prefix):] for protocol in protocols if protocol.strip().startswith(prefix)), "")
    if browser:
        authorization = f"Bearer {browser}"
    if ("/v1/messages" in path or "/v1/models" in path) and first("x-api-key"):
        authorization = "Bearer " + first("x-api-key")
    if path == "/v1/models" or path.startswith(("/v1beta/models", "/v1beta/openai/models", "/v1/models/")):
        in_query = dict(reversed(urllib.parse.parse_qsl(query))).get("key", "")
        for key in (in_query, first("x-goog-api-key")):
            if key:
                authorization = f"Bearer {key}"
    key = stripped(authorization)
    if key in ("", "midjourney-proxy"):
        key = stripped(first("mj-api-secret"))
    return key.removeprefix("sk-").split("-")[0].lower() or None
