"""Sign-in to the admin API through an OpenID Connect provider."""

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


def configure_provider(admin, provider, status=200, **changes):
    body = {"settings": {**provider.settings, **changes}, "client_secret": SECRET}
    return admin.put("/providers/corp", body, status)


def origin(admin):
    return {"origin": f"http://127.0.0.1:{admin.replica.admin}"}


def begin_sign_in(browser, status=200, name="corp"):
    """A browser begins a sign-in; returns the URL of its redirect."""
    answer = browser.post(f"/oidc/{name}/begin", status=status, headers=origin(browser))
    return answer.json()["url"] if status == 200 else answer.json()


def query(url):
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))


def redirect_parameters(provider, url):
    """The parameters of the provider's redirect back to Keylatch."""
    there = urllib.parse.urlsplit(provider.authorize(query(url)))
    return {**dict(urllib.parse.parse_qsl(there.query)), "provider": there.path.rpartition("/")[2]}


def finish_sign_in(browser, returned, status=200, **more):
    answer = browser.post("/oidc/finish", returned, status, headers=origin(browser), **more)
    if status == 200:
        browser.token = answer.json()["access_token"]
    return answer.json()


def complete_sign_in(replica, provider, status=200, browser=None):
    browser = browser or Admin(replica)
    answer = finish_sign_in(browser, redirect_parameters(provider, begin_sign_in(browser)), status)
    return (browser, answer) if status == 200 else answer


def test_a_sign_in_takes_name_and_role_from_the_provider(replica, provider):
    admin = signed_in(replica)
    assert Admin(replica).get("/oidc").json()["items"] == []
    made = configure_provider(admin, provider, label="The Company").json()
    assert made["has_client_secret"] is True and "client_secret" not in made["settings"] and made["settings"]["role_claim"] == "groups"
    assert Admin(replica).get("/oidc").json()["items"] == [{"name": "corp", "label": "The Company"}]
    admin.post("/providers/corp/check", status=204)
    ann, answer = complete_sign_in(replica, provider)
    assert (answer["username"], answer["role"], answer["must_change_password"]) == ("corp:ann", "viewer", False)
    ann.get("/bindings")
    ann.get("/accounts", 403)
    # A second sign-in uses the same account, takes over the role of the provider, and ends the
    # user's other sessions.
    again, _ = complete_sign_in(replica, provider)
    ann.get("/bindings")
    provider.person = {**provider.person, "groups": ["ops"], "preferred_username": "ann-lee"}
    boss, answer = complete_sign_in(replica, provider)
    assert (answer["username"], answer["role"]) == ("corp:ann", "admin"), "a changed name at the provider does not rename the account"
    ann.get("/bindings", 401)
    again.get("/bindings", 401)
    listed = {account["name"]: account for account in boss.get("/accounts").json()["items"]}
    assert listed["corp:ann"]["provider"] == "corp" and listed["admin"]["provider"] is None
    # The account has no password; neither a password nor a role can be set; it can be disabled.
    for change in ({"password": "correct-horse-battery"}, {"role": "viewer"}):
        assert "come from the provider `corp`" in admin.call("PATCH", "/accounts/corp:ann", change, 409).json()["detail"]
    Admin(replica).sign_in("corp:ann", PASSWORD, 401)
    boss.put("/account/password", {"current": "", "password": PASSWORD}, 422)
    admin.call("PATCH", "/accounts/corp:ann", {"disabled": True}, 200)
    boss.get("/bindings", 401)
    assert "disabled" in complete_sign_in(replica, provider, 403)["detail"]
    told = [(entry["action"], entry["actor"].split(":127")[0]) for entry in admin.get("/audit?limit=100").json()["items"]]
    assert ("provider.set", "admin") in told and ("account.made", "corp:ann") in told and ("account.changed", "corp:ann") in told
    # The client secret is stored and logged only encrypted.
    replica.stop()
    told = replica.stderr.read_text() + replica.stdout.read_text()
    stored = b"".join(path.read_bytes() for path in replica.folder.glob("t.db*"))
    assert SECRET not in told and SECRET.encode() not in stored and provider.exchanged[0]["code"] not in told


