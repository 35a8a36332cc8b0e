"""Shipped files for neighbouring programs (Caddy, nginx, Prometheus, fail2ban, Compose …): each
program runs or reads its file."""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

import httpx
import pytest
import yaml
from websockets.sync.client import connect as websocket
from websockets.sync.server import serve

from support.admin import ENV, Admin, signed_in
from support.authority import Authority
from support.keylatch import ROOT, free_port, wait_for
from support.raw import connect, read_head
from support.upstreams import STREAM_HEAD, Scripted, chunk

CONFIG = ROOT / "config"
# A loopback network that stands for Cloudflare's ranges.
CLOUDFLARE = "127.0.3.0/24"


@pytest.fixture
def running():
    """Starts programs, and stops them at the end of the test."""
    started = []

    def begin(*command, folder, port, **env):
        log = open(folder / "log", "wb")
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env={**os.environ, **home, **env}, stdout=log, stderr=log)
        started.append(process)

        def listens():
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True

        wait_for(listens, "the program listens", 20)
        return process

    yield begin
    for process in started:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


def caddy(running, folder, keylatch, authority):
    """Caddy with the shipped file, behind Cloudflare with Authenticated Origin Pulls."""
    port, issued = free_port(), authority.issue("origin", "api.test")
    text = (CONFIG / "caddy" / "Caddyfile").read_text()
    # Only the port is changed, because 443 may be in use on this machine.
    (folder / "Caddyfile").write_text(text.replace("{\n\tservers {", f"{{\n\tadmin off\n\thttps_port {port}\n\thttp_port {free_port()}\n\tservers {{", 1))
    env = {
        "KEYLATCH_SITE": f"https://api.test:{port}", "KEYLATCH_UPSTREAM": f"127.0.0.1:{keylatch.port}", "KEYLATCH_TLS": "tls_origin_pulls",
        "KEYLATCH_TLS_CERT": str(issued.cert), "KEYLATCH_TLS_KEY": str(issued.key), "KEYLATCH_TLS_CLIENTS": str(authority.ca),
    }
    running("caddy", "run", "--config", folder / "Caddyfile", folder=folder, port=port, **env)
    return port


def nginx(running, folder, keylatch, authority):
    """nginx with the shipped file, with Authenticated Origin Pulls."""
    port, issued = free_port(), authority.issue("origin", "api.test")
    text = (CONFIG / "nginx" / "keylatch.conf").read_text()
    for was, becomes in [
        ("127.0.0.1:8080", f"127.0.0.1:{keylatch.port}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("    listen [::]:443 ssl http2;\n", ""),
        ("/etc/nginx/tls/api.pem", str(issued.cert)),
        ("/etc/nginx/tls/api.key", str(issued.key)),
        ("# ssl_client_certificate /etc/nginx/tls/origin-pull-ca.pem", f"ssl_client_certificate {authority.ca}"),
        ("# ssl_verify_client      on", "ssl_verify_client      on"),
    ]:
        assert was in text, was
        text = text.replace(was, becomes)
    (folder / "keylatch.conf").write_text(text)
    temp = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{ worker_connections 1024; }}\nhttp {{ access_log off;\n{temp}include {folder}/keylatch.conf;\n}}\n"
    )
    running("nginx", "-p", folder, "-c", folder / "nginx.conf", folder=folder, port=port)
    return port


PROXIES = pytest.mark.parametrize("proxy", [caddy, nginx])


@pytest.fixture
def behind(start, running, tmp_path, authority):
    """Starts a Keylatch behind a proxy; returns the port, and a TLS context for connections from
    Cloudflare."""

    def ready(proxy, upstream, **values):
        folder = tmp_path / "proxy"
        folder.mkdir()
        ranges = tmp_path / "ranges.txt"
        ranges.write_text(f"{CLOUDFLARE}\n")
        trusted = f"{{networks: [127.0.0.1], behind_cloudflare: [127.0.0.1], cloudflare_file: {ranges}}}"
        keylatch = start(upstream, trusted=trusted, **values)
        context = ssl.create_default_context(cafile=authority.ca)
        pull = authority.issue("pull", "origin-pull.test", client=True)
        context.load_cert_chain(pull.cert, pull.key)
        return keylatch, proxy(running, folder, keylatch, authority), context

    return ready


