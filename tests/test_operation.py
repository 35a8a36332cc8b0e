"""Commands for operation: doctor, health, and migration from another gateway."""

import concurrent.futures
import csv
import hashlib
import hmac
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile

import httpx
import pytest
import yaml

from support.authority import DAY, Authority, now
from support.keylatch import BINARY, ROOT
from support.raw import request
from support.redis import Redis
from support.stores import FREE
from support.upstreams import Scripted, plain

SQLITE = "{sqlite: {path: data/keylatch.db, flush_every: 100ms}}"


def findings(keylatch):
    done = keylatch.command("doctor", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (1 if any(each["level"] != "note" for each in found) else 0), done.stderr
    return found


def messages(found, level=None):
    return "\n".join(f"{each['place']}: {each['what']}" for each in found if level in (None, each["level"]))


BAD = """
listeners:
  - address: 0.0.0.0:{port}
    origin_secret: {{values: [aaaaaaaaaaaaaaaaaaaaaaaa]}}
  - address: 0.0.0.0:{other}
    tls: {{certificates: [{{chain_file: soon.pem, key_file: soon.key}}, {{chain_file: ended.pem, key_file: ended.key}}]}}
    limits: {{connections: 100000000}}
admin: {{address: "0.0.0.0:{admin}"}}
trusted_proxies: {{networks: [cloudflare, private, 12.0.0.0/8], cloudflare_file: ranges.txt}}
storage: {{postgres: {{url: "postgres://keylatch:keylatch@db.example.com/keylatch", tls: off, connect_timeout: 1s}}}}
redis: {{url: "redis://cache.example.com"}}
secrets: {{key_hmac: "file:key", admin: "file:key"}}
upstreams:
  - {{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}
  - {{name: elsewhere, servers: [{{address: "api.example.com:80"}}]}}
routes:
  - {{name: open, match: {{paths: [/a]}}, upstream: model}}
  - name: api
    upstream: elsewhere
    filters:
      - key_binding: {{}}
        shadow: true
"""


def test_doctor_on_a_bad_installation(start, echo_upstream, tmp_path):
    keylatch = start(echo_upstream)
    authority = Authority(keylatch.folder)
    authority.issue("soon", "soon.test", until=now() + 5 * DAY), authority.issue("ended", "ended.test", since=now() - 9 * DAY, until=now() - DAY)
    (keylatch.folder / "key").write_text("0123456789abcdef" * 2)
    (keylatch.folder / "key").chmod(0o644)
    (keylatch.folder / "soon.key").chmod(0o600)
    ranges = keylatch.folder / "ranges.txt"
    ranges.write_text("# Cloudflare's address ranges, as of 2020-01-31.\n104.16.0.0/13\n")
    ranges.chmod(0o666)
    # An upstream that listens on a public address.
    with socket.create_server(("0.0.0.0", 0)) as reachable:
        values = {**keylatch.values, "upstream": reachable.getsockname()[1], "other": 1}
        keylatch.path.write_text(BAD.format(**values))
        found = findings(keylatch)
    bad, warn, note = (messages(found, level) for level in ("bad", "warn", "note"))
    for text in [
        "listeners[0].origin_secret.values[0]: is easily guessed",
        "secrets.admin: is the same as secrets.key_hmac",
        "/key: holds secrets, and every user of this machine may open it (mode 0644)",
        "/ended.key: holds secrets",
        "/ranges.txt: is writable by users other than its owner (mode 0666)",
        ", and every user of this machine may read it",
        "admin.address: 0.0.0.0:",
        "listeners[1].tls.certificates: the certificate of ended.test has expired",
        "`12.0.0.0/8` is a large part of the internet",
        "upstreams[0].servers[0]: the server on port",
        "bypass Keylatch",
        "upstreams[1].servers[0]: api.example.com:80 is on another machine and has no TLS",
        "storage.postgres.tls: is off, and db.example.com is on another machine",
        "redis.url: uses no TLS, and cache.example.com is on another machine",
        "storage.postgres: ",
    ]:
        assert text in bad, f"{text}\n---\n{bad}"
    for text in [
        "listeners[1].tls.certificates: the certificate of soon.test expires in",
        "listeners[0].tls: 0.0.0.0:",
        "without TLS: keys are sent in cleartext",
        "listeners[1].origin_secret: any customer of Cloudflare",
        "`private` lets every machine",
        "Cloudflare's ranges are of 2020-01-31",
        "storage.postgres.url: has a password that is easily guessed",
        "redis.url: has no password",
        "descriptors: ",
    ]:
        assert text in warn, f"{text}\n---\n{warn}"
    assert "routes: open: requires no key" in note and "`key_binding` is in shadow mode" in note
    assert all(each["remedy"] for each in found) and found == sorted(found, key=lambda each: ["bad", "warn", "note"].index(each["level"]))
    assert "0123456789abcdef" not in messages(found)
    # Intended findings are accepted by their location.
    accepted = [json.loads(line) for line in keylatch.command("doctor", "--json", "--accept", "admin.address", "--accept", "redis.url").stdout.splitlines()]
    assert {each["level"] for each in accepted if each["place"] in ("admin.address", "redis.url")} == {"note"}
    assert "`12.0.0.0/8` is a large part of the internet" in messages([json.loads(line) for line in keylatch.command("doctor", "--json", "--accept", "trusted_proxies.networks[1]").stdout.splitlines()], "bad")
    assert "nowhere: is accepted, but has no finding" in keylatch.command("doctor", "--accept", "nowhere").stdout
    assert "secrets.admin: is the same" in messages(accepted, "bad")
    text = keylatch.command("doctor")
    assert text.returncode == 1 and text.stdout.startswith("bad ") and "warnings" in text.stderr
    keylatch.path.write_text("listeners: 1")
    assert "the configuration is invalid" in messages(findings(keylatch), "bad")
    assert keylatch.command("doctor", "--accept", str(keylatch.path)).returncode == 1


GOOD = """
listeners:
  - address: 0.0.0.0:{port}
    tls:
      certificates: [{{chain_file: good.pem, key_file: good.key}}]
      client_certificates: {{ca_file: ca.pem}}
    limits: {{connections: 1000}}
admin: {{address: "127.0.0.1:{admin}"}}
trusted_proxies: {{networks: [cloudflare]}}
storage: {storage}
secrets: {{key_hmac: "file:key"}}
{more}
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
routes: [{{name: api, upstream: model, filters: [{{key_binding: {{}}}}]}}]
"""


def good(keylatch, storage, more=""):
    authority = Authority(keylatch.folder)
    authority.issue("good", "api.test", until=now() + 90 * DAY)
    key = keylatch.folder / "key"
    key.write_text(hashlib.sha256(b"a good one").hexdigest())
    for path in (key, keylatch.folder / "good.key"):
        path.chmod(0o600)
    keylatch.path.write_text(GOOD.format(**{**keylatch.values, "storage": storage, "more": more}))
    keylatch.path.chmod(0o640)


def test_doctor_on_secret_files_and_their_permissions(start, echo_upstream):
    keylatch = start(echo_upstream)
    keylatch.stop()
    good(keylatch, "{sqlite: {path: data/keylatch.db}}", "acme: {directory: https://acme.example/dir, accept_terms: true, external_account: {key_id: k, key: example1}}")
    filters = """[
        {bearer: {accept: [{jwt: {algorithms: [HS256], key: {secret: changemechangemechangemechangeme}}}]}},
        {headers: {request: {set: {Authorization: Bearer changeme, X-Env: test}}}},
        {headers: {request: {set: {x-api-key: "file:provider"}}}}]"""
    keylatch.path.write_text(keylatch.path.read_text().replace("[{key_binding: {}}]", filters))
    (keylatch.folder / "provider").write_text("12345678")
    (keylatch.folder / "provider").chmod(0o620)
    keylatch.path.chmod(0o644)
    (keylatch.folder / "data").mkdir()
    (keylatch.folder / "data").chmod(0o777)
    found = messages(findings(keylatch), "bad")
    for text in [
        "routes[0].filters[0].bearer.accept[0].jwt.key.secret: is easily guessed",
        "routes[0].filters[1].headers.request.set.Authorization: is easily guessed",
        "routes[0].filters[2].headers.request.set.x-api-key: is easily guessed",
        "acme.external_account.key: is easily guessed",
        "/provider: holds secrets, and its group may change it (mode 0620)",
        "data: every user of this machine may replace the files in it (mode 0777)",
        ", and every user of this machine may read it (mode 0644)",
    ]:
        assert text in found, f"{text}\n---\n{found}"
    assert "X-Env" not in found


def test_doctor_on_outdated_revocation_lists(start, echo_upstream):
    keylatch = start(echo_upstream)
    keylatch.stop()
    good(keylatch, "memory")
    authority = Authority(keylatch.folder / "other")
    authority.ca.rename(keylatch.folder / "ca.pem")
    text = keylatch.path.read_text()
    for days in (-1, 1):
        authority.revoke(next_update=days * DAY)
        authority.revoked.rename(keylatch.folder / "revoked.pem")
        keylatch.path.write_text(text.replace("{ca_file: ca.pem}", "{ca_file: ca.pem, revoked_file: revoked.pem}"))
        told = "client_certificates.revoked_file: a revocation list is past its next update" in messages(findings(keylatch), "bad")
        assert told == (days < 0)


@pytest.mark.parametrize("clients", ["optional", "shared", "own"])
def test_doctor_on_client_certificates_that_prove_nothing(start, echo_upstream, clients):
    """Client certificates of the CA shared by all Cloudflare customers prove nothing, nor do
    optional ones."""
    keylatch = start(echo_upstream)
    keylatch.stop()
    good(keylatch, "memory")
    if clients == "shared":
        Authority(keylatch.folder / "cloudflares", "origin-pull.cloudflare.net").ca.rename(keylatch.folder / "ca.pem")
    more = {"optional": "{ca_file: ca.pem, presented: optional}"}.get(clients, "{ca_file: ca.pem}")
    keylatch.path.write_text(keylatch.path.read_text().replace("{ca_file: ca.pem}", more))
    assert ("any customer of Cloudflare" in messages(findings(keylatch), "warn")) == (clients != "own")


def test_doctor_on_good_installations(start, echo_upstream, database, tmp_path):
    keylatch = start(echo_upstream)
    keylatch.stop()
    os.umask(0o077)
    try:
        good(keylatch, "{sqlite: {path: data/keylatch.db}}")
        assert keylatch.command("migrate").returncode == 0
        found = findings(keylatch)
        assert all(each["place"] == "user" for each in found), found
        assert keylatch.command("doctor").returncode == 0
        with Redis() as redis:
            good(keylatch, f"{{postgres: {{url: '{database.url}'}}}}", f"redis: {{url: 'redis://127.0.0.1:{redis.port}'}}")
            assert keylatch.command("migrate").returncode == 0
            found = findings(keylatch)
            assert all(each["place"] == "user" for each in found), found
    finally:
        os.umask(0o022)


def test_doctor_on_the_compose_installation(start, echo_upstream, database):
    """The image's configuration with the variables of compose.yaml; the servers run locally, and
    Redis has no password."""
    keylatch = start(echo_upstream)
    keylatch.stop()
    variables = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["keylatch"]["environment"]
    plain_ones = {name: re.sub(r"\$\{[A-Z_]+:-(.*)\}", r"\1", value) for name, value in variables.items()}
    keylatch.path.write_text((ROOT / "config" / "container-postgres.yaml").read_text())
    keylatch.path.chmod(0o640)
    with Redis() as redis:
        own = {"KEYLATCH_DATABASE_URL": database.url, "KEYLATCH_REDIS_URL": f"redis://127.0.0.1:{redis.port}", "KEYLATCH_KEY_HMAC": hashlib.sha256(b"k").hexdigest()}
        keylatch.env |= {**plain_ones, **own}
        del keylatch.env["KEYLATCH_CONFIG"]
        assert keylatch.command("migrate").returncode == 0
        found = [each for each in findings(keylatch) if each["place"] not in ("user", "descriptors", "redis.url")]
    assert all(each["level"] == "note" for each in found), found
    # The name of the upstream resolves only in containers.
    assert [each["place"] for each in found] == ["admin.address", "upstreams[0].servers[0]", "routes: rest", "upstreams[0].servers"]


def test_health(start, echo_upstream):
    keylatch = start(echo_upstream, storage=SQLITE)
    assert keylatch.command("health").stdout == "ok\n" and keylatch.command("health", "--ready").returncode == 0
    keylatch.stop()
    done = keylatch.command("health")
    assert done.returncode == 1 and "unhealthy: no process" in done.stderr


def use(keylatch, key, source):
    return request(keylatch.port, headers=[("Authorization", f"Bearer {key}")], source=source).status


def test_import_from_another_gateway(start, echo_upstream, tmp_path):
    secret = "the other gateway's secret, long enough"
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE, secrets=f"{{key_hmac: {secret!r}}}")
    hashed = lambda key: hmac.new(secret.encode(), key.encode(), hashlib.sha256).hexdigest()  # noqa: E731
    table = tmp_path / "token_bindings.csv"
    with table.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "token_hash", "token_display", "bound_ip", "binding_mode", "allowed_ips", "status", "first_used_at", "last_used_at"])
        rows.writerow([1, hashed("sk-one"), "sk-…one1", "127.0.0.2/32", "single", "[]", 1, "2026-01-31 09:00:00+00", ""])
        rows.writerow([2, hashed("sk-two"), "sk-…two2", "127.0.0.2", "multiple", '["127.0.0.3", "127.0.4.0/24"]', 1, "", ""])
        rows.writerow([3, hashed("sk-all"), "", "127.0.0.2", "all", "", 1, "", ""])
        rows.writerow([4, hashed("sk-banned"), "", "127.0.0.2", "single", "", 2, "", ""])
    wrong = keylatch.command("bindings", "import", str(table), "--gateway", "--check-key", stdin="sk-absent\n")
    assert wrong.returncode == 1 and "hashed under another secret" in wrong.stderr and "nothing was imported" in wrong.stderr
    done = keylatch.command("bindings", "import", str(table), "--gateway", "--check-key", stdin="sk-one\n")
    assert done.returncode == 0 and "4 bindings imported" in done.stdout, done.stderr
    for key, source, status in [
        ("sk-one", "127.0.0.2", 200), ("sk-one", "127.0.0.3", 403), ("sk-two", "127.0.0.3", 200), ("sk-two", "127.0.4.9", 200),
        ("sk-two", "127.0.0.2", 403), ("sk-all", "127.0.0.77", 200), ("sk-banned", "127.0.0.2", 403),
    ]:
        assert use(keylatch, key, source) == status, (key, source)
    # Other columns, and unreadable rows with their line numbers.
    other = tmp_path / "rows.jsonl"
    other.write_text(json.dumps({"h": hashed("sk-x"), "wo": "127.0.0.9", "mode": "single"}) + "\n" + json.dumps({"h": "zz", "wo": "nowhere", "mode": "single"}) + "\n")
    refused = keylatch.command("bindings", "import", str(other), "--gateway", "--column", "key_id=h", "--column", "networks=wo")
    assert refused.returncode == 1 and "rows.jsonl:2: `key_id` must be 64 hex digits" in refused.stderr
    assert keylatch.command("bindings", "import", str(table), "--column", "key_id=h").returncode == 2


