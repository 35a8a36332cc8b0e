"""TLS clients, and the configuration of a TLS listener."""

import json
import ssl

from cryptography import x509

from .keylatch import DEFAULT
from .raw import connect, read_body, read_head

TLS = DEFAULT.replace("    limits: {limits}", "    limits: {limits}\n    tls: {tls}")


def tls_config(tls):
    """A configuration with this `tls` section in its listener."""
    return TLS.replace("{tls}", json.dumps(tls).replace("{", "{{").replace("}", "}}"))


def files(issued):
    return {"chain_file": str(issued.cert), "key_file": str(issued.key)}


def context(authority, client=None, alpn=None, **settings):
    made = ssl.create_default_context(cafile=authority.ca)
    for key, value in settings.items():
        setattr(made, key, value)
    if client:
        made.load_cert_chain(client.cert, client.key)
    if alpn:
        made.set_alpn_protocols(alpn)
    return made


def tls_connect(port, authority, name="api.test", **options):
    """Connects and performs the handshake. Returns the connection."""
    return context(authority, **options).wrap_socket(connect(port), server_hostname=name)


def send_request(connection, path="/v1/x", headers=""):
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: api.test\r\n{headers}\r\n".encode())
    file = connection.makefile("rb")
    head = read_head(file)
    assert head, "the connection was closed without an answer"
    status, fields = head
    body, whole = read_body(file, fields)
    assert whole
    return status, json.loads(body) if body[:1] == b"{" else body


def serial(connection):
    return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number


def refused(port, authority, client):
    """Whether the listener refuses this client certificate. With TLS 1.3 the client learns it when
    it reads the first answer."""
    try:
        with tls_connect(port, authority, client=client) as connection:
            connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: api.test\r\n\r\n")
            return connection.recv(100) == b""
    except (ssl.SSLError, ConnectionError):
        return True
