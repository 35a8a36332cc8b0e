"""Configuration and requests that tests of stores share."""

from . import raw
from .keylatch import wait_for

SECRET = "{key_hmac: 0123456789abcdef0123456789abcdef}"
FREE = "      - key_binding: {new_keys_per_client: 1000000/s}"


def storage(server, more=""):
    return f'{{postgres: {{url: "{server.url}", flush_every: 100ms{more}}}}}'


def send_request(replica, key, source="127.0.0.1", headers=(), **more):
    return raw.request(replica.port, headers=[raw.key(key), *headers], source=source, **more)


def key_id(replica, key):
    """The id of the key of the last use on this replica."""
    wait_for(lambda: replica.access_log(), "an access line")
    return next(line["key"] for line in reversed(replica.access_log()) if "key" in line)
