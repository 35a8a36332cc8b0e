# Builds a bare Pingora 0.9.1 that forwards PORT to UPSTREAM as "$folder/target/debug/bare PORT UPSTREAM", and writes the helpers of
# their scripts to "$folder/helpers.py". Sourced by the findings about Pingora, which set $folder.

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

cat >"$folder/helpers.py" <<'PY'
import socket
import subprocess
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


def run(binary, serve, check):
    """Runs Pingora in front of an upstream that calls `serve(connection)`, and calls `check(dial)`."""

    def accept():
        while True:
            connection, _ = upstream.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def dial():
        end = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=5)
            except ConnectionRefusedError:
                assert time.monotonic() < end, "the proxy listens"
                time.sleep(0.1)

    upstream = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    port = free_port()
    command = [binary, str(port), str(upstream.getsockname()[1])]
    proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        check(dial)
    finally:
        proxy.terminate()
        proxy.wait()
PY
