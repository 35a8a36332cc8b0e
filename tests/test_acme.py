"""ACME: issuance, renewal, storage and failures, against a strict CA."""

import base64
import datetime
import socket
import ssl
import time

import pytest
from cryptography import x509

from support.acme import Acme
from support.keylatch import free_port, wait_for
from support.load import background_load
from support.raw import connect, request
from support.stores import SECRET, storage

CONFIG = """
listeners:
  - address: 127.0.0.1:{port}
  - address: 127.0.0.1:{tls}
    tls: {{acme: [api.test, www.api.test]}}
acme: {acme}
admin: {{address: "127.0.0.1:{admin}"}}
storage: {storage}
secrets: {secrets}
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
filters: [{{client_ip: {{}}}}]
routes: [{{name: api, match: {{paths: ["/v1/*"]}}, upstream: model}}]
"""


class Served:
    """Starts Keylatch processes that get their certificate from an ACME server."""

    def __init__(self, start, upstream, acme):
        self.begin, self.upstream, self.acme, self.all = start, upstream, acme, []

    def start(self, challenge="tls_alpn", more="", **values):
        tls = free_port()
        acme = f"{{directory: '{self.acme.url}/directory', accept_terms: true, allow_private: true, challenge: {challenge}, ca_file: '{self.acme.authority.ca}'{more}}}"
        values = {"storage": "{sqlite: {path: keylatch.db}}", **values}
        config = CONFIG.replace("{tls}", str(tls)).replace("{acme}", acme.replace("{", "{{").replace("}", "}}"))
        keylatch = self.begin(self.upstream, config=config, **values)
        keylatch.tls = tls
        self.all.append(keylatch)
        return keylatch


@pytest.fixture
def served(start, echo_upstream, tmp_path):
    made = []
    with Acme(tmp_path / "acme", lambda _: {"http": made[0].all[0].port, "tls": made[0].all[0].tls}) as acme:
        made.append(Served(start, echo_upstream, acme))
        yield made[0]


def served_certificate(keylatch, authority, name="api.test"):
    """The certificate that the listener serves for a name, or `None` if there is none yet."""
    context = ssl.create_default_context(cafile=authority.ca)
    try:
        with context.wrap_socket(connect(keylatch.tls), server_hostname=name) as connection:
            connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
    except (ssl.SSLError, ConnectionError):
        return None


@pytest.mark.parametrize("challenge", ["tls_alpn", "http"])
def test_a_certificate_is_issued_and_stored(served, challenge):
    acme, authority = served.acme, served.acme.authority
    acme.bad_nonces = 1
    keylatch = served.start(challenge, more=", contact: ['mailto:ops@example.com']")
    assert served_certificate(keylatch, authority) is None
    first = wait_for(lambda: served_certificate(keylatch, authority), "a certificate", 60)
    if challenge == "http":
        answers = wait_for(lambda: [line for line in keylatch.access_log() if line.get("reason") == "acme_challenge"], "a line per challenge")
        assert {(line["answered_by"], line["status"]) for line in answers} == {("acme", 200)}
    assert served_certificate(keylatch, authority, "www.api.test").serial_number == first.serial_number
    assert [account["contact"] for account in acme.accounts.values()] == [["mailto:ops@example.com"]]
    assert len(acme.certificates) == 1
    series = f'keylatch_certificate_expiry_timestamp_seconds{{listener="127.0.0.1:{keylatch.tls}",name="api.test"}}'
    assert wait_for(lambda: keylatch.metrics().get(series), "metric shows the expiry") == first.not_valid_after_utc.timestamp()
    # The next process serves the stored certificate at once, without an order. The stored data is
    # encrypted.
    keylatch.stop()
    kept = (keylatch.folder / "keylatch.db").read_bytes()
    assert b"PRIVATE KEY" not in kept and b"BEGIN CERTIFICATE" not in kept and b"key_pkcs8" not in kept
    asked = len(acme.log)
    keylatch.start()
    # A certificate is served throughout, also after a start and during an upgrade.
    assert served_certificate(keylatch, authority).serial_number == first.serial_number
    for _ in range(3):
        keylatch.upgrade()
        assert served_certificate(keylatch, authority).serial_number == first.serial_number
    assert len(acme.log) == asked
    # Unknown challenge tokens get no answer.
    assert request(keylatch.port, "/.well-known/acme-challenge/" + "x" * 40).status == 404
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["acme-tls/1"])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(socket.create_connection(("127.0.0.1", keylatch.tls)), server_hostname="other.test")