def tls_connect(port, context, source="127.0.3.9", alpn=None):
    if alpn:
        context.set_alpn_protocols(alpn)
    return context.wrap_socket(connect(port, source), server_hostname="api.test")


def send_request(port, context, source, *fields):
    with tls_connect(port, context, source) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        connection.sendall(f"GET /v1/x HTTP/1.1\r\nHost: api.test:{port}\r\n{lines}Connection: close\r\n\r\n".encode())
        file = connection.makefile("rb")
        status, headers = read_head(file)
        text = file.read()
        return status, text[text.find(b"{") : text.rfind(b"}") + 1]


@PROXIES
def test_the_client_address_behind_proxies(behind, echo_upstream, proxy, authority):
    keylatch, port, context = behind(proxy, echo_upstream)

    def seen(source, *fields):
        status, body = send_request(port, context, source, *fields)
        assert status == 200
        headers = dict(json.loads(body)["headers"])
        return headers["x-forwarded-for"], headers["x-forwarded-proto"]

    # Through Cloudflare, which names the client; and directly, from clients that forge header
    # fields.
    assert seen("127.0.3.9", ("CF-Connecting-IP", "203.0.113.7")) == ("203.0.113.7", "https")
    assert seen("127.0.3.9", ("CF-Connecting-IP", "203.0.113.7"), ("X-Forwarded-For", "1.1.1.1, 127.0.3.7")) == ("203.0.113.7", "https")
    for fields in [
        [("CF-Connecting-IP", "203.0.113.7")],
        [("CF-Connecting-IP", "203.0.113.7"), ("X-Forwarded-For", "127.0.3.9")],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Real-IP", "203.0.113.7"), ("Forwarded", "for=203.0.113.7")],
    ]:
        assert seen("127.0.0.66", *fields) == ("127.0.0.66", "https"), fields
    # Connections without Cloudflare's client certificate are refused.
    stranger = ssl.create_default_context(cafile=authority.ca)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        status, _ = send_request(port, stranger, "127.0.3.9")
        assert status == 200
    assert not keylatch.metrics().get("keylatch_upstream_errors_total")


@PROXIES
def test_streams_are_not_buffered_and_stay_open(behind, proxy):
    """A two-hour stream at scale, one second for 24 minutes: each piece arrives before the next one
    is sent."""
    rounds, seen, late = 300, threading.Semaphore(0), []

    def answer(request, send):
        send(STREAM_HEAD + chunk(b"data: begin\n\n"))
        # A long silence first, with comment frames only.
        time.sleep(3)
        for n in range(rounds):
            send(chunk(b"data: %d\n\n" % n))
            if not seen.acquire(timeout=5):
                late.append(n)
                break
        send(chunk(b"data: [DONE]\n\n") + chunk(b""))
        return True

    with Scripted(answer) as upstream:
        _, port, context = behind(proxy, upstream, route_filters="      - sse_keepalive: {interval: 500ms}")
        with tls_connect(port, context) as connection:
            connection.settimeout(10)
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: api.test:{port}\r\nAccept-Encoding: br, gzip\r\nContent-Length: 15\r\n\r\n".encode() + b'{"stream":true}')
            file = connection.makefile("rb")
            status, headers = read_head(file)
            assert status == 200 and "content-encoding" not in dict(headers)
            text = b""
            while b"data: [DONE]" not in text:
                line = file.readline()
                assert line, "the stream is truncated"
                text += line
                if line.startswith(b"data: ") and line[6:7].isdigit():
                    seen.release()
        assert not late and text.count(b": keep-alive") >= 4
        assert text.index(b": keep-alive") < text.index(b"data: 0\n")


