"""The admin API: authentication, sessions and permissions."""

import base64
import concurrent.futures
import json
import math
import statistics
import time

import jwt
import pytest
from support import raw
from support.admin import ENV, PASSWORD, Admin, signed_in
from support.keylatch import wait_for
from support.stores import send_request

ROLES = {
    "viewer": {"read"},
    "operator": {"read", "bindings", "streams", "limits"},
    "admin": {"read", "bindings", "streams", "limits", "settings", "config", "accounts"},
}
SQLITE = "{sqlite: {path: t.db}}"


@pytest.fixture
def replica(start, echo_upstream):
    return start(echo_upstream, storage=SQLITE, env=ENV)


def test_the_first_account(start, echo_upstream):
    replica = start(echo_upstream, storage=SQLITE)
    said = "shown only once and must be changed at the first sign-in:\n"
    wait_for(lambda: said in replica.stderr.read_text(), "the password is printed")
    password = replica.stderr.read_text().split(said)[1].splitlines()[0]
    assert len(password) == 32
    admin = Admin(replica)
    assert admin.sign_in(password=password).json()["must_change_password"] is True
    assert admin.get("/account").json()["scopes"] == []
    for path in ("/bindings", "/account/tokens", "/accounts"):
        refused = admin.get(path, 403).json()
        assert "change your temporary password" in refused["detail"]
    for wrong, says in (("short", "at least 12"), ("my-admin-password", "account's name"), ("x" * 20, "one repeated character"), (password, "differ from the current one")):
        problem = admin.put("/account/password", {"current": password, "password": wrong}, 422).json()
        assert problem["field"] == "password" and says in problem["detail"]
    assert admin.put("/account/password", {"current": "not-it-at-all", "password": PASSWORD}, 422).json()["field"] == "current"
    admin.put("/account/password", {"current": password, "password": PASSWORD}, 204)
    admin.get("/bindings")
    Admin(replica).sign_in(password=password, status=401)
    replica.stop()
    replica.start()
    Admin(replica).sign_in()
    assert replica.stderr.read_text().count(said) == 1, "a restart prints no second password"


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "put", "patch", "delete"):
                security = operation.get("security")
                yield method.upper(), path, None if security is None else security[0]["bearer"]


def test_permissions_of_roles_and_scopes(replica):
    """Every operation with every role, without credentials, and with a token of each scope."""
    admin = signed_in(replica)
    document = admin.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    people = {"admin": admin, **{role: admin.create_account(role, role) for role in ("viewer", "operator")}}
    scripts = {scope: Admin(replica, admin.post("/account/tokens", {"name": scope, "scopes": [scope]}, 201).json()["token"]) for scope in ROLES["admin"]}
    seen = 0
    for method, path, scopes in operations(document):
        called = path.removeprefix("/admin/api").replace("{", "").replace("}", "")
        # No request is valid enough to be carried out: only the permission check is tested here.
        body = {} if method in ("POST", "PUT", "PATCH") else None
        if scopes is None:
            assert called == "/login" or called.startswith("/oidc")
            continue
        seen += 1
        for absent in (None, "nonsense", "kla_" + "x" * 43):
            problem = Admin(replica, absent).call(method, called, body, 401)
            assert problem.headers["content-type"] == "application/problem+json" and "bearer" in problem.headers["www-authenticate"].lower()
        if called == "/logout" or called == "/config/reload":
            continue
        for role, person in people.items():
            may = all(scope in ROLES[role] for scope in scopes)
            status = person.call(method, called, body).status_code
            assert (status == 403) != may and status != 401, f"{role}: {method} {path}: {status}"
        for scope, script in scripts.items():
            status = script.call(method, called, body).status_code
            if scopes:
                assert (status == 403) != (scopes == [scope]) and status != 401, f"{scope}: {method} {path}: {status}"
            elif called != "/account":
                assert status == 403, f"tokens must not manage accounts: {method} {path}: {status}"
    assert seen > 25
    people["operator"].post("/config/reload", status=403)
    scripts["bindings"].post("/config/reload", status=403)
    assert "is in force" in scripts["config"].post("/config/reload").json()["message"]
    # A token grants no more than the current role of its owner, also if the role was higher before.
    operator = people["operator"]
    operator.post("/account/tokens", {"name": "greedy", "scopes": ["settings"]}, 403)
    script = Admin(replica, operator.post("/account/tokens", {"name": "ci", "scopes": ["read", "bindings"]}, 201).json()["token"])
    script.post("/bindings/unbind", {"key_id": "abcdef"}, 404)
    admin.call("PATCH", "/accounts/operator", {"role": "viewer"}, 200)
    script.get("/bindings")
    script.post("/bindings/unbind", {"key_id": "abcdef"}, 403)
    admin.call("PATCH", "/accounts/operator", {"disabled": True}, 200)
    script.get("/bindings", 401)


