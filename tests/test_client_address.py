"""The client address: header fields of proxies, trust, and address prefixes."""

import json
import shutil
import socket
import subprocess

import pytest
from support import raw
from support.keylatch import free_port, wait_for
from support.stores import FREE, SECRET

PROXY = "127.0.0.1"
TRUSTED = "{networks: [127.0.0.1, 10.1.0.0/16]}"
SOURCES = "[client_ip: {sources: [x-forwarded-for, forwarded]%s}, request_id: {}]"
CONFIG = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
trusted_proxies: {trusted}
storage: memory
secrets: {secrets}
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
filters: {filters}
routes:
  - name: api
    upstream: model
    filters:
{route_filters}
"""


def begin(start, upstream, more="", route_filters=FREE, **values):
    return start(upstream, config=CONFIG, trusted=TRUSTED, filters=SOURCES % more, route_filters=route_filters, secrets=SECRET, **values)


def line_of(keylatch, answer):
    wanted = answer.header("x-request-id")
    return wait_for(lambda: next((line for line in keylatch.access_log() if line.get("request_id") == wanted), None), "the access line")


def upstream_got(answer, name):
    return [value for key, value in json.loads(answer.body)["headers"] if key == name]


@pytest.fixture
def keylatch(start, echo_upstream):
    return begin(start, echo_upstream, route_filters="      []")


@pytest.mark.parametrize(("field", "value", "client"), [
    ("X-Forwarded-For", "203.0.113.5,", "203.0.113.5"),
    ("X-Forwarded-For", "203.0.113.5, , 10.1.0.1", "203.0.113.5"),
    ("X-Forwarded-For", ",,203.0.113.5", "203.0.113.5"),
    ("Forwarded", 'for="203.0.113.5:_ob"', "203.0.113.5"),
    ("Forwarded", "for=203.0.113.5;proto=https;", "203.0.113.5"),
    ("Forwarded", 'for=203.0.113.5;by="a,b", for=10.1.0.1', "203.0.113.5"),
    ("Forwarded", 'for="[2001:db8::5]:443" , ', "2001:db8::5"),
    ("Forwarded", 'for="evil, for=203.0.113.5', "203.0.113.5"),
    ("Forwarded", "for=_hidden", PROXY),
    ("X-Forwarded-For", "\xe9, 203.0.113.5", "203.0.113.5"),
    ("X-Forwarded-For", "\xe9", PROXY),
])
def test_address_lists_in_the_forms_of_the_standards(keylatch, field, value, client):
    answer = raw.request(keylatch.port, headers=[(field, value)])
    assert answer.status == 200 and line_of(keylatch, answer)["client"] == client
    assert upstream_got(answer, "x-forwarded-for") == [client]


@pytest.mark.parametrize(("fields", "scheme"), [
    ([("X-Forwarded-Proto", "https")], "https"),
    ([("X-Forwarded-Proto", "HTTPS")], "https"),
    ([("X-Forwarded-Proto", "http,https")], "https"),
    # The client wrote the first entry itself; the only proxy saw plain HTTP.
    ([("X-Forwarded-Proto", "https, http"), ("X-Forwarded-For", "192.0.2.1, 203.0.113.5")], "http"),
    # Two trusted hops: the outer one saw the client.
    ([("X-Forwarded-Proto", "https,http"), ("X-Forwarded-For", "203.0.113.5, 10.1.0.1")], "https"),
    ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-For", "203.0.113.5, 10.1.0.1")], "https"),
    ([("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "203.0.113.5, 10.1.0.1")], "https"),
    ([("Forwarded", "for=203.0.113.5;proto=https")], "https"),
    ([("Forwarded", 'for=203.0.113.5;proto="HTTPS", for=10.1.0.1;proto=http')], "https"),
    ([("X-Forwarded-Proto", "wss")], "https"),
    ([("X-Forwarded-Proto", "gopher"), ("Forwarded", "for=203.0.113.5;proto=https")], "http"),
    ([], "http"),
])
def test_the_scheme_is_that_of_the_hop_that_saw_the_client(keylatch, fields, scheme):
    assert upstream_got(raw.request(keylatch.port, headers=fields), "x-forwarded-proto") == [scheme]
    # Ignored from an untrusted peer.
    assert upstream_got(raw.request(keylatch.port, headers=fields, source="127.0.0.9"), "x-forwarded-proto") == ["http"]


def test_an_invalid_list_does_not_fall_back_to_another_field(keylatch):
    """The proxy appends to `X-Forwarded-For`; the client itself wrote `Forwarded`."""
    for list_of_proxy in ("203.0.113.66, \xe9", "unknown"):
        answer = raw.request(keylatch.port, headers=[("X-Forwarded-For", list_of_proxy), ("Forwarded", "for=203.0.113.9;proto=https")])
        line = line_of(keylatch, answer)
        assert (line["client"], line["client_source"]) == (PROXY, "unnamed")


def test_behind_cloudflare_other_address_fields_are_ignored(start, echo_upstream):
    keylatch = start(
        echo_upstream, config=CONFIG, secrets=SECRET, route_filters="      []", trusted="{networks: [cloudflare]}",
        filters="[client_ip: {}, request_id: {}]",
    )
    for sent in ("\u00e9, 203.0.113.7", "unknown", '"'):
        said = keylatch.command("explain", "--peer", "104.16.0.9", "-H", "CF-Connecting-IP: 203.0.113.7", "-H", f"X-Forwarded-For: {sent}", "--path", "/v1/x")
        assert "client    203.0.113.7, from cf-connecting-ip" in said.stdout, said.stdout + said.stderr


def test_a_trusted_proxy_without_a_client_address_is_reported(start, echo_upstream):
    keylatch = begin(start, echo_upstream)
    for _ in range(3):
        answer = raw.request(keylatch.port, headers=[raw.key("sk-1")])
        assert answer.status == 200
    assert line_of(keylatch, answer)["client_source"] == "unnamed"
    assert keylatch.metrics()['keylatch_client_unnamed_total{outcome="peer"}'] == 3
    assert keylatch.stderr.read_text().count("names no client") == 1
    # An untrusted peer is the client itself.
    assert line_of(keylatch, raw.request(keylatch.port, headers=[raw.key("sk-2")], source="127.0.0.9"))["client_source"] == "peer"
    explained = keylatch.command("explain", "--peer", PROXY)
    assert "names no client" in explained.stdout, explained.stderr

    refuses = begin(start, echo_upstream, more=", on_missing: refuse")
    answer = raw.request(refuses.port, headers=[raw.key("sk-1")])
    assert answer.status == 400 and json.loads(answer.body)["error"]["code"] == "client_address_missing"
    assert refuses.metrics()['keylatch_client_unnamed_total{outcome="refused"}'] == 1
    assert raw.request(refuses.port, headers=[raw.key("sk-1"), ("X-Forwarded-For", "203.0.113.5")]).status == 200
    assert raw.request(refuses.port, headers=[raw.key("sk-2")], source="127.0.0.9").status == 200


def test_workers_of_two_zones_are_two_clients(start, echo_upstream):
    """All Cloudflare Workers share one address and name their zone in a field."""
    keylatch = start(
        echo_upstream, config=CONFIG, secrets=SECRET, route_filters=FREE,
        trusted="{networks: [127.0.0.1, cloudflare], behind_cloudflare: [127.0.0.1]}", filters="[client_ip: {}, request_id: {}]",
    )
    worker = ("CF-Connecting-IP", "2a06:98c0:3600::103")

    def send_request(key, *fields):
        return raw.request(keylatch.port, headers=[raw.key(key), *fields])

    own = send_request("sk-1", worker, ("CF-Worker", "own.example"))
    line = line_of(keylatch, own)
    assert own.status == 200 and line["client_source"] == "cf-worker" and line["client"].startswith("2a06:98c7:")
    assert send_request("sk-1", worker, ("CF-Worker", "OWN.example")).status == 200
    for other in ([("CF-Worker", "other.example")], [], [("CF-Worker", "own.example"), ("CF-Worker", "other.example")]):
        assert send_request("sk-1", worker, *other).status == 403, other
    # Other clients can write the field too, so it does not count from them.
    assert send_request("sk-2", ("CF-Connecting-IP", "203.0.113.5"), ("CF-Worker", "own.example")).status == 200
    assert send_request("sk-2", ("CF-Connecting-IP", "203.0.113.6"), ("CF-Worker", "own.example")).status == 403
    assert send_request("sk-1", ("CF-Connecting-IP", "203.0.113.5"), ("CF-Worker", "own.example")).status == 403


@pytest.mark.parametrize("limit", [
    "rate_limit: {per: client, limit: 2/h%s}", "flood_guard: {limit: 2/60s%s}",
])
def test_address_prefixes_of_limits(start, echo_upstream, limit):
    def counted(more, first, second):
        keylatch = begin(start, echo_upstream, route_filters=f"      - {limit % more}")
        return [raw.request(keylatch.port, headers=[("X-Forwarded-For", address)]).status for address in (first, first, second)]

    assert counted("", "203.0.113.1", "203.0.113.2") == [200, 200, 200]
    assert counted(", ipv4_prefix: 24", "203.0.113.1", "203.0.113.2") == [200, 200, 429]
    assert counted(", ipv6_prefix: 48", "2001:db8:1:1::1", "2001:db8:1:2::1") == [200, 200, 429]
    assert counted("", "2001:db8:1:1::1", "2001:db8:1:2::1") == [200, 200, 200]
    assert counted(", ipv6_prefix: 128", "2001:db8:1:1::1", "2001:db8:1:1::2") == [200, 200, 200]


# Header fields as real proxies write them.

NGINX = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{to}; proxy_bind 127.0.0.2;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto https; }} }} }}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend in
  bind 127.0.0.1:{port}
  option forwardfor
  http-request add-header X-Forwarded-Proto http
  default_backend out
backend out
  server keylatch 127.0.0.1:{to} source 127.0.0.3
"""


@pytest.mark.skipif(not shutil.which("haproxy") or not shutil.which("nginx"), reason="nginx and haproxy are not installed")
def test_two_real_proxies_in_a_row(start, echo_upstream, tmp_path):
    keylatch = start(
        echo_upstream, config=CONFIG, secrets=SECRET, route_filters="      []",
        trusted="{networks: [127.0.0.2, 127.0.0.3]}", filters="[client_ip: {}, request_id: {}]",
    )
    inner, outer = free_port(), free_port()
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(port=inner, to=keylatch.port))
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, port=outer, to=inner))
    running = [
        subprocess.Popen(["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"]),
        subprocess.Popen(["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf"]),
    ]
    try:
        for port in (inner, outer):
            wait_for(lambda port=port: not socket.socket().connect_ex(("127.0.0.1", port)), "the proxy listens")
        answer = raw.request(outer, headers=[("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "http")], source="127.0.0.30")
        assert (upstream_got(answer, "x-forwarded-for"), upstream_got(answer, "x-forwarded-proto")) == (["127.0.0.30"], ["https"])
    finally:
        for process in running:
            process.terminate()
            process.wait()
