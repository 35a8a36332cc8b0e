"""Tokens as real issuers sign them: algorithms, key sizes, binary secrets, and authentication to
issuers."""

import base64
import itertools
import json
import pathlib
import secrets as random
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from support.issuer import Issuer
from support.keylatch import wait_for
from support.stores import send_request
from support.upstreams import plain

# A fixed key, because generating one takes half a minute.
LARGE_PEM = (pathlib.Path(__file__).parent / "support" / "keys" / "rsa8192.pem").read_bytes()
# Each algorithm needs two keys: its own and another one.
LARGE = itertools.cycle([serialization.load_pem_private_key(LARGE_PEM, None), rsa.generate_private_key(65537, 2048)])
PEM = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def bearer(mode, more=""):
    return f"      - bearer: {{accept: [{mode}]{more}}}"


def by_pem(folder, key, algorithms):
    (folder / "key.pem").write_bytes(key.public_key().public_bytes(*PEM))
    return f"{{jwt: {{algorithms: [{algorithms}], key: {{pem: 'file:{folder}/key.pem'}}}}}}"


def by_set(folder, *jwks, algorithms):
    (folder / "keys.json").write_text(json.dumps({"keys": jwks}))
    return f"{{jwt: {{algorithms: [{algorithms}], key: {{jwks: 'file:{folder}/keys.json'}}}}}}"


def claims(**more):
    return {"sub": "alice", "exp": int(time.time()) + 600, **more}


def renamed(token, alg, key):
    """The token with another name of its algorithm, signed again, as a library with that name would
    produce it."""
    payload = token.split(".")[1]
    header = base64.urlsafe_b64encode(json.dumps({"alg": alg, "typ": "JWT"}).encode()).decode().rstrip("=")
    signature = base64.urlsafe_b64encode(key.sign(f"{header}.{payload}".encode())).decode().rstrip("=")
    return f"{header}.{payload}.{signature}"


@pytest.mark.parametrize(("alg", "make"), [
    ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
    ("ES384", lambda: ec.generate_private_key(ec.SECP384R1())),
    ("ES512", lambda: ec.generate_private_key(ec.SECP521R1())),
    ("EdDSA", ed25519.Ed25519PrivateKey.generate),
    ("RS256", lambda: rsa.generate_private_key(65537, 2048)),
    ("PS384", lambda: rsa.generate_private_key(65537, 3072)),
    ("PS256", lambda: next(LARGE)),
])
def test_each_algorithm_by_pem_and_by_set(start, echo_upstream, tmp_path, alg, make):
    key, other = make(), make()
    jwk = json.loads(jwt.get_algorithm_by_name(alg).to_jwk(key.public_key()))
    for mode in (by_pem(tmp_path, key, alg), by_set(tmp_path, {**jwk, "alg": alg}, algorithms=alg), by_set(tmp_path, jwk, algorithms=alg)):
        replica = start(echo_upstream, route_filters=bearer(mode))
        token = jwt.encode(claims(), key, alg)
        assert send_request(replica, token).status == 200
        assert send_request(replica, jwt.encode(claims(), other, alg)).status == 401
        head, _, signature = token.rpartition(".")
        assert send_request(replica, f"{head}x.{signature}").status == 401


def test_both_names_of_ed25519(start, echo_upstream, tmp_path):
    """RFC 9864 names the algorithm `Ed25519`; `EdDSA` is the older name."""
    key = ed25519.Ed25519PrivateKey.generate()
    token = jwt.encode(claims(), key, "EdDSA")
    jwk = json.loads(jwt.get_algorithm_by_name("EdDSA").to_jwk(key.public_key()))
    for mode in (by_pem(tmp_path, key, "EdDSA, Ed25519"), by_set(tmp_path, {**jwk, "alg": "Ed25519"}, algorithms="EdDSA, Ed25519")):
        replica = start(echo_upstream, route_filters=bearer(mode))
        assert [send_request(replica, each).status for each in (token, renamed(token, "Ed25519", key))] == [200, 200]
    only = start(echo_upstream, route_filters=bearer(by_pem(tmp_path, key, "Ed25519")))
    assert [send_request(only, each).status for each in (token, renamed(token, "Ed25519", key))] == [401, 200]