@PROXIES
def test_http2_and_websockets(behind, proxy):
    def answer(connection):
        for message in connection:
            connection.send(message)

    server = serve(answer, "127.0.0.1", 0, ping_interval=None)
    server.port = server.socket.getsockname()[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _, port, context = behind(proxy, server)
    with websocket(f"wss://api.test:{port}/v1/realtime", address=("127.0.0.1", port), ssl=context, ping_interval=None) as connection:
        for message in ("hello", b"\0" * 100_000):
            connection.send(message)
            assert connection.recv(5) == message
    server.shutdown()


@PROXIES
def test_concurrent_requests_over_http2(behind, echo_upstream, proxy):
    _, port, context = behind(proxy, echo_upstream)

    async def go():
        async with httpx.AsyncClient(http2=True, verify=context, timeout=20) as client:
            url, fields = f"https://127.0.0.1:{port}/v1/x", {"Host": f"api.test:{port}"}
            sni = {"sni_hostname": "api.test"}
            answers = await asyncio.gather(*(client.post(url, headers=fields, content=b"x" * 5000, extensions=sni) for _ in range(60)))
        assert {(each.http_version, each.status_code, len(each.json()["body"])) for each in answers} == {("HTTP/2", 200, 5000)}

    asyncio.run(go())


def metrics_named(text):
    return set(re.findall(r"\bkeylatch_[a-z_]+", text))


def test_prometheus_rules_and_dashboard_use_existing_metrics(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters="      - key_binding: {}\n      - rate_limit: {per: key, limit: 9/s}\n      - concurrency_limit: {per: key, most: 9}", storage="{sqlite: {path: k.db}}")
    with urllib.request.urlopen(f"http://127.0.0.1:{keylatch.admin}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    there = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "telemetry").glob("*.rs"))
    # Redis metrics exist only with Redis configured.
    there |= metrics_named("\n".join(path.read_text() for path in (ROOT / "src" / "redis").glob("*.rs")))
    # Those of usage appear with the first request that the filter usage reads.
    there |= metrics_named((ROOT / "src" / "usage" / "metrics.rs").read_text())
    # A labelled counter appears with its first use, so its name is read from the source.
    there |= {f"keylatch_{name}" for name in re.findall(r'&registry,\s*"([a-z_]+)"', source)}
    dashboard = json.loads((CONFIG / "grafana" / "keylatch.json").read_text())
    rules = yaml.safe_load((CONFIG / "prometheus" / "keylatch.rules.yml").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) > 30
    used = metrics_named("\n".join(expressions))
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert base <= there, base - there
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(places) == len(set(places)) and len({panel["id"] for panel in dashboard["panels"]}) == len(places)
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning") and set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, from Debian's prometheus")
def test_promtool_accepts_rules_and_dashboard(tmp_path):
    for name in ("prometheus.yml", "compose.yml"):
        checked = subprocess.run(["promtool", "check", "config", str(CONFIG / "prometheus" / name)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    dashboard = json.loads((CONFIG / "grafana" / "keylatch.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = [{"record": f"r:{n}", "expr": expr.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")} for n, expr in enumerate(expressions)]
    written = tmp_path / "rules.yml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", str(written)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # The alerts that fire on faults.
    tests = {
        "rule_files": [str(CONFIG / "prometheus" / "keylatch.rules.yml")],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [
                {"series": 'keylatch_store_away{instance="a", job="keylatch"}', "values": "0 0 1x5"},
                {"series": 'keylatch_certificate_expiry_timestamp_seconds{instance="a", listener="l", name="api.test"}', "values": "864000x10"},
                {"series": 'keylatch_requests_total{instance="a", route="api", status="200"}', "values": "0+100x20"},
                {"series": 'keylatch_requests_total{instance="a", route="api", status="502"}', "values": "0+100x20"},
            ],
            "alert_rule_test": [
                {"eval_time": "1m", "alertname": "KeylatchStoreAway", "exp_alerts": []},
                {"eval_time": "5m", "alertname": "KeylatchStoreAway", "exp_alerts": [{
                    "exp_labels": {"severity": "critical", "instance": "a", "job": "keylatch"},
                    "exp_annotations": {"summary": "a cannot reach its store", "description": "Known keys are judged by cached bindings. Others are refused or admitted, depending on on_store_failure."},
                }]},
            ],
            "promql_expr_test": [
                {"expr": 'count(ALERTS{alertname="KeylatchServerErrors", alertstate="firing"})', "eval_time": "12m", "exp_samples": [{"value": 1, "labels": "{}"}]},
                {"expr": 'count(ALERTS{alertname="KeylatchCertificateEnds"})', "eval_time": "2m", "exp_samples": [{"value": 1, "labels": "{}"}]},
            ],
        }],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    tested = subprocess.run(["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.skipif(not shutil.which("fail2ban-regex"), reason="fail2ban is not installed")
def test_fail2ban_finds_refused_clients(start, echo_upstream, tmp_path):
    keylatch = start(echo_upstream, route_filters="      - key_binding: {}")
    key = ("Authorization", "Bearer sk-1")
    from support.raw import request

    assert request(keylatch.port, headers=[key]).status == 200
    for _ in range(3):
        assert request(keylatch.port, headers=[key], source="127.0.0.9").status == 403
    # A client that forges an address in its request causes a ban of its own address only.
    forged = '/v1/x","client":"203.0.113.7","status":403,"answered_by":"key_binding"'
    with connect(keylatch.port, "127.0.0.9") as connection:
        connection.sendall(f"GET /v1/x?{forged} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\nX-Request-Id: {forged}\r\n\r\n".encode())
        connection.recv(1000)
    wait_for(lambda: len(keylatch.access_log()) >= 4, "lines")
    for zone in ("UTC", "America/New_York", "Asia/Shanghai"):
        found = subprocess.run(
            ["fail2ban-regex", "-o", "row", str(keylatch.stdout), str(CONFIG / "fail2ban" / "keylatch-filter.conf")],
            capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path), "TZ": zone},
        )
        rows = re.findall(r"^\['([0-9.]+)',\s*([0-9.]+),", found.stdout, re.M)
        assert {host for host, _ in rows} == {"127.0.0.9"} and len(rows) >= 3, found.stdout + found.stderr
        # The log is in UTC, independent of the time zone of the machine.
        assert all(abs(float(at) - time.time()) < 60 for _, at in rows), (zone, found.stdout)


@pytest.mark.skipif(not shutil.which("fail2ban-regex"), reason="fail2ban is not installed")
@pytest.mark.parametrize("form", ["text", "json"])
def test_fail2ban_finds_failed_sign_ins(start, echo_upstream, tmp_path, form):
    keylatch = start(echo_upstream, storage="{sqlite: {path: t.db}}", env=ENV, more=f"log: {{format: {form}}}")
    signed_in(keylatch)
    other = Admin(keylatch, source="127.0.0.9")
    for name in ("admin", "absent", "x client=203.0.113.7 ", '","client":"203.0.113.7'):
        other.sign_in(name, "a-wrong-horse-battery", status=401)
    for zone in ("UTC", "Asia/Shanghai"):
        found = subprocess.run(
            ["fail2ban-regex", "-o", "row", str(keylatch.stderr), str(CONFIG / "fail2ban" / "keylatch-admin-filter.conf")],
            capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path), "TZ": zone},
        )
        rows = re.findall(r"^\['([0-9.]+)',\s*([0-9.]+),", found.stdout, re.M)
        # The process creates the first account in the background of its start, so a sign-in may
        # fail at first.
        hosts = [host for host, _ in rows if host != "127.0.0.1"]
        assert hosts == ["127.0.0.9"] * 4, found.stdout + found.stderr
        assert all(abs(float(at) - time.time()) < 60 for _, at in rows), (zone, found.stdout)


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
def test_logrotate_truncates_the_log_in_place(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    folder.chmod(0o755)
    log, conf = folder / "access.log", tmp_path / "conf"
    conf.write_text((CONFIG / "logrotate" / "keylatch").read_text().replace("/var/log/keylatch", str(folder)))
    conf.chmod(0o644)
    with open(log, "ab", buffering=0) as held:
        held.write(b"one\n")
        rotated = subprocess.run(["logrotate", "-f", "-s", str(tmp_path / "state"), str(conf)], capture_output=True, text=True, check=False)
        assert rotated.returncode == 0, rotated.stderr
        held.write(b"two\n")
    assert log.read_bytes() == b"two\n"
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"one\n", b"two\n"]


