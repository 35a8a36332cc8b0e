"""Signing in to the admin API through a provider of OpenID Connect."""

import concurrent.futures
import json
import time
import urllib.parse

import jwt
import pytest
from support.admin import ENV, PASSWORD, Admin, signed_in
from support.provider import CLIENT, SECRET, Provider

SQLITE = "{sqlite: {path: t.db}}"


@pytest.fixture
def replica(start, echo_upstream):
    return start(echo_upstream, storage=SQLITE, env=ENV)


@pytest.fixture
def provider():
    with Provider() as provider:
        yield provider


def put(admin, provider, status=200, **changes):
    body = {"settings": {**provider.settings, **changes}, "client_secret": SECRET}
    return admin.put("/providers/corp", body, status)


def origin(admin):
    return {"origin": f"http://127.0.0.1:{admin.replica.admin}"}


def leave(browser, status=200, name="corp"):
    """A browser begins: where it is sent."""
    answer = browser.post(f"/oidc/{name}/begin", status=status, headers=origin(browser))
    return answer.json()["url"] if status == 200 else answer.json()


def query(url):
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))


def back(provider, url):
    """What the provider sends it back with, to an address of its own."""
    there = urllib.parse.urlsplit(provider.authorize(query(url)))
    return {**dict(urllib.parse.parse_qsl(there.query)), "provider": there.path.rpartition("/")[2]}


def finish(browser, returned, status=200, **more):
    answer = browser.post("/oidc/finish", returned, status, headers=origin(browser), **more)
    if status == 200:
        browser.token = answer.json()["access_token"]
    return answer.json()


def come_in(replica, provider, status=200, browser=None):
    browser = browser or Admin(replica)
    answer = finish(browser, back(provider, leave(browser)), status)
    return (browser, answer) if status == 200 else answer


def test_somebody_comes_in_and_is_what_the_provider_says(replica, provider):
    admin = signed_in(replica)
    assert Admin(replica).get("/oidc").json()["items"] == []
    made = put(admin, provider, label="The Company").json()
    assert made["has_client_secret"] is True and "client_secret" not in made["settings"] and made["settings"]["role_claim"] == "groups"
    assert Admin(replica).get("/oidc").json()["items"] == [{"name": "corp", "label": "The Company"}]
    admin.post("/providers/corp/check", status=204)
    ann, answer = come_in(replica, provider)
    assert (answer["username"], answer["role"], answer["must_change_password"]) == ("corp:ann", "viewer", False)
    ann.get("/bindings")
    ann.get("/accounts", 403)
    # Twice is once; what he is there now, he is here, and his other sign-ins have ended.
    again, _ = come_in(replica, provider)
    ann.get("/bindings")
    provider.person = {**provider.person, "groups": ["ops"], "preferred_username": "ann-lee"}
    boss, answer = come_in(replica, provider)
    assert (answer["username"], answer["role"]) == ("corp:ann", "admin"), "a name that changes there stays here"
    ann.get("/bindings", 401)
    again.get("/bindings", 401)
    listed = {account["name"]: account for account in boss.get("/accounts").json()["items"]}
    assert listed["corp:ann"]["provider"] == "corp" and listed["admin"]["provider"] is None
    # He has no password, and nobody gives him one or another role; he can be shut out.
    for change in ({"password": "correct-horse-battery"}, {"role": "viewer"}):
        assert "come from the provider `corp`" in admin.call("PATCH", "/accounts/corp:ann", change, 409).json()["detail"]
    Admin(replica).sign_in("corp:ann", PASSWORD, 401)
    boss.put("/account/password", {"current": "", "password": PASSWORD}, 422)
    admin.call("PATCH", "/accounts/corp:ann", {"disabled": True}, 200)
    boss.get("/bindings", 401)
    assert "disabled" in come_in(replica, provider, 403)["detail"]
    told = [(entry["action"], entry["actor"].split(":127")[0]) for entry in admin.get("/audit?limit=100").json()["items"]]
    assert ("provider.set", "admin") in told and ("account.made", "corp:ann") in told and ("account.changed", "corp:ann") in told
    # The secret stands nowhere in clear.
    replica.stop()
    told = replica.stderr.read_text() + replica.stdout.read_text()
    stored = b"".join(path.read_bytes() for path in replica.folder.glob("t.db*"))
    assert SECRET not in told and SECRET.encode() not in stored and provider.exchanged[0]["code"] not in told