def test_a_token_is_shown_once_expires_and_can_be_removed(replica):
    admin = signed_in(replica)
    for wrong, field in (({"name": "", "scopes": ["read"]}, "name"), ({"name": "x", "scopes": []}, "scopes"), ({"name": "x", "scopes": ["root"]}, "scopes[0]"), ({"name": "x", "scopes": ["read"], "days": 367}, "days"), ({"name": "x", "scopes": ["read"], "more": 1}, "more")):
        assert admin.post("/account/tokens", wrong, 422).json()["field"] == field
    made = admin.post("/account/tokens", {"name": "ci", "scopes": ["read"], "days": 1}, 201).json()
    admin.post("/account/tokens", {"name": "ci", "scopes": ["read"]}, 409)
    script = Admin(replica, made["token"])
    script.get("/bindings")
    shown = admin.get("/account/tokens").json()["items"]
    assert [token["name"] for token in shown] == ["ci"] and shown[0]["last_used_at"] and "token" not in shown[0]
    admin.call("DELETE", f"/account/tokens/{made['id']}", status=204)
    script.get("/bindings", 401)
    admin.call("DELETE", f"/account/tokens/{made['id']}", status=404)
    # Neither the token nor a password is stored or logged.
    replica.stop()
    told = replica.stderr.read_text() + replica.stdout.read_text()
    stored = b"".join(path.read_bytes() for path in replica.folder.glob("t.db*"))
    for secret in (made["token"], PASSWORD, admin.token):
        assert secret not in told and secret.encode() not in stored


def test_a_session_ends_on_every_replica_at_once(replicas):
    one, two = replicas(2, env=ENV)
    here, there = signed_in(one), Admin(two)
    there.token = here.token
    there.get("/bindings")
    here.post("/logout", status=204)
    there.get("/bindings", 401)
    admin = signed_in(one)
    viewer = admin.create_account("ann", "viewer")
    elsewhere = Admin(two)
    elsewhere.sign_in("ann", "another-horse-battery")
    assert len(viewer.get("/account/sessions").json()["items"]) == 2
    # Changing the own password ends the other sessions. A change of the role, or of the account by
    # an admin, ends all.
    viewer.put("/account/password", {"current": "another-horse-battery", "password": "third-horse-battery"}, 204)
    viewer.get("/bindings")
    elsewhere.get("/bindings", 401)
    renewed = viewer.post("/session").json()
    assert renewed["access_token"] and renewed["expires_in"] == 600 and renewed["role"] == "viewer"
    admin.call("PATCH", "/accounts/ann", {"role": "operator"}, 200)
    for token in (viewer.token, renewed["access_token"]):
        Admin(two, token).get("/bindings", 401)
    ann = Admin(two)
    ann.sign_in("ANN", "third-horse-battery")
    session = next(each for each in ann.get("/account/sessions").json()["items"] if each["current"])
    ann.call("DELETE", f"/account/sessions/{session['id']}", status=204)
    ann.get("/bindings", 401)
    # The last admin cannot be removed.
    problem = admin.call("PATCH", "/accounts/admin", {"role": "viewer"}, 409).json()
    assert "another admin first" in problem["detail"]
    admin.call("DELETE", "/accounts/admin", status=409)
    admin.get("/bindings")
    seen = admin.call("GET", "/accounts/ann")
    admin.call("PATCH", "/accounts/ann", {"disabled": True}, 412, headers={"if-match": '"1"'})
    admin.call("PATCH", "/accounts/ann", {"disabled": True}, 200, headers={"if-match": seen.headers["etag"]})
    Admin(one).sign_in("ann", "third-horse-battery", 401)
    admin.call("DELETE", "/accounts/ann", status=412, headers={"if-match": seen.headers["etag"]})
    admin.call("DELETE", "/accounts/ann", status=204)
    admin.call("DELETE", "/accounts/ann", status=404)