def test_refused_sign_ins(replica, provider):
    admin = signed_in(replica)
    configure_provider(admin, provider)
    provider.person = {"sub": "2", "preferred_username": "admin", "groups": ["guests"]}
    assert "grants you a role" in complete_sign_in(replica, provider, 403)["detail"]
    assert [account["name"] for account in admin.get("/accounts").json()["items"]] == ["admin"], "no account was created"
    # A user with the name of a local account, or of an earlier user, is another user.
    provider.person["groups"] = "staff"
    _, answer = complete_sign_in(replica, provider)
    assert (answer["username"], answer["role"]) == ("corp:admin", "viewer")
    provider.person["sub"] = "3"
    _, answer = complete_sign_in(replica, provider)
    assert answer["username"].startswith("corp:admin-") and len(answer["username"]) == len("corp:admin-12345678")
    # A sign-in of another browser, an unknown sign-in, and a replayed one.
    mallory, victim = Admin(replica), Admin(replica)
    returned = redirect_parameters(provider, begin_sign_in(mallory))
    begin_sign_in(victim)
    for browser in (victim, Admin(replica)):
        assert "not started in this browser" in finish_sign_in(browser, returned, 403)["detail"]
    assert "another provider" in finish_sign_in(mallory, {**returned, "iss": "https://evil.example"}, 403)["detail"]
    finish_sign_in(mallory, returned)
    assert "not started" in finish_sign_in(mallory, returned, 403)["detail"]
    browser = Admin(replica)
    cookie = browser.post("/oidc/corp/begin", headers=origin(browser)).headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/admin/api/oidc" in cookie
    # A request without an origin, and one from another origin.
    admin.post("/oidc/corp/begin", status=400)
    admin.post("/oidc/corp/begin", status=403, headers={"origin": "https://evil.example"})
    admin.post("/oidc/absent/begin", status=404, headers=origin(admin))