def test_a_certificate_is_renewed_before_it_expires(served):
    acme = served.acme
    acme.lifetime = datetime.timedelta(seconds=18)
    keylatch = served.start()
    first = wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 60)
    second = wait_for(lambda: (got := served_certificate(keylatch, acme.authority)) and got.serial_number != first.serial_number and got, "renewed certificate", 60)
    assert datetime.datetime.now(datetime.timezone.utc) < first.not_valid_after_utc, "renewed before the first certificate expired"
    assert second.not_valid_after_utc > first.not_valid_after_utc
    assert len(acme.accounts) == 1


def test_one_of_three_replicas_places_the_order(served, database):
    acme = served.acme
    replicas = [served.start(storage=storage(database), secrets=SECRET) for _ in range(3)]
    serials = set()
    for keylatch in replicas:
        serials.add(wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 60).serial_number)  # noqa: B023
    assert len(serials) == 1 and len(acme.certificates) == 1 and len(acme.accounts) == 1


def test_an_error_of_the_ca_is_logged_and_retried_later(served):
    acme = served.acme
    keylatch = served.start("http")
    acme.challenge_types = ("tls-alpn-01",)
    wait_for(lambda: "does not offer the challenge Http for api.test" in keylatch.stderr.read_text(), "the reason", 60)
    assert keylatch.metrics()['keylatch_acme_orders_total{outcome="failed"}'] == 1
    asked = len(acme.log)
    # Shows an absence, for which there is no condition to wait for: the process looks every 3 s.
    time.sleep(8)
    assert len(acme.log) == asked, "the CA gets no requests during the back-off"
    assert request(keylatch.port).status == 200


def test_a_name_that_resolves_to_another_server(served, echo_upstream):
    acme = served.acme
    acme.reach = lambda _: {"http": echo_upstream.port, "tls": echo_upstream.port}
    keylatch = served.start("http")
    wait_for(lambda: "api.test has answered" in keylatch.stderr.read_text(), "the log shows the CA's answer", 60)


def test_an_external_account_binding(served, tmp_path):
    acme = served.acme
    acme.external = ("kid-1", b"0123456789abcdef0123456789abcdef")
    key = tmp_path / "eab"
    key.write_text(base64.urlsafe_b64encode(acme.external[1]).decode())
    keylatch = served.start(more=f", external_account: {{key_id: kid-1, key: 'file:{key}'}}")
    assert wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 60)


def reload(keylatch, *changes):
    text = keylatch.path.read_text()
    for was, becomes in changes:
        assert was in text
        text = text.replace(was, becomes)
    keylatch.path.write_text(text)
    done = keylatch.command("reload")
    assert done.returncode == 0, done.stderr


def test_an_added_name_keeps_the_current_certificate(served, echo_upstream):
    acme = served.acme
    keylatch = served.start("http")
    first = wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 60)
    elsewhere = {"http": echo_upstream.port, "tls": echo_upstream.port}
    here = acme.reach
    acme.reach = lambda name: elsewhere if name == "new.test" else here(name)
    reload(keylatch, ("[api.test, www.api.test]", "[api.test, www.api.test, new.test]"))
    assert served_certificate(keylatch, acme.authority).serial_number == first.serial_number
    wait_for(lambda: "new.test has answered" in keylatch.stderr.read_text(), "the order fails", 60)
    keylatch.stop()
    keylatch.start()
    for name in ("api.test", "www.api.test"):
        assert served_certificate(keylatch, acme.authority, name).serial_number == first.serial_number, "a restart keeps the certificate"
    assert served_certificate(keylatch, acme.authority, "new.test") is None
    # A change of the section retries a failed order at once.
    acme.reach = here
    reload(keylatch, ("accept_terms: true", "accept_terms: true, contact: ['mailto:new@example.com']"))
    second = wait_for(lambda: served_certificate(keylatch, acme.authority, "new.test"), "one certificate for all names", 60)
    assert served_certificate(keylatch, acme.authority).serial_number == second.serial_number
    assert [account["contact"] for account in acme.accounts.values()] == [["mailto:new@example.com"]], "the CA has the new contact"


def test_another_ca(served, tmp_path):
    keylatch = served.start("http")
    first = wait_for(lambda: served_certificate(keylatch, served.acme.authority), "a certificate", 60)
    with Acme(tmp_path / "other", served.acme.reach) as other:
        reload(keylatch, (served.acme.url, other.url), (str(served.acme.authority.ca), str(other.authority.ca)))
        second = wait_for(lambda: served_certificate(keylatch, other.authority), "certificate of the other CA", 60)
        assert second.serial_number != first.serial_number


