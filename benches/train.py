"""Trains an instrumented build of Keylatch: sends it the traffic that a profile-guided build is to be fast at.

The traffic is small JSON answers over HTTP/1 (GET and POST), HTTP/1 with TLS, HTTP/2, event streams with comment frames,
signed tokens, shared and per-key limits, rules, and refusals. The upstream is the program's own `demo-upstream`. Only the
standard library is used; HTTP/2 is left out, with a message, if there is no curl that speaks it.

    python3 benches/train.py PROGRAM [--requests 6000]
"""

import argparse
import base64
import concurrent.futures
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import socket
import ssl
import subprocess
import tempfile
import time

SECRET = "a-secret-of-32-bytes-for-training"
BODY = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()

CONFIG = """
listeners:
  - {{address: "127.0.0.1:{plain}"}}
  - {{address: "127.0.0.1:{tls}", tls: {{certificates: [{{chain_file: cert.pem, key_file: key.pem}}]}}}}
admin: {{address: "127.0.0.1:{admin}"}}
storage: {{sqlite: {{path: train.db}}}}
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
filters:
  - client_ip: {{}}
  - request_id: {{}}
  - flood_guard: {{limit: 10000000/s}}
  - security_headers: {{}}
routes:
  - name: signed
    match: {{paths: [/v1/signed/*]}}
    upstream: model
    filters:
      - bearer: {{accept: [{{jwt: {{issuer: https://id.example, audiences: [api], algorithms: [HS256], key: {{secret: {secret}}}}}}}]}}
      - rate_limit: {{per: key, limit: 1000000/s}}
      - sse_keepalive: {{}}
  - name: limited
    match: {{paths: [/v1/limited/*]}}
    upstream: model
    filters: [bearer: {{accept: [well_formed]}}, rate_limit: {{per: key, limit: 10/h}}]
  - name: api
    match: {{paths: [/v1/*]}}
    upstream: model
    filters:
      - bearer: {{accept: [well_formed]}}
      - key_binding: {{new_keys_per_client: 1000000/s}}
      - rules:
          - {{name: curl, if: 'request.user_agent.startsWith("scanner/")', deny: {{}}}}
          - {{name: files, if: 'request.decoded.matches(r"/\\.(env|git)")', deny: {{}}}}
      - rate_limit: {{per: key, limit: 1000000/s}}
      - sse_keepalive: {{interval: 1s}}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_listen(port, process):
    for _ in range(1500):
        if process.poll() is not None:
            raise SystemExit(f"{process.args} exited at its start")
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"{process.args} does not listen")


def signed_token():
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = {"iss": "https://id.example", "aud": "api", "sub": "trainer", "exp": int(time.time()) + 3600}
    text = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + b"." + part(json.dumps(claims).encode())
    return (text + b"." + part(hmac.digest(SECRET.encode(), text, hashlib.sha256))).decode()


def send(connect, count, method, path, token, body=None, expect=200, source="127.0.0.1"):
    """Sends `count` requests on four kept connections, and checks each status."""

    def one_connection(_):
        connection = connect(source)
        for _ in range(count // 4):
            connection.request(method, path, body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "User-Agent": "OpenAI/Python 2.0"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != expect:
                raise SystemExit(f"{method} {path}: status {answer.status} instead of {expect}")
        connection.close()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(one_connection, range(4)))


def train(plain, tls, folder, requests):
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))

    def over_tcp(source):
        return http.client.HTTPConnection("127.0.0.1", plain, 30, source_address=(source, 0))

    def over_tls(source):
        return http.client.HTTPSConnection("localhost", tls, timeout=30, context=context, source_address=(source, 0))

    chat, key = "/v1/chat/completions", "sk-training-0123456789abcdef"
    send(over_tcp, 4, "POST", chat, key, BODY)
    send(over_tcp, requests, "POST", chat, key, BODY)
    send(over_tcp, requests // 2, "GET", "/v1/models", key)
    send(over_tcp, requests // 3, "GET", "/v1/signed/models", signed_token(), expect=404)
    send(over_tls, requests // 3, "POST", chat, key, BODY)
    try:
        send(over_tcp, requests // 6, "POST", chat, key, BODY, expect=403, source="127.0.0.2")
    except OSError as error:
        # macOS has no second loopback address.
        print(f"refusals of foreign addresses are not part of the profile: {error}")
    send(over_tcp, requests // 6, "GET", "/v1/signed/models", "no-token", expect=401)
    send(over_tcp, 8, "GET", "/v1/limited/models", "sk-limited-0123456789abcdef", expect=404)
    send(over_tcp, 400, "POST", chat, key, STREAM)
    for number in range(requests // 60):
        send(over_tcp, 4, "GET", "/v1/models", f"sk-first-use-{number:08}-abcdefgh")
    curl = ["curl", "--silent", "--fail", "--http2", "--cacert", str(folder / "cert.pem"), "--header", f"Authorization: Bearer {key}"]
    targets = [part for _ in range(400) for part in (f"https://localhost:{tls}/v1/models", "--output", os.devnull)]
    for _ in range(max(1, requests // 1000)):
        try:
            failure = subprocess.run([*curl, *targets], check=False).returncode
        except OSError:
            failure = "not installed"
        if failure:
            print(f"HTTP/2 is not part of the profile: curl {failure}")
            break


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--requests", type=int, default=6000)
    asked = parser.parse_args()
    program = pathlib.Path(asked.program).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=folder, check=True, capture_output=True,
        )
        plain, tls, admin, upstream = (free_port() for _ in range(4))
        (folder / "keylatch.yaml").write_text(CONFIG.format(plain=plain, tls=tls, admin=admin, upstream=upstream, secret=SECRET))
        with open(folder / "log", "wb") as log:
            demo = subprocess.Popen([program, "demo-upstream", "--listen", f"127.0.0.1:{upstream}"], cwd=folder, stdout=log, stderr=log,
                                    env={**os.environ, "LLVM_PROFILE_FILE": os.devnull})
            proxy = subprocess.Popen([program, "run", "-c", "keylatch.yaml"], cwd=folder, stdout=log, stderr=log,
                                     env={**os.environ, "KEYLATCH_RUNTIME_DIR": str(folder)})
            try:
                wait_listen(upstream, demo)
                wait_listen(plain, proxy)
                train(plain, tls, folder, asked.requests)
            except BaseException:
                print((folder / "log").read_text(errors="replace")[-3000:])
                raise
            finally:
                # The profile is written at a regular end.
                for process in (proxy, demo):
                    process.terminate()
                for process in (proxy, demo):
                    process.wait(60)


if __name__ == "__main__":
    main()
