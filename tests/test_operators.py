"""Operator tasks in a shell and by the admin API: bindings, limits and intercepts."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import time

import pytest
from support import raw
from support.admin import ENV, Admin, signed_in
from support.keylatch import BINARY, wait_for
from support.stores import SECRET, send_request, key_id, storage

KEY = "sk-operator-01-abcdefgh"
SQLITE = "{sqlite: {path: t.db, flush_every: 50ms}}"
TRUSTING = "      - client_ip: {}\n      - key_binding: {new_keys_per_client: 1000000/s%s}"
TRUSTED = "{networks: [loopback]}"


def run(replica, *arguments, stdin=""):
    done = replica.command(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done


def ask_from(replica, key, client):
    return raw.request(replica.port, headers=[raw.key(key), ("X-Forwarded-For", client)]).status


@pytest.fixture(params=["postgres", "sqlite"])
def store(request):
    return storage(request.getfixturevalue("database")) if request.param == "postgres" else SQLITE


@pytest.mark.parametrize(("options", "network"), [("", "2001:db8:2:3::/64"), (", ipv6_prefix: 48", "2001:db8:2::/48")])
def test_allow_uses_the_network_of_a_first_use(start, echo_upstream, store, options, network):
    replica = start(echo_upstream, route_filters=TRUSTING % options, trusted=TRUSTED, storage=store, secrets=SECRET, env=ENV)
    admin = signed_in(replica)
    assert ask_from(replica, KEY, "2001:db8:1::1") == 200 and ask_from(replica, KEY, "2001:db8:2:3::7") == 403
    id = admin.post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    allowed = admin.post("/bindings/allow", {"key_id": id, "ip": "2001:db8:2:3::7"}).json()
    assert allowed["networks"][1] == network and allowed["made_by"] == "first_use"
    wait_for(lambda: ask_from(replica, KEY, "2001:db8:2:3:ffff::1") == 200, "the whole network passes", 3)
    # A network is used as given, and an IPv4 address means that address.
    run(replica, "bindings", "allow", id[:7], "2001:db8:9::1/128")
    shown = json.loads(run(replica, "bindings", "allow", f"key={id[:12]}", "192.0.2.7").stdout)
    assert shown["networks"][2:] == ["2001:db8:9::1/128", "192.0.2.7/32"] and shown["made_by"] == "first_use"
    assert "already" in replica.command("bindings", "allow", id, "192.0.2.7").stderr
    wait_for(lambda: ask_from(replica, KEY, "192.0.2.7") == 200, "the client is admitted", 3)
    changes = admin.get(f"/bindings/{id}/timeline").json()["changes"]
    assert len(changes) == 3 and changes[-1]["before"]["made_by"] == changes[-1]["after"]["made_by"] == "first_use"


FAMILIES = ["192.0.2.1", "2001:db8:1::1", "2001:db8:1::ffff", "192.0.2.2", "2001:db8:2::1"]


def test_a_client_with_ipv4_and_ipv6_uses_either(start, echo_upstream, store):
    replica = start(echo_upstream, route_filters=TRUSTING % "", trusted=TRUSTED, storage=store, secrets=SECRET, env=ENV)
    assert [ask_from(replica, KEY, client) for client in FAMILIES] == [200, 200, 200, 403, 403]
    other = KEY[:-1] + "x"
    assert [ask_from(replica, other, client) for client in FAMILIES[1:]] == [200, 200, 200, 403]
    admin = signed_in(replica)
    shown = admin.post("/bindings/look-up", {"key": KEY}).json()["binding"]
    assert (shown["rule"], shown["networks"], shown["made_by"]) == ("single", ["192.0.2.1/32", "2001:db8:1::/64"], "first_use")
    # A binding set by an operator may name one network of each family.
    id = shown["key_id"]
    admin.call("PATCH", f"/bindings/{id}", {"rule": "single", "networks": ["192.0.2.1"]}, 200)
    wait_for(lambda: ask_from(replica, KEY, "2001:db8:1::1") == 403, "only the operator's networks are admitted", 3)
    admin.call("PATCH", f"/bindings/{id}", {"rule": "single", "networks": ["192.0.2.1", "2001:db8:2::/64"]}, 200)
    wait_for(lambda: ask_from(replica, KEY, "2001:db8:2::1") == 200, "both families", 3)
    refused = admin.call("PATCH", f"/bindings/{id}", {"rule": "single", "networks": ["192.0.2.1", "192.0.2.2"]}, 422).json()
    assert "one IPv4 and one IPv6 network" in refused["detail"]


def test_a_second_family_is_a_first_use(start, echo_upstream):
    """It requires the option, open enrolment, and quota in `new_keys_per_client`. Of concurrent
    requests one is bound."""
    def begin(options):
        filters = f"      - client_ip: {{}}\n      - key_binding: {{{options}}}"
        return start(echo_upstream, route_filters=filters, trusted=TRUSTED, storage=SQLITE, secrets=SECRET, env=ENV)

    replica = begin("per_family: false")
    assert [ask_from(replica, KEY, client) for client in FAMILIES[:2]] == [200, 403]
    replica = begin("enrol: first_use")
    assert ask_from(replica, KEY, "192.0.2.1") == 200
    replica.path.write_text(replica.path.read_text().replace("first_use", "known_only"))
    run(replica, "reload")
    assert [ask_from(replica, KEY, client) for client in FAMILIES[:2]] == [200, 403]
    replica = begin("new_keys_per_client: 1/h")
    assert [ask_from(replica, KEY, client) for client in FAMILIES[:2]] == [200, 200]
    assert ask_from(replica, "sk-another-01-abcdefgh", "192.0.2.7") == 200
    assert ask_from(replica, "sk-another-01-abcdefgh", "2001:db8:1::1") == 429, "this client has no quota for new keys left"
    replica = start(echo_upstream, route_filters=TRUSTING % "", trusted=TRUSTED, storage=SQLITE, secrets=SECRET, env=ENV)
    assert ask_from(replica, KEY, "192.0.2.1") == 200
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda n: ask_from(replica, KEY, f"2001:db8:{n:x}::1"), range(1, 33)))
    assert sorted(statuses) == [200] + [403] * 31


def test_allow_uses_the_smallest_network_if_filters_differ(start, echo_upstream):
    filters = "\n".join(f"      - key_binding: {{ipv6_prefix: {bits}}}" for bits in (48, 56))
    replica = start(echo_upstream, route_filters=f"      - client_ip: {{}}\n{filters}", trusted=TRUSTED, storage=SQLITE, secrets=SECRET, env=ENV)
    assert ask_from(replica, KEY, "2001:db8:1::1") == 200
    shown = json.loads(run(replica, "bindings", "allow", "-", "2001:db8:2::1", stdin=KEY).stdout)
    assert shown["networks"][1] == "2001:db8:2::/56"


def test_set_shows_the_replaced_values(start, echo_upstream):
    replica = start(echo_upstream, route_filters=TRUSTING % "", storage=SQLITE, secrets=SECRET)
    assert send_request(replica, KEY).status == 200
    done = run(replica, "bindings", "set", "-", "--network", "192.0.2.0/24", stdin=KEY)
    assert "replaces: " in done.stderr and "127.0.0.1/32" in done.stderr and "first_use" in done.stderr
    assert json.loads(done.stdout)["networks"] == ["192.0.2.0/24"]
    assert "replaces" not in run(replica, "bindings", "set", "-", "--rule", "all", stdin="sk-operator-99-abcdefgh").stderr


def test_short_ids_are_the_same_everywhere(start, echo_upstream):
    chain = TRUSTING % "" + "\n      - rate_limit: {per: key, limit: 2/h, name: hourly}"
    replica = start(echo_upstream, route_filters=chain, storage=SQLITE, secrets=SECRET, env=ENV)
    assert [send_request(replica, KEY).status for _ in range(3)] == [200, 200, 429]
    id = signed_in(replica).post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    for short in (id, id[:12], id[:6], id[:7].upper(), f"key={id[:12]}"):
        assert json.loads(run(replica, "bindings", "show", short).stdout)["key_id"] == id
        assert "hourly" in run(replica, "limits", "give-back", short).stdout
        assert [send_request(replica, KEY).status for _ in range(3)] == [200, 200, 429]
    for wrong in (id[:5], "zz" * 6, KEY):
        refused = replica.command("bindings", "show", wrong)
        assert refused.returncode == 1 and KEY not in refused.stderr
        assert replica.command("limits", "give-back", wrong).returncode == 1
    listed = run(replica, "limits", "list").stdout.splitlines()
    assert listed[0].startswith("LIMIT") and "hourly" in listed[1]


def test_lists_have_headers_and_report_no_rows(start, echo_upstream):
    replica = start(echo_upstream, route_filters=TRUSTING % "", storage=SQLITE, secrets=SECRET)
    lists = {("bindings", "list"): "No bindings match.", ("intercepts", "list"): "No intercepts match.",
             ("intercepts", "top"): "No intercepts match.", ("limits", "list"): "No limit is near or over.", ("streams", "list"): "No stream is open."}
    for command, empty in lists.items():
        done = run(replica, *command)
        assert (done.stdout, done.stderr.splitlines()[-1]) == ("", empty)
        assert run(replica, *command, "--json").stdout == ""
    assert send_request(replica, KEY).status == 200 and send_request(replica, KEY, "127.0.0.2").status == 403
    wait_for(lambda: "127.0.0.2" in run(replica, "intercepts", "list").stdout, "the intercept is written")
    for command, first in ((("bindings", "list"), "KEY"), (("intercepts", "list"), "LAST"), (("intercepts", "top"), "   COUNT")):
        lines = run(replica, *command).stdout.splitlines()
        assert lines[0].startswith(first) and len(lines) == 2, lines


def test_since_accepts_dates_and_durations(start, echo_upstream):
    replica = start(echo_upstream, route_filters=TRUSTING % "", storage=SQLITE, secrets=SECRET)
    assert send_request(replica, KEY).status == 200 and send_request(replica, KEY, "127.0.0.2").status == 403
    listed = lambda *more: run(replica, "intercepts", "list", "--json", *more).stdout.splitlines()  # noqa: E731
    wait_for(listed, "the intercept is written")
    today = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 3600))
    for since in (today, f"{today}T00:00:00Z", f"{today} 00:00", "2h", "1day", "2020-01-01"):
        assert len(listed("--since", since)) == 1, since
    assert not listed("--since", "2099-01-01") and not listed("--until", "2h")
    assert "2026-11-29" in replica.command("intercepts", "list", "--since", "yesterday").stderr


def test_the_export_honours_the_filter(start, echo_upstream, store):
    replica = start(echo_upstream, route_filters=TRUSTING % "", storage=store, secrets=SECRET, env=ENV)
    admin = signed_in(replica)
    for n in range(3):
        assert send_request(replica, f"{KEY}{n}").status == 200
    id = admin.post("/bindings/look-up", {"key": f"{KEY}1"}).json()["key_id"]
    admin.call("PATCH", f"/bindings/{id}", {"labels": ["team-a"]}, 200)
    csv = admin.get("/bindings/export", params={"format": "csv", "label": "team-a"}).text.strip().splitlines()
    assert len(csv) == 2 and id in csv[1]
    assert len(admin.get("/bindings/export").text.splitlines()) == 3
    assert len(admin.get("/bindings/export", params={"key_id": id[:9]}).text.splitlines()) == 1
    assert run(replica, "bindings", "export", "--label", "team-a").stdout.count(id) == 1
    assert len(run(replica, "bindings", "export").stdout.splitlines()) == 3
    assert not run(replica, "bindings", "export", "--banned").stdout


def test_import_of_names_and_labels_only(start, echo_upstream, tmp_path):
    replica = start(echo_upstream, route_filters=TRUSTING % "", storage=SQLITE, secrets=SECRET, env=ENV)
    assert send_request(replica, KEY).status == 200
    names = tmp_path / "names.csv"
    names.write_text(f"key,note,labels\n{KEY},Ann,team-a laptop\n")
    assert "1 bindings imported" in run(replica, "bindings", "import", str(names)).stdout
    shown = json.loads(run(replica, "bindings", "show", "-", stdin=KEY).stdout)
    assert (shown["note"], shown["labels"], shown["networks"], shown["made_by"]) == ("Ann", ["team-a", "laptop"], ["127.0.0.1/32"], "first_use")
    names.write_text(f"key,note\n{KEY},Bob\nsk-operator-77-abcdefgh,Eve\n")
    refused = replica.command("bindings", "import", str(names))
    assert refused.returncode == 1 and "names.csv:3: " in refused.stderr and "is not bound" in refused.stderr and "nothing was imported" in refused.stderr
    names.write_text(f"key,hint\n{KEY},x\n")
    assert "is needed" in replica.command("bindings", "import", str(names)).stderr
    assert json.loads(run(replica, "bindings", "show", "-", stdin=KEY).stdout)["note"] == "Ann"


def test_check_accepts_a_file(start, echo_upstream, tmp_path):
    replica = start(echo_upstream)
    check = lambda *more, **env: subprocess.run([BINARY, "check", *more], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, **env})  # noqa: E731
    assert "is valid" in check(str(replica.path)).stdout and "is valid" in check("-c", str(replica.path)).stdout
    assert "is valid" in check(str(replica.path), KEYLATCH_CONFIG="/nowhere.yaml").stdout
    assert "is valid" in check(KEYLATCH_CONFIG=str(replica.path)).stdout
    missing = check("missing.yaml")
    assert missing.returncode == 1 and "missing.yaml" in missing.stderr
    # In the working directory the file is found by its name.
    here = tmp_path / "here"
    here.mkdir()
    (here / "keylatch.yaml").write_text(replica.path.read_text())
    found = subprocess.run([BINARY, "check"], cwd=here, capture_output=True, text=True, check=False)
    assert found.stdout.startswith("keylatch.yaml is valid")


def test_the_default_configuration_is_that_of_the_package(start, echo_upstream, tmp_path):
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("needs a mount namespace")
    replica = start(echo_upstream)
    folder = tmp_path / "etc-keylatch"
    folder.mkdir()
    (folder / "keylatch.yaml").write_text(replica.path.read_text())
    empty = tmp_path / "empty"
    empty.mkdir()
    existed = pathlib.Path("/etc/keylatch").exists()
    mount = f"mount --bind {tmp_path / 'upper'} /etc && mkdir -p /etc/keylatch && cp {folder}/keylatch.yaml /etc/keylatch/"
    (tmp_path / "upper").mkdir()
    done = subprocess.run(["unshare", "-m", "sh", "-c", f"{mount} && cd {empty} && {BINARY} check"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("/etc/keylatch/keylatch.yaml is valid"), done.stderr
    assert pathlib.Path("/etc/keylatch").exists() == existed


def test_ready_names_the_listeners(start, echo_upstream):
    replica = start(echo_upstream)
    log = wait_for(lambda: replica.stderr.read_text() if "ready" in replica.stderr.read_text() else None, "the line is written")
    assert f'listeners="127.0.0.1:{replica.port}"' in log and f"admin=127.0.0.1:{replica.admin}" in log, log


def test_the_audit_names_the_user(start, echo_upstream):
    replica = start(echo_upstream, route_filters=TRUSTING % "", storage=SQLITE, secrets=SECRET)
    assert send_request(replica, KEY).status == 200
    id = key_id(replica, KEY)
    environment = dict(replica.env)
    actors = []
    for changes in ({"SUDO_USER": "alice"}, {"SUDO_USER": "", "USER": "mallory"}, {"USER": "mallory"}):
        replica.env = {**{name: value for name, value in environment.items() if name not in ("SUDO_USER", "USER")}, **changes}
        run(replica, "bindings", "ban", id)
        actors.append(json.loads(run(replica, "bindings", "audit", id, "--json", "--limit", "1").stdout)["actor"])
    if os.geteuid() == 0:
        assert actors == ["command:alice", "command:root", "command:root"]


def test_the_origin_of_the_console(start, echo_upstream):
    public = "https://console.example.com"
    replica = start(echo_upstream, storage=SQLITE, env=ENV)
    text = replica.path.read_text()
    admin = signed_in(replica)
    refused = admin.get("/bindings", 403, headers={"origin": public}).json()["detail"]
    assert public in refused and f"127.0.0.1:{replica.admin}" in refused and "public_origin" in refused
    line = next(line for line in text.splitlines() if line.startswith("admin:"))
    assert line.endswith("}"), line
    replica.path.write_text(text.replace(line, line[:-1] + f', public_origin: "{public}"}}'))
    run(replica, "reload")
    admin.get("/bindings", 200, headers={"origin": public})
    admin.get("/bindings", 200, headers={"origin": f"http://127.0.0.1:{replica.admin}"})
    refused = admin.get("/bindings", 403, headers={"origin": "https://evil.example"}).json()["detail"]
    assert "https://evil.example" in refused and public in refused and f"127.0.0.1:{replica.admin}" in refused
    assert Admin(replica).get("/bindings", 401, headers={"origin": public})


def test_429s_and_401s_name_the_subject(start, echo_upstream):
    chain = TRUSTING % "" + "\n      - rate_limit: {per: key, limit: 2/h, name: hourly}"
    replica = start(echo_upstream, route_filters=chain, storage=SQLITE, secrets=SECRET, env=ENV)
    admin = signed_in(replica)
    assert [send_request(replica, KEY, "127.0.0.5").status for _ in range(5)] == [200, 200, 429, 429, 429]
    assert [raw.request(replica.port, source="127.0.0.6").status for _ in range(2)] == [401, 401]
    id = admin.post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    board = wait_for(lambda: (got := admin.get("/dashboard").json())["limited_keys"] and got["unauthorized_clients"] and got, "both are counted", 20)
    assert [(one["what"], one["hint"], one["requests"]) for one in board["limited_keys"]] == [(id, "sk-…efgh", 3)]
    assert [(one["what"], one["requests"]) for one in board["limited_clients"]] == [("127.0.0.5", 3)]
    assert [(one["what"], one["requests"]) for one in board["unauthorized_clients"]] == [("127.0.0.6", 2)]
    assert f"3 times 429 {id[:12]}" in run(replica, "status").stdout and "2 times 401 127.0.0.6" in run(replica, "status").stdout