def test_who_is_not_let_in(replica, provider):
    admin = signed_in(replica)
    put(admin, provider)
    provider.person = {"sub": "2", "preferred_username": "admin", "groups": ["guests"]}
    assert "grants you a role" in come_in(replica, provider, 403)["detail"]
    assert [account["name"] for account in admin.get("/accounts").json()["items"]] == ["admin"], "nothing was made of him"
    # Whoever is called as somebody here is, or there was, is somebody else.
    provider.person["groups"] = "staff"
    _, answer = come_in(replica, provider)
    assert (answer["username"], answer["role"]) == ("corp:admin", "viewer")
    provider.person["sub"] = "3"
    _, answer = come_in(replica, provider)
    assert answer["username"].startswith("corp:admin-") and len(answer["username"]) == len("corp:admin-12345678")
    # Another browser's sign-in, none at all, and the same twice.
    mallory, victim = Admin(replica), Admin(replica)
    returned = back(provider, leave(mallory))
    leave(victim)
    for browser in (victim, Admin(replica)):
        assert "not started in this browser" in finish(browser, returned, 403)["detail"]
    assert "another provider" in finish(mallory, {**returned, "iss": "https://evil.example"}, 403)["detail"]
    finish(mallory, returned)
    assert "not started" in finish(mallory, returned, 403)["detail"]
    browser = Admin(replica)
    cookie = browser.post("/oidc/corp/begin", headers=origin(browser)).headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/admin/api/oidc" in cookie
    # Scripts have no origin, other sites another one.
    admin.post("/oidc/corp/begin", status=400)
    admin.post("/oidc/corp/begin", status=403, headers={"origin": "https://evil.example"})
    admin.post("/oidc/nobody/begin", status=404, headers=origin(admin))


def forged(provider):
    """What an ID token may be like that is none of the provider's for us, now: changes to it, and what is said of it."""
    provider.add("stranger", "RS256", publish=False)
    yield {"signed_with": "stranger"}, "key that the provider does not publish"
    yield {"signed_with": "stranger", "headers": {"kid": "k1"}}, "signature is wrong"
    for claims, says in (
        ({"aud": "somebody-else"}, "another audience"),
        ({"aud": [CLIENT, "other"]}, "issued to another client"),
        ({"aud": [CLIENT, "other"], "azp": "other"}, "issued to another client"),
        ({"iss": "https://evil.example"}, "has another issuer"),
        ({"exp": int(time.time()) - 300}, "has expired"),
        ({"exp": None}, "no `exp`"),
        ({"nbf": int(time.time()) + 300}, "not valid yet"),
        ({"nonce": "x" * 43}, "of another sign-in"),
        ({"nonce": None}, "of another sign-in"),
        ({"sub": ""}, "no valid `sub`"),
        ({"sub": None}, "no valid `sub`"),
    ):
        yield {"claims": claims}, says


def test_tokens_that_are_none(replica, provider):
    admin = signed_in(replica)
    put(admin, provider)
    for changes, says in forged(provider):
        provider.claims, provider.signed_with, provider.headers = {}, "k1", None
        vars(provider).update(changes)
        # Each wrong one counts, so each comes from elsewhere.
        problem = come_in(replica, provider, 502, browser=Admin(replica, source=next_source()))
        assert says in problem["detail"], problem
    provider.claims, provider.signed_with = {"aud": [CLIENT, "other"], "azp": CLIENT}, "k1"
    come_in(replica, provider)
    # Signed with what everybody knows, or not at all.
    provider.claims = {}
    for token in (lambda claims: jwt.encode(claims, SECRET * 2, "HS256"), lambda claims: jwt.encode(claims, None, "none")):
        provider.token = lambda kid, headers=None, token=token, **claims: token({"iss": provider.url, "exp": int(time.time()) + 600, **claims})
        assert "ID token" in come_in(replica, provider, 502, browser=Admin(replica, source=next_source()))["detail"]
    assert {account["name"] for account in admin.get("/accounts").json()["items"]} == {"admin", "corp:ann"}


SOURCES = iter(range(10, 250))


def next_source():
    return f"127.0.0.{next(SOURCES)}"