def test_the_tunnel_ends_with_a_catch_all_rule():
    tunnel = yaml.safe_load((CONFIG / "cloudflared" / "config.yml").read_text())
    *named, last = tunnel["ingress"]
    assert last == {"service": "http_status:404"} and all(each["hostname"] and each["service"].startswith("http://127.0.0.1") for each in named)


class Compose(yaml.SafeLoader):
    """A loader that knows the tag `!override` of Compose."""


Compose.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def services(*names):
    found = {}
    for name in names:
        for service, what in yaml.load((ROOT / name).read_text(), Compose)["services"].items():  # noqa: S506 — a safe loader
            found[service] = {**found.get(service, {}), **what}
    return found


def test_compose_hardening_and_published_ports():
    files = {name: yaml.load((ROOT / name).read_text(), Compose) for name in ("compose.yaml", "compose.production.yaml")}  # noqa: S506
    for name, service in services("compose.yaml", "compose.production.yaml").items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service, name
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= set(limits), name
        assert service["restart"] == "unless-stopped" and "network_mode" not in service, name
        assert "docker.sock" not in json.dumps(service)
    for name, service in services("compose.yaml").items():
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${KEYLATCH_BIND:-127.0.0.1}:")), (name, port)
    base = files["compose.yaml"]
    assert base["networks"]["stores"]["internal"] and base["networks"]["new-api"]["external"]
    for name, health in [("keylatch", "postgres"), ("keylatch", "redis"), ("caddy", "keylatch")]:
        assert base["services"][name]["depends_on"][health] == {"condition": "service_healthy"}
    for name in ("postgres", "redis"):
        assert set(base["services"][name]["networks"]) == {"stores"} and base["services"][name]["healthcheck"]
    # Only Caddy's address is trusted.
    assert base["services"]["caddy"]["networks"]["edge"]["ipv4_address"] == base["services"]["keylatch"]["environment"]["KEYLATCH_TRUSTED"]
    # No other service has a fixed address, and the console shares a network with Prometheus only.
    keylatch = base["services"]["keylatch"]
    fixed = {("edge", base["services"]["caddy"]["networks"]["edge"]["ipv4_address"])}
    for network, listener in [("edge", "KEYLATCH_LISTEN"), ("admin", "KEYLATCH_ADMIN")]:
        address = keylatch["networks"][network]["ipv4_address"]
        assert keylatch["environment"][listener].split(":")[0] == address
        fixed.add((network, address))
    assert len(fixed) == 3
    for network, address in fixed:
        (ranges,) = base["networks"][network]["ipam"]["config"]
        at, gateway = ipaddress.ip_address(address), ipaddress.ip_network(ranges["subnet"])[1]
        assert at in ipaddress.ip_network(ranges["subnet"]) and at not in ipaddress.ip_network(ranges["ip_range"]) and at != gateway
    everyone = services("compose.yaml", "compose.production.yaml")
    assert {name for name, service in everyone.items() if "admin" in service["networks"]} == {"keylatch", "prometheus"}
    assert base["networks"]["admin"]["internal"] and not keylatch.get("ports")
    assert all(re.search(r":v?\d+\.\d+\.\d+|:\d+\.\d+-|keylatch", service["image"]) for service in everyone.values()), "images are pinned to a version"
    # Production publishes on all addresses unless the file of variables sets one; the shipped file
    # sets none.
    assert "KEYLATCH_BIND" not in dict(re.findall(r"^([A-Z_]+)=(.*)$", (CONFIG / "compose.env").read_text(), re.M))
    assert all(port.startswith("${KEYLATCH_BIND:-0.0.0.0}:") for port in files["compose.production.yaml"]["services"]["caddy"]["ports"])
    # Variables and certificate paths of the Caddyfile.
    caddy = base["services"]["caddy"]
    assert set(re.findall(r"\{\$(KEYLATCH_[A-Z_]+)", (CONFIG / "caddy" / "Caddyfile").read_text())) == set(caddy["environment"])
    assert all(caddy["environment"][f"KEYLATCH_TLS_{name}"].startswith("/etc/caddy/tls/") for name in ("CERT", "KEY", "CLIENTS"))
    # The file of variables has every variable without a default, and all mounted files exist.
    needed = set(re.findall(r"\$\{([A-Z_]+):\?", "".join((ROOT / name).read_text() for name in files)))
    given = set(re.findall(r"^([A-Z_]+)=", (CONFIG / "compose.env").read_text(), re.M))
    assert needed <= given, needed - given
    for name, service in services("compose.yaml", "compose.production.yaml").items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), (name, source)