def test_an_account_that_the_ca_has_forgotten(served):
    acme = served.acme
    acme.lifetime = datetime.timedelta(seconds=18)
    keylatch = served.start("http")
    first = wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 60)
    gone = set(acme.accounts)
    acme.accounts.clear()
    wait_for(lambda: (got := served_certificate(keylatch, acme.authority)) and got.serial_number != first.serial_number, "renewed certificate", 60)
    assert "does not know the ACME account" in keylatch.stderr.read_text() and not gone & set(acme.accounts)


def test_a_certificate_that_is_nearly_expired_when_issued(served):
    acme = served.acme
    acme.age, acme.lifetime = datetime.timedelta(days=80), datetime.timedelta(days=10)
    keylatch = served.start("http")
    assert wait_for(lambda: served_certificate(keylatch, acme.authority), "the certificate is served anyway", 60)
    assert wait_for(lambda: "check the clock of this machine" in keylatch.stderr.read_text(), "log line")
    # Shows an absence, for which there is no condition to wait for.
    time.sleep(8)
    assert len(acme.certificates) == 1, "no second order at once"
    keylatch.stop()
    keylatch.start()
    time.sleep(8)
    assert len(acme.certificates) == 1, "no second order after a restart"


def test_a_certificate_of_another_key(served):
    served.acme.key = served.acme.authority.private.public_key()
    keylatch = served.start("http")
    wait_for(lambda: "the certificate does not belong to the key" in keylatch.stderr.read_text(), "log line", 60)
    # Shows an absence, for which there is no condition to wait for.
    time.sleep(8)
    assert keylatch.stderr.read_text().count("does not belong to the key") == 1 and len(served.acme.certificates) == 1


def test_retry_after_of_the_ca_is_honoured(served):
    served.acme.failing_path, served.acme.retry_after = "/order", "7200"
    keylatch = served.start("http")
    line = wait_for(lambda: [line for line in keylatch.stderr.read_text().splitlines() if "ACME order failed" in line], "log line", 60)[0]
    assert "again_in=7200s" in line


def test_challenge_floods_do_not_block_validation(served):
    """Forty clients request made-up challenge tokens in a loop while the CA validates."""
    acme = served.acme
    acme.validation_delay_s = 1
    keylatch = served.start("http")

    def request_tokens(stop, n):
        while not stop.is_set():
            request(keylatch.port, f"/.well-known/acme-challenge/{n:04}{'x' * 30}")

    with background_load(request_tokens, [(n,) for n in range(40)]):
        assert wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 60)
    assert len(acme.certificates) == 1


def test_the_next_process_starts_an_interrupted_order_again(served):
    """A process that stops during an order releases its lease."""
    acme = served.acme
    acme.validation_delay_s = 3
    keylatch = served.start("http")
    wait_for(lambda: any(path.startswith("/challenge") for path in acme.log), "an order is under way", 60)
    keylatch.stop()
    acme.validation_delay_s = 0
    keylatch.start()
    assert wait_for(lambda: served_certificate(keylatch, acme.authority), "a certificate", 30)


def test_invalid_acme_settings_are_refused(served):
    keylatch = served.start()
    good = keylatch.path.read_text()
    for was, becomes, says in [
        ("accept_terms: true, ", "", "acme.accept_terms: must be `true`"),
        ("acme: [api.test, www.api.test]", "acme: ['*.api.test']", "listeners[1].tls.acme[0]: these challenges cannot prove a wildcard"),
        ("acme: [api.test, www.api.test]", "acme: [API.test]", "is not a host name in lower case"),
        ("acme: [api.test, www.api.test]", "acme: []", "listeners[1].tls.certificates: the list is empty; at least one is needed, or `acme`"),
        ("allow_private: true, ", "", "acme.directory: is not a public address"),
        ("storage: {sqlite: {path: keylatch.db}}", "storage: memory", "acme: needs a persistent store"),
        ("accept_terms: true", "accept_terms: true, contact: [ops]", "acme.contact[0]: must be a mail URL such as `mailto:ops@example.com`"),
    ]:
        assert was in good
        keylatch.path.write_text(good.replace(was, becomes))
        checked = keylatch.command("check")
        assert checked.returncode == 1 and says in checked.stderr, checked.stderr
    keylatch.path.write_text("\n".join(line for line in good.splitlines() if not line.startswith("acme:")))
    assert "needs the section `acme`" in keylatch.command("check").stderr