def test_what_a_provider_may_be_like(replica, provider):
    admin = signed_in(replica)
    # It tells of people only when it is asked again, wants the secret in the form, and has other names for everything.
    provider.in_id_token, provider.auth = False, "client_secret_post"
    provider.person = {"sub": "7", "email": "Bob@Example.com", "email_verified": True, "realm_access": {"roles": ["ops"]}}
    put(admin, provider, role_claim="realm_access.roles", scopes=["email"])
    _, answer = come_in(replica, provider)
    assert (answer["username"], answer["role"]) == ("corp:bob@example.com", "admin")
    provider.info = {**provider.person, "sub": "8"}
    assert "another subject" in come_in(replica, provider, 502)["detail"]
    # What it cannot be, field by field, and that the issuer stays.
    for changes, field in (
        ({"issuer": "http://127.0.0.1:1"}, "settings.issuer"),
        ({"issuer": f"{provider.url}/?x"}, "settings.issuer"),
        ({"allow_private": False}, "settings.issuer"),
        ({"client_id": ""}, "settings.client_id"),
        ({"roles": {}}, "settings.roles"),
        ({"roles": {"root": ["x"]}}, "settings.roles.root"),
        ({"scopes": ["a b"]}, "settings.scopes"),
        ({"ca": "nonsense"}, "settings.ca"),
        ({"more": 1}, "settings.more"),
    ):
        assert put(admin, provider, 422, **changes).json()["field"] == field
    for name in ("Corp", "a b", "x" * 33, "-x", "%C3%BC"):
        admin.put(f"/providers/{name}", {"settings": provider.settings}, 422)
    # Edits that cross, and a secret that stays.
    version = admin.get("/providers/corp").json()["version"]
    admin.put("/providers/corp", {"settings": provider.settings}, headers={"if-match": f'"{version}"'})
    admin.put("/providers/corp", {"settings": provider.settings}, 412, headers={"if-match": f'"{version}"'})
    admin.put("/providers/corp", {"settings": provider.settings}, 412, headers={"if-none-match": "*"})
    provider.info, provider.person = None, {"sub": "9", "groups": ["staff"]}
    come_in(replica, provider)
    # Away, or somebody else there.
    provider.names_itself = "https://evil.example"
    assert "another issuer" in admin.post("/providers/corp/check", status=502).json()["detail"]
    provider.garbage = ("500 Internal Server Error", b"oops")
    assert "answered with 500" in admin.post("/providers/corp/check", status=502).json()["detail"]
    # With it goes whoever came through it.
    admin.call("DELETE", "/providers/corp", status=204)
    assert {account["name"] for account in admin.get("/accounts").json()["items"]} == {"admin"}
    admin.call("DELETE", "/providers/corp", status=404)


def test_codes_that_are_guessed_lock_the_address(replica, provider):
    admin = signed_in(replica)
    put(admin, provider)
    browser = Admin(replica, source="127.0.0.9")
    returned = back(provider, leave(browser))
    statuses = [finish_any(browser, {**returned, "code": f"guess-{guess}"}) for guess in range(30)]
    assert statuses[:20] == [403] * 20 and 429 in statuses and len(provider.exchanged) <= 23
    come_in(replica, provider)


def finish_any(browser, returned):
    return browser.post("/oidc/finish", returned, None, headers=origin(browser)).status_code


def test_on_another_replica_and_by_command(replicas, provider):
    one, two = replicas(2, env=ENV)
    signed_in(one)
    said = one.command("admin", "set-provider", "corp", stdin='{"settings": {}}')
    assert said.returncode == 1 and "issuer" in said.stderr
    said = one.command("admin", "set-provider", "corp", stdin=json.dumps({"settings": provider.settings, "client_secret": SECRET}))
    assert (said.returncode, said.stdout) == (0, ""), said.stderr
    shown = one.command("admin", "providers").stdout
    assert provider.url in shown and SECRET not in shown
    # Begun on one, finished on the other.
    here, there = Admin(one), Admin(two)
    returned = back(provider, leave(here))
    there.client.cookies = here.client.cookies
    finish(there, returned)
    there.get("/bindings")
    said = one.command("admin", "reset-password", "corp:ann")
    assert said.returncode == 1 and "come from the provider `corp`" in said.stderr
    assert one.command("admin", "remove-provider", "corp").returncode == 0
    there.get("/bindings", 401)