def test_the_redis_password_of_compose_is_in_no_command_line(tmp_path):
    redis = services("compose.yaml")["redis"]
    script = redis["command"][2].replace("$$", "$").replace("redis-server -", f"redis-server - --port {(port := free_port())} --bind 127.0.0.1", 1)
    assert redis["command"][:2] == ["sh", "-c"] and redis["environment"] == {"REDISCLI_AUTH": "${REDIS_PASSWORD:?in .env}"}
    secret = "0123456789abcdef0123456789abcdef"
    process = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, env={**os.environ, "REDISCLI_AUTH": secret}, stdout=subprocess.DEVNULL)
    redis_cli = lambda **env: subprocess.run(["redis-cli", "-p", str(port), "config", "get", "maxmemory-policy"], env={**os.environ, **env}, capture_output=True, text=True)  # noqa: E731
    try:
        wait_for(lambda: "volatile-ttl" in redis_cli(REDISCLI_AUTH=secret).stdout, "Redis accepts the password")
        assert "NOAUTH" in redis_cli().stdout
        assert secret not in open(f"/proc/{process.pid}/cmdline").read()
    finally:
        process.kill()
        process.wait()


def test_the_container_is_configured_by_its_environment(start, echo_upstream, tmp_path):
    """The configuration inside the image, with the variables of Compose."""
    for name in ("container.yaml", "container-postgres.yaml"):
        used = set(re.findall(r"\$\{(KEYLATCH_[A-Z_]+)", (CONFIG / name).read_text()))
        told = set(re.findall(r"^#   (KEYLATCH_[A-Z_]+)", (CONFIG / "container.yaml").read_text() + (CONFIG / name).read_text(), re.M)) - {"KEYLATCH_LOG"}
        assert used <= told, used - told
    keylatch = start(echo_upstream)
    text = (CONFIG / "container.yaml").read_text().replace("/var/lib/keylatch", str(keylatch.folder))
    keylatch.stop()
    keylatch.path.write_text(text)
    keylatch.env |= {
        "KEYLATCH_LISTEN": f"127.0.0.1:{keylatch.port}", "KEYLATCH_ADMIN": f"127.0.0.1:{keylatch.admin}", "KEYLATCH_UPSTREAM": f"127.0.0.1:{echo_upstream.port}",
        "KEYLATCH_TRUSTED": "127.0.0.5", "KEYLATCH_CLIENT_IP": "x-real-ip", "KEYLATCH_LIMIT": "2/min",
    }
    keylatch.start()
    from support.raw import request

    fields = [("Authorization", "Bearer sk-1"), ("X-Real-IP", "203.0.113.7")]
    answers = [request(keylatch.port, headers=fields, source="127.0.0.5") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert dict(json.loads(answers[0].body)["headers"])["x-forwarded-for"] == "203.0.113.7"
    assert (keylatch.folder / "keylatch.db").exists()
    # Behind a proxy, with and without Cloudflare in front.
    keylatch.stop()
    keylatch.env |= {"KEYLATCH_BEHIND_CLOUDFLARE": "127.0.0.5", "KEYLATCH_LIMIT": "100/min", "KEYLATCH_CLIENT_IP": "x-forwarded-for"}
    keylatch.start()
    for hop, client in [("104.16.0.9", "203.0.113.7"), ("198.51.100.9", "198.51.100.9")]:
        fields = [("Authorization", f"Bearer sk-{hop}"), ("CF-Connecting-IP", "203.0.113.7"), ("X-Forwarded-For", hop)]
        answer = request(keylatch.port, headers=fields, source="127.0.0.5")
        assert dict(json.loads(answer.body)["headers"])["x-forwarded-for"] == client