def test_a_short_secret_of_another_gateway(start, echo_upstream, tmp_path):
    """As in the page on migration, the secret goes under `previous`."""
    short, banned = "a short secret", "sk-gone"
    hashed = lambda key: hmac.new(short.encode(), key.encode(), hashlib.sha256).hexdigest()  # noqa: E731
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE, secrets=f"{{key_hmac: {'n' * 64}, previous: [{short!r}]}}")
    table = tmp_path / "table.csv"
    rows = [f"{hashed(key)},127.0.0.2,single,{status}" for key, status in (("sk-one", 1), (banned, 2))]
    table.write_text("\n".join(["token_hash,bound_ip,binding_mode,status", *rows]) + "\n")
    done = keylatch.command("bindings", "import", str(table), "--gateway", "--check-key", stdin="sk-one\n")
    assert done.returncode == 0, done.stderr
    assert [use(keylatch, "sk-one", f"127.0.0.{n}") for n in (3, 2, 3)] == [403, 200, 403] and use(keylatch, banned, "127.0.0.2") == 403
    keylatch.stop()
    keylatch.path.write_text(keylatch.path.read_text().replace(f"{'n' * 64}, previous: [{short!r}]", f"{short!r}"))
    assert "secrets.key_hmac has 14 bytes; at least 32 are required" in keylatch.command("check").stderr