def test_rsa_key_sizes(start, echo_upstream, tmp_path):
    good = start(echo_upstream)
    for bits, says in ((1024, "has 1024 bits; at least 2048"), (8200, "has 8200 bits; at most 8192")):
        key = rsa.generate_private_key(65537, bits) if bits < 4096 else None
        jwk = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key())) if key else {
            "kty": "RSA", "e": "AQAB", "n": base64.urlsafe_b64encode(b"\xff" * (bits // 8)).decode().rstrip("="),
        }
        modes = [by_set(tmp_path, jwk, algorithms="RS256")] + ([by_pem(tmp_path, key, "RS256")] if key else [])
        for mode in modes:
            good.write(route_filters=bearer(mode))
            checked = good.command("check")
            assert checked.returncode != 0 and says in checked.stdout + checked.stderr


def test_binary_secrets(start, echo_upstream, tmp_path):
    secret = b"\xff\x00\n" + random.token_bytes(45)
    (tmp_path / "secret").write_bytes(secret)
    (tmp_path / "secret").chmod(0o600)
    standard, url = base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode().rstrip("=")
    for key in (f"secret_base64: '{standard}'", f"secret_base64: '{url}'", f"secret_file: {tmp_path}/secret"):
        replica = start(echo_upstream, route_filters=bearer(f"{{jwt: {{algorithms: [HS256], key: {{{key}}}}}}}"))
        assert send_request(replica, jwt.encode(claims(), secret, "HS256")).status == 200
        assert send_request(replica, jwt.encode(claims(), secret[:-1], "HS256")).status == 401
    for key in ("secret_base64: 'AAAA'", "secret_base64: '!!!!'", f"secret_file: {tmp_path}/none"):
        replica.write(route_filters=bearer(f"{{jwt: {{algorithms: [HS256], key: {{{key}}}}}}}"))
        assert replica.command("check").returncode != 0


def test_a_numeric_subject(start, echo_upstream, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    mode = by_pem(tmp_path, key, "ES256")
    replica = start(echo_upstream, route_filters=bearer(mode, ", tell_upstream: {subject: X-User}"))
    token = jwt.api_jws.encode(json.dumps(claims(sub=1234567890123456789)).encode(), key, "ES256", headers={"typ": "JWT"})
    answer = send_request(replica, token)
    assert ["x-user", "1234567890123456789"] in json.loads(answer.body)["headers"]


@pytest.mark.parametrize(("client", "secret", "pair"), [
    ("my-client", "a.b_c*d~e", "my-client:a.b_c*d%7Ee"),
    ("my client", "a+b/c=&:é", "my+client:a%2Bb%2Fc%3D%26%3A%C3%A9"),
])
def test_authentication_for_introspection(start, echo_upstream, client, secret, pair):
    """`client_secret_basic` form-encodes both values (RFC 6749, appendix B); `client_secret_post`
    sends them in the form."""
    with Issuer() as issuer:
        issuer.tokens["t1"] = {"active": True, "sub": "alice"}
        for auth in ("", ", client_auth: client_secret_post"):
            issuer.asked["introspect"].clear()
            mode = f'{{introspection: {{endpoint: {{url: "{issuer.url}/introspect", allow_private: true}}, client_id: "{client}", client_secret: "{secret}"{auth}}}}}'
            replica = start(echo_upstream, route_filters=bearer(mode))
            assert send_request(replica, "t1").status == 200
            [(headers, form)] = issuer.asked["introspect"]
            if auth:
                assert "authorization" not in headers and (form["client_id"], form["client_secret"]) == (client, secret)
            else:
                assert base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode() == pair
                assert "client_secret" not in form


def test_a_key_set_behind_a_password_that_is_never_shown(start, echo_upstream):
    with Issuer() as issuer:
        issuer.add("first")
        answers = issuer.server.answer

        def guarded(request, send):
            if dict(request["headers"]).get("authorization") != "Bearer keys-please":
                send(plain("401 Unauthorized"))
                return True
            return answers(request, send)

        issuer.server.answer = guarded
        url = f"{issuer.url}/keys?tenant=secret-tenant"
        key = f'{{jwks_url: {{url: "{url}", allow_private: true, authorization: "Bearer keys-please"}}}}'
        replica = start(echo_upstream, route_filters=bearer(f"{{jwt: {{algorithms: [ES256], key: {key}, refresh: {{every: 10s}}}}}}"))
        assert send_request(replica, issuer.token("first")).status == 200
        wrong = start(echo_upstream, route_filters=bearer(f'{{jwt: {{algorithms: [ES256], key: {key.replace("keys-please", "nonsense")}}}}}'))
        log = wait_for(lambda: [line for line in wrong.stderr.read_text().splitlines() if "refresh failed" in line], "a warning")
        assert f"{issuer.url}/keys" in log[0] and "secret-tenant" not in log[0] and "nonsense" not in log[0]
        misplaced = f'{{introspection: {{endpoint: {{url: "{issuer.url}/i", allow_private: true, authorization: x}}, client_id: a, client_secret: b}}}}'
        wrong.write(route_filters=bearer(misplaced))
        checked = wrong.command("check")
        assert checked.returncode != 0 and "is allowed for `jwks_url` and `discovery` only" in checked.stdout + checked.stderr


def test_outdated_keys_are_not_used(start, echo_upstream):
    with Issuer() as issuer:
        issuer.add("first")
        key = f'{{jwks_url: {{url: "{issuer.url}/keys", allow_private: true}}}}'
        # `open` applies only until the first successful fetch.
        mode = f"{{jwt: {{algorithms: [ES256], key: {key}, on_failure: open, refresh: {{every: 10s, max_age: 12s}}}}}}"
        replica = start(echo_upstream, route_filters=bearer(mode))
        token = issuer.token("first")
        assert send_request(replica, token).status == 200
        issuer.garbage = ("500 Oops", b"")
        wait_for(lambda: send_request(replica, token).status == 503, "the key set is too old", 30)
        issuer.garbage = None
        wait_for(lambda: send_request(replica, token).status == 200, "the key set is fresh again", 35)
