"""A strict ACME server (RFC 8555) that issues certificates.

It accepts each nonce once, verifies signatures and their URLs, and validates names by HTTP-01 or
TLS-ALPN-01 (RFC 8737)."""

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import secrets
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from .authority import Authority, now

IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


def b64url_decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64url_encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Refused(Exception):
    def __init__(self, kind, detail, status=400):
        super().__init__(detail)
        self.problem = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail, "status": status}
        self.status = status


def public_key(jwk):
    if (jwk.get("kty"), jwk.get("crv")) != ("EC", "P-256"):
        raise Refused("badPublicKey", "only P-256")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(b64url_decode(jwk["x"])), int.from_bytes(b64url_decode(jwk["y"])), ec.SECP256R1())
    return numbers.public_key()


def thumbprint(jwk):
    return b64url_encode(hashlib.sha256(json.dumps({key: jwk[key] for key in ("crv", "kty", "x", "y")}, separators=(",", ":"), sort_keys=True).encode()).digest())


class Acme:
    """The HTTPS server.

    `reach(name)` returns the loopback ports of the name's own server: {"http": …, "tls": …}."""

    def __init__(self, folder, reach, external=None, lifetime=datetime.timedelta(days=90)):
        self.authority = Authority(folder, "Test ACME CA")
        self.reach, self.external, self.lifetime = reach, external, lifetime
        self.nonces, self.accounts, self.orders, self.authorizations = set(), {}, {}, {}
        self.certificates, self.log, self.challenge_types = {}, [], ("http-01", "tls-alpn-01")
        self.lock = threading.RLock()
        # Faults: the number of nonces to refuse, the path prefix that fails, and the `Retry-After`
        # of errors.
        self.bad_nonces, self.failing_path, self.retry_after = 0, None, None
        # Issuance: the age of a new certificate, another public key to certify, and the delay
        # before validation in seconds.
        self.age, self.key, self.validation_delay_s = datetime.timedelta(0), None, 0
        acme = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, body=None, headers=()):
                data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                kind = "application/problem+json" if status >= 400 else "application/json"
                for name, value in {"Content-Type": kind, "Replay-Nonce": acme.nonce(), "Cache-Control": "no-store", **dict(headers)}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def do_HEAD(self):
                self.answer(200 if self.path == "/nonce" else 405)

            def do_GET(self):
                if self.path == "/directory":
                    meta = {"termsOfService": acme.url + "/terms", "externalAccountRequired": bool(acme.external)}
                    names = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order", "revokeCert": "revoke", "keyChange": "change"}
                    self.answer(200, {**{name: f"{acme.url}/{path}" for name, path in names.items()}, "meta": meta})
                else:
                    self.answer(405, Refused("malformed", "use POST-as-GET", 405).problem)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    with acme.lock:
                        self.answer(*acme.post(self.path, self.headers, body))
                except Refused as refused:
                    self.answer(refused.status, refused.problem, (("Retry-After", acme.retry_after),) if acme.retry_after else ())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        issued = self.authority.issue("acme", "IP:127.0.0.1")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(issued.cert, issued.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    def nonce(self):
        fresh = secrets.token_urlsafe(16)
        self.nonces.add(fresh)
        return fresh

    # JWS

    def verified_jws(self, path, headers, body):
        if headers.get("Content-Type") != "application/jose+json":
            raise Refused("malformed", "wrong content type", 415)
        jws = json.loads(body)
        protected = json.loads(b64url_decode(jws["protected"]))
        if set(jws) != {"protected", "payload", "signature"} or protected.get("alg") != "ES256" or protected.get("url") != self.url + path:
            raise Refused("malformed", f"wrong protected header {protected} for {path}")
        if protected.get("nonce") not in self.nonces or self.bad_nonces > 0:
            self.bad_nonces -= 1
            raise Refused("badNonce", "unknown nonce")
        self.nonces.discard(protected["nonce"])
        if ("jwk" in protected) == ("kid" in protected) or ("jwk" in protected) != (path == "/account"):
            raise Refused("malformed", "use jwk for a new account, and kid otherwise")
        account = None
        if "kid" in protected:
            account = self.accounts.get(protected["kid"])
            if not account:
                raise Refused("accountDoesNotExist", "no such account", 401)
        jwk = account["jwk"] if account else protected["jwk"]
        signature = b64url_decode(jws["signature"])
        if len(signature) != 64:
            raise Refused("malformed", "wrong signature length")
        encoded = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        public_key(jwk).verify(encoded, f"{jws['protected']}.{jws['payload']}".encode(), ec.ECDSA(hashes.SHA256()))
        return account, jwk, json.loads(b64url_decode(jws["payload"])) if jws["payload"] else None

    def post(self, path, headers, body):
        self.log.append(path)
        if self.failing_path and path.startswith(self.failing_path):
            raise Refused("serverInternal", "internal error", 503 if self.retry_after else 500)
        account, jwk, payload = self.verified_jws(path, headers, body)
        kind, _, number = path.strip("/").partition("/")
        match kind:
            case "account":
                return self.new_account(jwk, payload)
            case "accounts":
                account |= payload or {}
                return 200, {"status": "valid", "contact": account["contact"]}, ()
            case "order" if not number:
                return self.new_order(account, payload)
            case "order":
                return 200, self.public_view(self.orders[number]), ()
            case "authorization":
                return 200, self.public_view(self.authorizations[number]), ()
            case "challenge":
                return self.try_challenge(account, number, payload)
            case "finalize":
                return self.finalize(self.orders[number], payload)
            case "certificate":
                return 200, self.certificates[number], (("Content-Type", "application/pem-certificate-chain"),)
        raise Refused("malformed", "no such resource", 404)

    def new_account(self, jwk, payload):
        if not payload.get("termsOfServiceAgreed"):
            raise Refused("userActionRequired", "agree to the terms of service", 403)
        if self.external:
            bound = payload.get("externalAccountBinding") or {}
            if not bound:
                raise Refused("externalAccountRequired", "an external account binding is required", 403)
            signed = f"{bound['protected']}.{bound['payload']}".encode()
            good = hmac.compare_digest(hmac.new(self.external[1], signed, hashlib.sha256).digest(), b64url_decode(bound["signature"]))
            head = json.loads(b64url_decode(bound["protected"]))
            if not good or head != {"alg": "HS256", "kid": self.external[0], "url": self.url + "/account"} or json.loads(b64url_decode(bound["payload"])) != jwk:
                raise Refused("unauthorized", "the external account binding does not match", 403)
        kid = f"{self.url}/accounts/{thumbprint(jwk)}"
        known = kid in self.accounts
        self.accounts.setdefault(kid, {"jwk": jwk, "contact": payload.get("contact", [])})
        return 200 if known else 201, {"status": "valid", "contact": payload.get("contact", [])}, (("Location", kid),)

    def new_order(self, account, payload):
        number, links = secrets.token_hex(8), []
        for identifier in payload["identifiers"]:
            if identifier["type"] != "dns" or "*" in identifier["value"]:
                raise Refused("unsupportedIdentifier", "only DNS names without wildcards")
            each = secrets.token_hex(8)
            challenges = [{"type": kind, "url": f"{self.url}/challenge/{each}.{kind}", "status": "pending", "token": secrets.token_urlsafe(32)} for kind in self.challenge_types]
            self.authorizations[each] = {"status": "pending", "identifier": identifier, "challenges": challenges, "_account": account}
            links.append(each)
        self.orders[number] = {
            "status": "pending", "identifiers": payload["identifiers"], "authorizations": [f"{self.url}/authorization/{each}" for each in links],
            "finalize": f"{self.url}/finalize/{number}", "_links": links, "_number": number,
        }
        return 201, self.public_view(self.orders[number]), (("Location", f"{self.url}/order/{number}"),)

    def public_view(self, what):
        if "_links" in what and what["status"] == "pending":
            states = [self.authorizations[each]["status"] for each in what["_links"]]
            what["status"] = "invalid" if "invalid" in states else "ready" if set(states) == {"valid"} else "pending"
        return {key: value for key, value in what.items() if not key.startswith("_")}

    def try_challenge(self, account, number, payload):
        each, _, kind = number.partition(".")
        authorization = self.authorizations[each]
        challenge = next(one for one in authorization["challenges"] if one["type"] == kind)
        if payload is not None and challenge["status"] == "pending":
            challenge["status"] = "processing"
            threading.Thread(target=self.visit, args=(authorization, challenge, account["jwk"]), daemon=True).start()
        return 200, challenge, (("Link", f'<{self.url}/authorization/{each}>;rel="up"'),)

    def visit(self, authorization, challenge, jwk):
        name, expected = authorization["identifier"]["value"], f"{challenge['token']}.{thumbprint(jwk)}"
        time.sleep(self.validation_delay_s)
        try:
            where = self.reach(name)
            if challenge["type"] == "http-01":
                connection = http.client.HTTPConnection("127.0.0.1", where["http"], timeout=5)
                connection.request("GET", f"/.well-known/acme-challenge/{challenge['token']}", headers={"Host": name})
                answer = connection.getresponse()
                said = answer.read()
                good = answer.status == 200 and said.strip() == expected.encode()
            else:
                said, good = self.fetch_tls_alpn(name, where["tls"], expected)
        except Exception as error:  # noqa: BLE001 — any error is reported to the client as a failed challenge
            said, good = repr(error).encode(), False
        with self.lock:
            challenge["status"] = authorization["status"] = "valid" if good else "invalid"
            if not good:
                challenge["error"] = Refused("unauthorized", f"{name} has answered {said[:200]!r}", 403).problem

    @staticmethod
    def fetch_tls_alpn(name, port, expected):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["acme-tls/1"])
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname=name) as connection:
            certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
            protocol = connection.selected_alpn_protocol()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        extension = certificate.extensions.get_extension_for_oid(IDENTIFIER)
        digest = b"\x04\x20" + hashlib.sha256(expected.encode()).digest()
        certificate.public_key().verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(certificate.signature_hash_algorithm))
        good = protocol == "acme-tls/1" and names == [name] and extension.critical and extension.value.value == digest
        return f"{protocol} {names} {extension}".encode(), good

    def finalize(self, order, payload):
        self.public_view(order)
        if order["status"] != "ready":
            raise Refused("orderNotReady", f"the order is {order['status']}", 403)
        csr = x509.load_der_x509_csr(b64url_decode(payload["csr"]))
        wanted = sorted(each["value"] for each in order["identifiers"])
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        if not csr.is_signature_valid or sorted(names) != wanted:
            raise Refused("badCSR", f"the CSR names {names}, not {wanted}")
        builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self.authority.name).public_key(self.key or csr.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now() - self.age).not_valid_after(now() + self.lifetime)
        certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in wanted]), critical=True).sign(self.authority.private, hashes.SHA256())
        chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, self.authority.certificate))
        self.certificates[order["_number"]] = chain
        order |= {"status": "valid", "certificate": f"{self.url}/certificate/{order['_number']}"}
        return 200, self.public_view(order), (("Location", f"{self.url}/order/{order['_number']}"),)