def test_doctor_on_a_loopback_upstream(start):
    """A server that listens only on loopback is not reported."""
    with Scripted(lambda request, send: send(plain()) or True) as upstream:
        keylatch = start(upstream)
        assert "bypass Keylatch" not in messages(findings(keylatch))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run commands as another user")
def test_commands_refuse_a_runtime_folder_of_another_user(start, echo_upstream):
    """A runtime folder of another user may contain sockets of other programs."""
    keylatch = start(echo_upstream)
    with tempfile.TemporaryDirectory(prefix="kl-", dir="/tmp") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        shutil.copy(BINARY, folder / "keylatch")
        shutil.copy(keylatch.path, folder / "keylatch.yaml")
        (folder / "keylatch.yaml").chmod(0o644)
        (folder / "run").mkdir(mode=0o755)
        command = [folder / "keylatch", "reload", "-c", folder / "keylatch.yaml"]
        run_command = lambda: subprocess.run(command, env={"KEYLATCH_RUNTIME_DIR": str(folder / "run")}, user=12345, group=12345, capture_output=True, text=True)  # noqa: E731
        for owner, mode, strange in ((12346, 0o755, True), (12345, 0o777, True), (12345, 0o755, False), (0, 0o755, False)):
            os.chown(folder / "run", owner, owner)
            (folder / "run").chmod(mode)
            done = run_command()
            assert done.returncode == 1 and ("belongs to another user or is writable by others" in done.stderr) == strange, (owner, mode, done.stderr)


def test_a_runtime_for_each_thread(start, echo_upstream):
    """With `scheduling: per_thread`, all threads accept, a limit is common to them, and a stop drains."""
    keylatch = start(echo_upstream, more="workers: 3\nscheduling: per_thread", route_filters="      - rate_limit: {per: route, limit: 50/h}")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: httpx.get(keylatch.url("/v1/models")).status_code, range(80)))
    assert (statuses.count(200), statuses.count(429)) == (50, 30)
    assert keylatch.health("ready")[0] == 200
    keylatch.stop()
    assert keylatch.process.returncode == 0
