"""A token issuer: it publishes its keys, answers introspection, and records the requests that it
receives."""

import base64
import json
import threading
import time
import urllib.parse

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from support.upstreams import Scripted, plain

MAKE = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class Issuer:
    """Keeps keys by `kid`; its key set contains those in `published`."""

    def __init__(self, tls=None, port=None):
        self.keys, self.published = {}, []
        self.asked = {"jwks": 0, "discovery": 0, "introspect": []}
        self.garbage = None
        self.tokens = {}
        self.delay = 0.0
        self.named = True
        self.lock = threading.Lock()
        self.server = Scripted(self._answer, tls=tls)
        self.port = self.server.port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.names_itself = self.url

    def add(self, kid, alg="ES256", publish=True):
        self.keys[kid] = (alg, MAKE[alg]())
        if publish:
            self.published.append(kid)

    def token(self, kid, headers=None, **claims):
        """A signed token. `claims` add to or replace the default claims; `None` removes one."""
        alg, key = self.keys[kid]
        usual = {"iss": self.url, "sub": "alice", "exp": int(time.time()) + 600, **claims}
        names = {k: v for k, v in {"kid": kid, **(headers or {})}.items() if v is not None}
        return jwt.encode({k: v for k, v in usual.items() if v is not None}, key, alg, headers=names)

    def _jwk(self, kid):
        alg, key = self.keys[kid]
        algorithm = jwt.get_algorithm_by_name(alg)
        named = {"kid": kid, "alg": alg} if self.named else {}
        return {**json.loads(algorithm.to_jwk(key.public_key())), "use": "sig", **named}

    def _answer(self, request, send):
        if self.delay:
            time.sleep(self.delay)
        path = request["target"].partition("?")[0]
        if self.garbage is not None:
            send(plain(*self.garbage))
        elif path == "/keys":
            self.asked["jwks"] += 1
            send(json_answer({"keys": [self._jwk(kid) for kid in self.published]}))
        elif path == "/.well-known/openid-configuration":
            self.asked["discovery"] += 1
            send(json_answer({"issuer": self.names_itself, "jwks_uri": f"{self.url}/keys"}))
        elif path == "/introspect":
            form = dict(urllib.parse.parse_qsl(request["body"].decode()))
            with self.lock:
                self.asked["introspect"].append((dict(request["headers"]), form))
            send(json_answer(self.tokens.get(form["token"], {"active": False})))
        else:
            send(plain("404 Not Found"))
        return True

    def close(self):
        self.server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def json_answer(value):
    return plain(body=json.dumps(value).encode(), headers=["Content-Type: application/json"])


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