def test_a_stolen_password_and_its_tokens(replica):
    """A reset revokes the tokens created with the stolen password, and the password form counts
    wrong guesses as sign-in does."""
    admin = signed_in(replica)
    bob = admin.create_account("bob", "operator")
    made = bob.post("/account/tokens", {"name": "ci", "scopes": ["read"]}, 201).json()
    assert [token["name"] for token in admin.get("/accounts/bob/tokens").json()["items"]] == ["ci"]
    other = bob.post("/account/tokens", {"name": "other", "scopes": ["read"]}, 201).json()
    admin.call("DELETE", f"/accounts/bob/tokens/{other['id']}", status=204)
    admin.call("DELETE", f"/accounts/bob/tokens/{other['id']}", status=404)
    Admin(replica, other["token"]).get("/bindings", 401)
    Admin(replica, made["token"]).get("/bindings")
    guesses = [bob.put("/account/password", {"current": f"wrong-guess-{n}", "password": "third-horse-battery"}, None).status_code for n in range(20)]
    assert guesses[:5] == [422] * 5 and 429 in guesses and guesses.count(422) <= 8, guesses
    admin.call("PATCH", "/accounts/bob", {"password": "reset-horse-battery", "unlock": True}, 200)
    assert admin.get("/audit", params={"action": "account.unlocked"}).json()["items"][0]["target"] == "bob"
    Admin(replica, made["token"]).get("/bindings", 401)
    assert admin.get("/accounts/bob/tokens").json()["items"] == []
    bob.get("/account", 401)


def test_a_password_change_during_sign_ins_with_the_old_one(replica):
    admin = signed_in(replica)
    admin.create_account("bob", "operator")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        late = [pool.submit(lambda n=n: Admin(replica, source=f"127.0.0.{20 + n}").sign_in("bob", "another-horse-battery", None)) for n in range(16)]
        assert replica.command("admin", "reset-password", "bob", "--stdin", stdin="reset-horse-battery").returncode == 0
        tokens = [answer.json()["access_token"] for answer in (each.result() for each in late) if answer.status_code == 200]
    assert {Admin(replica, token).get("/account", None).status_code for token in tokens} <= {401}


def test_slow_clients_do_not_block_the_admin_listener(replica):
    """Headers, bodies and connections without an end take few resources, and other clients are
    served."""
    before = replica.memory_kib()
    held = []
    for n in range(100):
        connection = raw.connect(replica.admin)
        head = "POST /admin/api/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n" if n % 2 else "GET /health HTTP/1.1\r\nHo"
        connection.sendall(head.encode() + b"x" * 50_000 * (n % 2))
        held.append(connection)
    assert replica.health("ready")[0] == 200
    signed_in(replica)
    # 100 connections with 50 KB each, and one password hash; the bound leaves several times that.
    assert replica.memory_kib() - before < 60_000
    # An incomplete body times out.
    answer = raw.read_head(held[1].makefile("rb"))
    assert answer[0] == 400
    for connection in held:
        connection.close()


def forged(token, **changes):
    head, claims, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return {**claims, **changes}