def test_a_provider_that_is_made_again_is_another_one(replica, provider):
    admin = signed_in(replica)
    first = put(admin, provider).json()
    browser = Admin(replica)
    returned = back(provider, leave(browser))
    come_in(replica, provider)
    admin.call("DELETE", "/providers/corp", status=204)
    entry = admin.get("/audit?action=provider.removed").json()["items"][0]
    assert entry["before"]["accounts"] == ["corp:ann"]
    for headers in ({"if-match": f'"{first["version"]}"'}, {"if-match": '"7"'}):
        admin.put("/providers/corp", {"settings": provider.settings}, 412, headers=headers)
    with Provider() as other:
        again = put(admin, other).json()
        assert again["version"] > first["version"]
        assert leave(Admin(replica)).startswith(other.url), "what was known of the other is not believed"
        assert "changed meanwhile" in finish(browser, returned, 409)["detail"]
        assert not provider.exchanged[1:], "nobody tells the old one the new one's secret"
        come_in(replica, other)


def test_one_provider_cannot_pass_for_another(replica, provider):
    """Mix-up: a provider that may make viewers sends somebody on to one that makes admins."""
    admin = signed_in(replica)
    provider.names_itself_back = False
    provider.person["groups"] = ["ops"]
    put(admin, provider)
    with Provider() as bad:
        admin.put("/providers/bad", {"settings": {**bad.settings, "roles": {"viewer": ["staff"]}}, "client_secret": SECRET})
        victim, mallory = Admin(replica), Admin(replica)
        sent = query(leave(victim, name="bad"))
        own = query(leave(mallory))
        # What the bad one asks of the good one; it sends back to an address that it knows for Keylatch's.
        mixed = {**sent, "code_challenge": own["code_challenge"], "nonce": own["nonce"], "redirect_uri": own["redirect_uri"]}
        returned = {**query(provider.authorize(mixed)), "provider": "corp"}
        assert "another provider" in finish(victim, returned, 403)["detail"]
        assert not bad.exchanged, "the code goes nowhere"
        # One that says who it is must say so.
        provider.names_itself_back = True
        put(admin, provider)
        returned = back(provider, leave(victim))
        del returned["iss"]
        assert "another provider" in finish(victim, returned, 403)["detail"]


def test_who_is_nobody_any_more_loses_what_he_had(replica, provider):
    admin = signed_in(replica)
    put(admin, provider)
    provider.person["groups"] = ["ops"]
    boss, _ = come_in(replica, provider)
    script = Admin(replica, boss.post("/account/tokens", {"name": "ci", "scopes": ["read", "accounts"]}, 201).json()["token"])
    script.get("/accounts")
    assert "last enabled admin account with a password" in admin.call("DELETE", "/accounts/admin", status=409).json()["detail"]
    provider.person["groups"] = ["guests"]
    come_in(replica, provider, 403)
    boss.get("/bindings", 401)
    script.get("/bindings", 401)
    assert admin.get("/audit?action=account.turned_away").json()["items"][0]["target"] == "corp:ann"
    provider.person["groups"] = ["staff"]
    assert come_in(replica, provider)[1]["role"] == "viewer"


def test_a_provider_that_is_away_locks_nobody_out_and_is_left_alone(replica, provider):
    admin = signed_in(replica)
    put(admin, provider)
    comers = [Admin(replica) for _ in range(25)]
    returned = [back(provider, leave(comer)) for comer in comers]
    provider.garbage = ("503 Service Unavailable", b"")
    assert [finish_any(comer, what) for comer, what in zip(comers, returned, strict=True)] == [502] * 25
    Admin(replica).sign_in()
    # Asked where it is: once, whoever waits.
    admin.put("/providers/corp", {"settings": provider.settings})
    asked = len(provider.server.requests)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda comer: comer.post("/oidc/corp/begin", status=None, headers=origin(comer)).status_code, comers))
    assert said == [502] * 25 and len(provider.server.requests) - asked <= 2


def test_many_come_at_once(replica, provider):
    admin = signed_in(replica)
    put(admin, provider)
    comers = [Admin(replica) for _ in range(12)]
    returned = [back(provider, leave(comer)) for comer in comers]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(finish_any, comers, returned)) == [200] * 12
        # A password that is being looked at counts as wrong until it is known to be right: so many may be at once.
        assert list(pool.map(lambda comer: comer.sign_in(status=None).status_code, comers[:5])) == [200] * 5
    assert {account["name"] for account in admin.get("/accounts").json()["items"]} == {"admin", "corp:ann"}