def forged(provider):
    """Invalid ID tokens: changes of claims and headers, and the expected message for each."""
    provider.add("stranger", "RS256", publish=False)
    yield {"signed_with": "stranger"}, "key that the provider does not publish"
    yield {"signed_with": "stranger", "headers": {"kid": "k1"}}, "signature is wrong"
    for claims, says in (
        ({"aud": "another-else"}, "another audience"),
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


def test_invalid_id_tokens(replica, provider):
    admin = signed_in(replica)
    configure_provider(admin, provider)
    for changes, says in forged(provider):
        provider.claims, provider.signed_with, provider.headers = {}, "k1", None
        vars(provider).update(changes)
        # Each failure counts for its address, so each attempt uses another address.
        problem = complete_sign_in(replica, provider, 502, browser=Admin(replica, source=next_source()))
        assert says in problem["detail"], problem
    provider.claims, provider.signed_with = {"aud": [CLIENT, "other"], "azp": CLIENT}, "k1"
    complete_sign_in(replica, provider)
    # Signed with a public value, or unsigned.
    provider.claims = {}
    for token in (lambda claims: jwt.encode(claims, SECRET * 2, "HS256"), lambda claims: jwt.encode(claims, None, "none")):
        provider.token = lambda kid, headers=None, token=token, **claims: token({"iss": provider.url, "exp": int(time.time()) + 600, **claims})
        assert "ID token" in complete_sign_in(replica, provider, 502, browser=Admin(replica, source=next_source()))["detail"]
    assert {account["name"] for account in admin.get("/accounts").json()["items"]} == {"admin", "corp:ann"}


SOURCES = iter(range(10, 250))


def next_source():
    return f"127.0.0.{next(SOURCES)}"


def test_provider_variants_and_validation(replica, provider):
    admin = signed_in(replica)
    # Claims only at the userinfo endpoint, client secret in the form, and other names of claims.
    provider.in_id_token, provider.auth = False, "client_secret_post"
    provider.person = {"sub": "7", "email": "Bob@Example.com", "email_verified": True, "realm_access": {"roles": ["ops"]}}
    configure_provider(admin, provider, role_claim="realm_access.roles", scopes=["email"])
    _, answer = complete_sign_in(replica, provider)
    assert (answer["username"], answer["role"]) == ("corp:bob@example.com", "admin")
    provider.info = {**provider.person, "sub": "8"}
    assert "another subject" in complete_sign_in(replica, provider, 502)["detail"]
    # Invalid values of each field, and a change of the issuer.
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
        assert configure_provider(admin, provider, 422, **changes).json()["field"] == field
    for name in ("Corp", "a b", "x" * 33, "-x", "%C3%BC"):
        admin.put(f"/providers/{name}", {"settings": provider.settings}, 422)
    # Conflicting edits, and an edit that keeps the secret.
    version = admin.get("/providers/corp").json()["version"]
    admin.put("/providers/corp", {"settings": provider.settings}, headers={"if-match": f'"{version}"'})
    admin.put("/providers/corp", {"settings": provider.settings}, 412, headers={"if-match": f'"{version}"'})
    admin.put("/providers/corp", {"settings": provider.settings}, 412, headers={"if-none-match": "*"})
    provider.info, provider.person = None, {"sub": "9", "groups": ["staff"]}
    complete_sign_in(replica, provider)
    # An unreachable provider, and one with another issuer.
    provider.names_itself = "https://evil.example"
    assert "another issuer" in admin.post("/providers/corp/check", status=502).json()["detail"]
    provider.garbage = ("500 Internal Server Error", b"oops")
    assert "answered with 500" in admin.post("/providers/corp/check", status=502).json()["detail"]
    # Removing the provider removes the accounts of its users.
    admin.call("DELETE", "/providers/corp", status=204)
    assert {account["name"] for account in admin.get("/accounts").json()["items"]} == {"admin"}
    admin.call("DELETE", "/providers/corp", status=404)


def test_guessed_codes_lock_the_address(replica, provider):
    admin = signed_in(replica)
    configure_provider(admin, provider)
    browser = Admin(replica, source="127.0.0.9")
    returned = redirect_parameters(provider, begin_sign_in(browser))
    statuses = [finish_any(browser, {**returned, "code": f"guess-{guess}"}) for guess in range(30)]
    assert statuses[:20] == [403] * 20 and 429 in statuses and len(provider.exchanged) <= 23
    complete_sign_in(replica, provider)


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
    # Begun on one replica, finished on the other.
    here, there = Admin(one), Admin(two)
    returned = redirect_parameters(provider, begin_sign_in(here))
    there.client.cookies = here.client.cookies
    finish_sign_in(there, returned)
    there.get("/bindings")
    said = one.command("admin", "reset-password", "corp:ann")
    assert said.returncode == 1 and "come from the provider `corp`" in said.stderr
    assert one.command("admin", "remove-provider", "corp").returncode == 0
    there.get("/bindings", 401)


def test_a_recreated_provider_is_a_new_one(replica, provider):
    admin = signed_in(replica)
    first = configure_provider(admin, provider).json()
    browser = Admin(replica)
    returned = redirect_parameters(provider, begin_sign_in(browser))
    complete_sign_in(replica, provider)
    admin.call("DELETE", "/providers/corp", status=204)
    entry = admin.get("/audit?action=provider.removed").json()["items"][0]
    assert entry["before"]["accounts"] == ["corp:ann"]
    for headers in ({"if-match": f'"{first["version"]}"'}, {"if-match": '"7"'}):
        admin.put("/providers/corp", {"settings": provider.settings}, 412, headers=headers)
    with Provider() as other:
        again = configure_provider(admin, other).json()
        assert again["version"] > first["version"]
        assert begin_sign_in(Admin(replica)).startswith(other.url), "cached keys of the old provider are not used"
        assert "changed meanwhile" in finish_sign_in(browser, returned, 409)["detail"]
        assert not provider.exchanged[1:], "the new secret is not sent to the old provider"
        complete_sign_in(replica, other)


def test_one_provider_cannot_impersonate_another(replica, provider):
    """Mix-up attack: a provider that may grant `viewer` redirects the browser to one that grants
    `admin`."""
    admin = signed_in(replica)
    provider.names_itself_back = False
    provider.person["groups"] = ["ops"]
    configure_provider(admin, provider)
    with Provider() as bad:
        admin.put("/providers/bad", {"settings": {**bad.settings, "roles": {"viewer": ["staff"]}}, "client_secret": SECRET})
        victim, mallory = Admin(replica), Admin(replica)
        sent = query(begin_sign_in(victim, name="bad"))
        own = query(begin_sign_in(mallory))
        # The malicious provider sends the browser to the honest one, with Keylatch's redirect URI.
        mixed = {**sent, "code_challenge": own["code_challenge"], "nonce": own["nonce"], "redirect_uri": own["redirect_uri"]}
        returned = {**query(provider.authorize(mixed)), "provider": "corp"}
        assert "another provider" in finish_sign_in(victim, returned, 403)["detail"]
        assert not bad.exchanged, "the code is sent to no provider"
        # A provider that supports the `iss` parameter (RFC 9207) must send it.
        provider.names_itself_back = True
        configure_provider(admin, provider)
        returned = redirect_parameters(provider, begin_sign_in(victim))
        del returned["iss"]
        assert "another provider" in finish_sign_in(victim, returned, 403)["detail"]


def test_a_user_without_a_role_loses_sessions_and_tokens(replica, provider):
    admin = signed_in(replica)
    configure_provider(admin, provider)
    provider.person["groups"] = ["ops"]
    boss, _ = complete_sign_in(replica, provider)
    script = Admin(replica, boss.post("/account/tokens", {"name": "ci", "scopes": ["read", "accounts"]}, 201).json()["token"])
    script.get("/accounts")
    assert "last enabled admin account with a password" in admin.call("DELETE", "/accounts/admin", status=409).json()["detail"]
    provider.person["groups"] = ["guests"]
    complete_sign_in(replica, provider, 403)
    boss.get("/bindings", 401)
    script.get("/bindings", 401)
    assert admin.get("/audit?action=account.turned_away").json()["items"][0]["target"] == "corp:ann"
    provider.person["groups"] = ["staff"]
    assert complete_sign_in(replica, provider)[1]["role"] == "viewer"


def test_an_unreachable_provider_locks_no_address_and_gets_few_requests(replica, provider):
    admin = signed_in(replica)
    configure_provider(admin, provider)
    comers = [Admin(replica) for _ in range(25)]
    returned = [redirect_parameters(provider, begin_sign_in(comer)) for comer in comers]
    provider.garbage = ("503 Service Unavailable", b"")
    assert [finish_any(comer, what) for comer, what in zip(comers, returned, strict=True)] == [502] * 25
    Admin(replica).sign_in()
    # One discovery request, however many sign-ins wait for it.
    admin.put("/providers/corp", {"settings": provider.settings})
    asked = len(provider.server.requests)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda comer: comer.post("/oidc/corp/begin", status=None, headers=origin(comer)).status_code, comers))
    assert said == [502] * 25 and len(provider.server.requests) - asked <= 2


def test_concurrent_sign_ins(replica, provider):
    admin = signed_in(replica)
    configure_provider(admin, provider)
    comers = [Admin(replica) for _ in range(12)]
    returned = [redirect_parameters(provider, begin_sign_in(comer)) for comer in comers]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(finish_any, comers, returned)) == [200] * 12
        # A password counts as wrong while it is verified, which limits concurrent sign-ins.
        assert list(pool.map(lambda comer: comer.sign_in(status=None).status_code, comers[:5])) == [200] * 5
    assert {account["name"] for account in admin.get("/accounts").json()["items"]} == {"admin", "corp:ann"}