def test_forged_tokens(start, echo_upstream):
    secret = "b" * 48
    replica = start(echo_upstream, storage=SQLITE, env=ENV, secrets=f"{{admin: {secret}}}", more="")
    admin = signed_in(replica)
    claims = forged(admin.token)
    good = jwt.encode(claims, secret, "HS256")
    Admin(replica, good).get("/bindings")
    head, body, signature = admin.token.split(".")
    b64 = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")  # noqa: E731
    wrong = {
        "none": f"{b64({'alg': 'none'})}.{body}.",
        "no signature": f"{head}.{body}.",
        "another secret": jwt.encode(claims, "a" * 48, "HS256"),
        "another algorithm": jwt.encode(claims, secret, "HS384"),
        "expired": jwt.encode({**claims, "exp": int(time.time()) - 1}, secret, "HS256"),
        "no end": jwt.encode({key: value for key, value in claims.items() if key != "exp"}, secret, "HS256"),
        "another issuer": jwt.encode({**claims, "iss": "another"}, secret, "HS256"),
        "another audience": jwt.encode({**claims, "aud": "another"}, secret, "HS256"),
        "another's name": jwt.encode({**claims, "sub": "viewer"}, secret, "HS256"),
        "no such session": jwt.encode({**claims, "sid": "01a212a7-0000-7784-892b-e3116743a2d2"}, secret, "HS256"),
        "changed": f"{head}.{b64({**claims, 'sub': 'root'})}.{signature}",
        "two": f"{admin.token} {admin.token}",
    }
    for what, token in wrong.items():
        answer = Admin(replica).call("GET", "/bindings", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 401, what
    for field in (f"Basic {admin.token}", admin.token, f"Bearer  {admin.token}x"):
        assert Admin(replica).call("GET", "/bindings", headers={"authorization": field}).status_code == 401
    # An API key of the proxy is no admin token, and an admin token is not logged by the proxy.
    twice = [("authorization", f"Bearer {admin.token}"), ("authorization", f"Bearer {admin.token}")]
    assert admin.client.get("/bindings", headers=twice).status_code == 401
    with pytest.raises(AssertionError, match="secrets.admin has 5 bytes"):
        start(echo_upstream, storage=SQLITE, secrets="{admin: short}")


def test_pages_of_other_sites_are_refused(replica):
    admin = signed_in(replica)
    own = f"http://127.0.0.1:{replica.admin}"
    for headers, status in (
        ({"origin": own}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": own + ".evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ):
        answer = admin.call("GET", "/bindings", status=status, headers=headers)
        assert "access-control-allow-origin" not in answer.headers and answer.headers["cache-control"] == "no-store"
    preflight = admin.call("OPTIONS", "/bindings", headers={"origin": "https://evil.example", "access-control-request-method": "GET"})
    assert preflight.status_code == 403 and not [name for name in preflight.headers if name.startswith("access-control")]
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        login = admin.client.post("/login", content=json.dumps({"username": "admin", "password": PASSWORD}), headers={"content-type": kind})
        assert login.status_code == 415, "a form of another site is refused"


def test_ten_thousand_password_guesses_from_a_hundred_addresses(replicas):
    two = replicas(2, env=ENV)
    signed_in(two[0])
    began = time.monotonic()

    def guess(n):
        with Admin(two[n % 2], source=f"127.0.0.{100 + n}").client as client:
            return [client.post("/login", json={"username": "admin", "password": f"wrong-guess-{n}-{k}"}) for k in range(100)]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = [answer for answers in pool.map(guess, range(100)) for answer in answers]
    took = time.monotonic() - began
    statuses = [answer.status_code for answer in answers]
    tried = statuses.count(401)
    # The first five wrong passwords are free; then the lock lasts 1 s, 2 s, 4 s and so on.
    assert 5 <= tried <= 6 + math.log2(took + 1) and statuses.count(429) == 10_000 - tried, (tried, took)
    locked = next(answer for answer in answers if answer.status_code == 429)
    assert int(locked.headers["retry-after"]) >= 1 and locked.json()["retry_after"] >= 1 and locked.json()["type"] == "urn:keylatch:locked"
    # While locked, the right password is refused from every address, and the address is refused for
    # every name.
    source = "127.0.0.99"

    def locked_for_a_while():
        answer = Admin(two[0], source="127.0.0.97").sign_in("admin", "wrong-guess-wrong", None)
        return answer.status_code == 401 or answer.json()["retry_after"] > 2

    wait_for(locked_for_a_while, "a long lock")
    Admin(two[1], source=source).sign_in(status=429)
    names = [Admin(two[n % 2], source=source).sign_in(f"name-{n}", "wrong-guess-wrong", None).status_code for n in range(40)]
    assert 19 <= names.count(401) <= 26 and 429 in names, names
    # A command on the machine unlocks the account.
    said = two[0].command("admin", "unlock", "admin")
    assert said.returncode == 0, said.stderr
    Admin(two[1], source="127.0.0.98").sign_in()
    metrics = two[0].metrics()
    assert metrics['keylatch_admin_sign_ins_total{result="locked"}'] > 1000


def test_known_and_unknown_names_take_the_same_time(replica):
    admin = signed_in(replica)
    for n in range(6):
        admin.post("/accounts", {"name": f"known-{n}", "role": "viewer", "password": "first-horse-battery"}, 201)
    times = {"known": [], "unknown": []}
    answers = set()
    for k in range(4):
        for n in range(6):
            for kind, of in times.items():
                someone = Admin(replica, source=f"127.0.0.{10 + n + 10 * k + 100 * (kind == 'known')}")
                someone.client.get("/openapi.json")
                began = time.perf_counter()
                answer = someone.sign_in(f"{kind}-{n}", "wrong-guess-wrong", 401)
                of.append(time.perf_counter() - began)
                answers.add(answer.text)
    assert len(answers) == 1
    known, unknown = (statistics.median(of) for of in times.values())
    # Hashing dominates the time: without it the ratio would be about ten.
    assert 0.7 < known / unknown < 1.4, (known, unknown)


def test_the_client_address_of_admin_requests(start, echo_upstream):
    trusting = start(echo_upstream, storage=SQLITE, env=ENV, trusted="{networks: [127.0.0.1]}")
    admin = signed_in(trusting)
    forwarded = {"x-forwarded-for": "203.0.113.7"}
    admin.put("/settings", {"values": {"maintenance": True}}, headers=forwarded)
    stranger = Admin(trusting, admin.token, source="127.0.0.9")
    stranger.put("/settings", {"values": {"maintenance": None}}, headers=forwarded)
    audit = admin.get("/audit", params={"action": "setting"}).json()["items"]
    assert [(entry["action"], entry["origin"], entry["actor"]) for entry in audit] == [("setting.reverted", "127.0.0.9", "admin"), ("setting.set", "203.0.113.7", "admin")]


def test_the_admin_api_during_a_store_outage(replicas, database):
    (replica,) = replicas(1, env=ENV)
    admin = signed_in(replica)
    assert send_request(replica, "sk-away-0001-abcdefgh").status == 200
    database.kill()
    try:
        # A cached session may still read what needs no store.
        answer = admin.get("/config")
        assert "listeners:" in answer.json()["yaml"]
        problem = admin.get("/bindings", 503)
        assert problem.headers["retry-after"] == "1" and problem.json()["type"] == "urn:keylatch:store-away"
        admin.put("/settings", {"values": {"maintenance": True}}, 403)
        Admin(replica).sign_in(status=503)
        Admin(replica, "kla_unknown").get("/config", 503)
    finally:
        database.start()
    wait_for(lambda: admin.get("/bindings", None).status_code == 200, "the store works again")


def test_wrong_passwords_of_strangers_do_not_lock_a_trusted_browser(replica):
    owner = signed_in(replica)
    stranger = Admin(replica, source="127.0.0.66")
    for _ in range(8):
        stranger.sign_in(password="wrong-horse-battery", status=None)
    elsewhere = Admin(replica, source="127.0.0.67")
    assert elsewhere.sign_in(status=None).status_code == 429, "the account is locked"
    cookie = elsewhere.client.cookies
    assert not list(cookie.jar), "a refused sign-in sets no cookie"
    fields = owner.sign_in().headers["set-cookie"]
    assert "HttpOnly" in fields and "SameSite=Strict" in fields
    # The trusted-browser cookie is for one account and one browser, and its own wrong passwords
    # count.
    thief = Admin(replica, source="127.0.0.68")
    thief.client.cookies = owner.client.cookies
    answers = [thief.sign_in(password="wrong-horse-battery", status=None).status_code for _ in range(8)]
    assert answers[:5] == [401] * 5 and 429 in answers
    held = owner.client.cookies["keylatch-browser"]
    assert PASSWORD not in held and "admin" not in held


def test_a_viewer_sees_no_accounts_and_an_export_needs_a_session(replica):
    admin = signed_in(replica)
    viewer = admin.create_account("vi", "viewer")
    admin.put("/settings", {"values": {"maintenance": True}})
    admin.put("/settings", {"values": {"maintenance": None}})
    kinds = {entry["action"].split(".")[0] for entry in admin.get("/audit").json()["items"]}
    assert {"account", "session", "setting"} <= kinds
    assert {entry["action"].split(".")[0] for entry in viewer.get("/audit").json()["items"]} == {"setting"}
    assert {json.loads(line)["action"].split(".")[0] for line in viewer.get("/audit/export").text.splitlines()} == {"setting"}
    assert viewer.get("/audit?action=session").json()["items"] == []


def test_failed_sign_ins_are_in_the_log_and_the_audit(start, echo_upstream):
    replica = start(echo_upstream, storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    other = Admin(replica, source="127.0.0.9")
    other.sign_in(password="a-wrong-horse-battery", status=401)
    # The text of the name field may be a password, so unknown names are not logged.
    other.sign_in("my-secret-horse-battery", "x", status=401)
    refused = admin.get("/audit", params={"action": "session.refused"}).json()["items"]
    assert [(entry["target"], entry["origin"], entry["actor"], entry["after"]) for entry in refused if entry["origin"] != "127.0.0.1"] == [
        ("unknown", "127.0.0.9", "anonymous", {"reason": "wrong"}), ("admin", "127.0.0.9", "anonymous", {"reason": "wrong"}),
    ]
    for _ in range(6):
        other.sign_in(password="a-wrong-horse-battery", status=None)
    log = replica.stderr.read_text()
    assert 'WARN sign-in failed client=127.0.0.9 account="admin" reason="wrong"' in log and 'reason="locked"' in log, log
    everything = log + replica.stdout.read_text() + admin.get("/audit", params={"limit": 100}).text
    assert "my-secret-horse" not in everything and "a-wrong-horse" not in everything
    assert "session.refused" in replica.command("audit", "--action", "session.refused").stdout
    viewer = admin.create_account("viewer", "viewer")
    assert not viewer.get("/audit", params={"action": "session.refused"}).json()["items"], "viewers see no audit entries about accounts"
