"""An OpenID Connect provider that refuses the requests which the standards require it to refuse."""

import base64
import hashlib
import secrets
import urllib.parse

from support.issuer import Issuer, basic, json_answer
from support.upstreams import plain

CLIENT, SECRET = "keylatch", "hunter2:with/odd characters"


class Provider(Issuer):
    """Signs every browser in as `person`, the claims of one user."""

    def __init__(self, **more):
        super().__init__(**more)
        self.add("k1", "RS256")
        self.person = {"sub": "1", "preferred_username": "ann", "groups": ["staff"]}
        self.in_id_token = True
        self.auth = "client_secret_basic"
        self.claims, self.signed_with, self.headers = {}, "k1", None
        self.codes, self.access, self.exchanged = {}, {}, []
        self.info = None
        self.denies = None
        self.names_itself_back = True

    @property
    def settings(self):
        return {"issuer": self.url, "client_id": CLIENT, "roles": {"viewer": ["staff"], "admin": ["ops"]}, "allow_private": True}

    def _answer(self, request, send):
        path, _, query = request["target"].partition("?")
        if self.garbage is None and path == "/.well-known/openid-configuration":
            self.asked["discovery"] += 1
            ways = {"authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token", "userinfo_endpoint": f"{self.url}/userinfo"}
            send(json_answer({"issuer": self.names_itself, "jwks_uri": f"{self.url}/keys", "token_endpoint_auth_methods_supported": [self.auth], "authorization_response_iss_parameter_supported": self.names_itself_back, **ways}))
            return True
        if self.garbage is None and path == "/authorize":
            send(plain("302 Found", headers=[f"Location: {self.authorize(dict(urllib.parse.parse_qsl(query)))}"]))
            return True
        if self.garbage is None and path == "/token":
            send(self._token(dict(request["headers"]), dict(urllib.parse.parse_qsl(request["body"].decode()))))
            return True
        if self.garbage is None and path == "/userinfo":
            known = self.access.get(dict(request["headers"]).get("authorization", "").removeprefix("Bearer "))
            send(json_answer(self.info or known) if known else plain("401 Unauthorized"))
            return True
        return super()._answer(request, send)

    def authorize(self, asked):
        """The redirect back to the client after a successful authentication."""
        assert asked["response_type"] == "code" and asked["client_id"] == CLIENT and "openid" in asked["scope"].split()
        assert asked["code_challenge_method"] == "S256" and len(asked["state"]) >= 32 and len(asked["nonce"]) >= 32
        if self.denies:
            back = {"error": self.denies, "error_description": "You may not."}
        else:
            code = secrets.token_urlsafe()
            self.codes[code] = asked
            back = {"code": code, **({"iss": self.url} if self.names_itself_back else {})}
        return asked["redirect_uri"] + "?" + urllib.parse.urlencode({**back, "state": asked["state"]})

    def _token(self, headers, form):
        self.exchanged.append(form)
        client = basic(*map(urllib.parse.quote_plus, (CLIENT, SECRET)))
        shown = headers.get("authorization") == client if self.auth == "client_secret_basic" else form.get("client_secret") == SECRET
        asked = self.codes.pop(form.get("code"), None)
        if not shown:
            return plain("401 Unauthorized", body=b'{"error":"invalid_client"}', headers=["Content-Type: application/json"])
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        if not asked or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"] or form["grant_type"] != "authorization_code":
            return plain("400 Bad Request", body=b'{"error":"invalid_grant"}', headers=["Content-Type: application/json"])
        access = secrets.token_urlsafe()
        self.access[access] = self.person
        told = self.person if self.in_id_token else {"sub": self.person["sub"]}
        claims = {"aud": CLIENT, "nonce": asked["nonce"], "iat": 1, **told, **self.claims}
        return json_answer({"id_token": self.token(self.signed_with, headers=self.headers, **claims), "access_token": access, "token_type": "Bearer"})
