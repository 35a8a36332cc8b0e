#!/usr/bin/env bash
# Assumption: a proxy that forwards `100 Continue` from the upstream keeps the client's connection for the next request, since the
#   body and the final response follow completely (RFC 9110, section 10.1.1, and RFC 9112, section 9.3).
# Result: the final response has `Connection: close`, and the connection ends. The same holds for every informational response that
#   comes before the end of the request body. The same request without `Expect` keeps the connection.
# Versions: pingora 0.9.1.
# Source: pingora-core/src/protocols/http/v1/server.rs, `prepare_response_header`: a response before the end of the body disables
#   keep-alive, and informational responses are not excepted.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "bare"
version = "0.0.0"
edition = "2024"

[dependencies]
async-trait = "0.1"
pingora = { version = "=0.9.1", features = ["proxy"] }
TOML
mkdir "$folder/src"
cat >"$folder/src/main.rs" <<'RUST'
use async_trait::async_trait;
use pingora::prelude::*;

struct Bare(std::net::SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();
    fn new_ctx(&self) {}
    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

fn main() {
    let ports: Vec<String> = std::env::args().skip(1).collect();
    let mut server = Server::new(None).unwrap();
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(format!("127.0.0.1:{}", ports[1]).parse().unwrap()));
    service.add_tcp(&format!("127.0.0.1:{}", ports[0]));
    server.add_service(service);
    server.run_forever();
}
RUST
cargo build --quiet --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target"

cat >"$folder/try.py" <<'PY'
import socket
import subprocess
import sys
import threading
import time


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def head(connection):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            break
        data += byte
    return data


def accept(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def dial():
    end = time.monotonic() + 20
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=5)
            return client
        except ConnectionRefusedError:
            assert time.monotonic() < end, "the proxy listens"
            time.sleep(0.1)


def serve(connection):
    with connection:
        while request := head(connection):
            if b"expect" in request.lower():
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if connection.recv(5) != b"hello":
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


upstream = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=accept, args=(upstream,), daemon=True).start()
port = free_port()
proxy = subprocess.Popen([sys.argv[1], str(port), str(upstream.getsockname()[1])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for field, ends in ((b"", False), (b"Expect: 100-continue\r\n", True)):
        with dial() as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n" + field + b"\r\n")
            if field:
                assert head(client).startswith(b"HTTP/1.1 100")
            client.sendall(b"hello")
            answer = head(client)
            print("with Expect:" if field else "without:", [line.decode() for line in answer.split(b"\r\n") if line[:11].lower() == b"connection:"])
            assert answer.startswith(b"HTTP/1.1 200") and (b"connection: close" in answer.lower()) == ends
            assert client.recv(2) == b"ok"
finally:
    proxy.terminate()
    proxy.wait()
PY
python3 "$folder/try.py" "$folder/target/debug/bare"
