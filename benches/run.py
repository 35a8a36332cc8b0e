"""Compares Keylatch with a bare Pingora, nginx, HAProxy and Caddy, in one run, in turns, on pinned
cores.

Prints Markdown tables: processor time per small POST and GET, memory per idle stream, punctuality
of frames, and time added to a streamed chunk. Processor time is the proxy's own (user and system,
from /proc), divided by the requests answered; that is steadier than requests a second on a shared
machine. Needs wrk, nginx, haproxy, caddy.

    python3 benches/run.py [--rounds 5] [--requests 20000] [--streams 4000]
"""

import argparse
import contextlib
import os
import pathlib
import resource
import selectors
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
RELEASE = ROOT / "target" / "release"
PROXY_CORE, LOAD_CORE = 0, max(os.sched_getaffinity(0))
TICKS = os.sysconf("SC_CLK_TCK")
KEY = "Bearer sk-bench-0123456789abcdef"
BODY = '{"model":"demo","messages":[{"role":"user","content":"hi"}]}'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_s(pid):
    """User and system time of a process and its children, in seconds."""
    total = 0.0
    pids = [pid] + [int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()]
    for each in pids:
        with contextlib.suppress(FileNotFoundError):
            # schedstat counts nanoseconds on the processor, for every thread.
            for task in pathlib.Path(f"/proc/{each}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def rss_kib(pid):
    pids = [pid] + [int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()]
    total = 0
    for each in pids:
        for line in pathlib.Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1])
    return total


def wait_listen(port, process):
    for _ in range(500):
        if process.poll() is not None:
            raise SystemExit(f"a server exited at its start: {process.args}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    raise SystemExit(f"a server does not listen: {process.args}")


def spawn(arguments, core, folder, **more):
    log = open(folder / "log", "ab")
    return subprocess.Popen(["taskset", "-c", str(core), *map(str, arguments)], stdout=log, stderr=log, cwd=folder, **more)


QUICKSTART = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: {{sqlite: {{path: bench.db}}}}
workers: 1
upstreams:
  - name: model
    servers: [{{address: "127.0.0.1:{upstream}"}}]
filters:
  - client_ip: {{}}
  - request_id: {{}}
  - flood_guard: {{limit: 10000000/s}}
routes:
  - name: api
    match: {{paths: [/v1/*]}}
    upstream: model
    filters:
      - bearer: {{accept: [well_formed]}}
      - key_binding: {{}}
      - rate_limit: {{per: key, limit: 1000000/s}}
      - sse_keepalive: {{interval: {interval}}}
"""


class Proxy:
    """One of the compared proxies, started in front of an upstream."""

    def __init__(self, name, upstream, folder, interval="15s"):
        self.name, self.port, self.folder = name, free_port(), folder / name.replace(" ", "-")
        self.folder.mkdir()
        self.admin = free_port()
        self.process = getattr(self, "_" + name.split()[0].lower())(upstream, interval)
        wait_listen(self.port, self.process)

    def _keylatch(self, upstream, interval):
        path = self.folder / "keylatch.yaml"
        path.write_text(QUICKSTART.format(port=self.port, admin=self.admin, upstream=upstream, interval=interval))
        env = {**os.environ, "KEYLATCH_RUNTIME_DIR": str(self.folder)}
        return spawn([RELEASE / "keylatch", "run", "-c", path], PROXY_CORE, self.folder, env=env)

    def _pingora(self, upstream, _interval):
        return spawn([RELEASE / "passthrough", f"127.0.0.1:{self.port}", f"127.0.0.1:{upstream}"], PROXY_CORE, self.folder)

    def _nginx(self, upstream, _interval):
        (self.folder / "nginx.conf").write_text(
            f"""daemon off; worker_processes 1; pid {self.folder}/pid; error_log {self.folder}/error.log; worker_rlimit_nofile 60000;
events {{ worker_connections 20000; }}
http {{ access_log {self.folder}/access.log; client_body_temp_path {self.folder}/b; proxy_temp_path {self.folder}/p;
  fastcgi_temp_path {self.folder}/f; uwsgi_temp_path {self.folder}/u; scgi_temp_path {self.folder}/s; keepalive_requests 1000000;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{self.port}; location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_buffering off; proxy_read_timeout 600s; }} }} }}"""
        )
        return spawn(["nginx", "-c", self.folder / "nginx.conf", "-p", self.folder], PROXY_CORE, self.folder)

    def _haproxy(self, upstream, _interval):
        (self.folder / "haproxy.cfg").write_text(
            f"""global
  maxconn 8000
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
frontend f
  bind 127.0.0.1:{self.port}
  default_backend b
backend b
  server s 127.0.0.1:{upstream}
"""
        )
        return spawn(["haproxy", "-f", self.folder / "haproxy.cfg"], PROXY_CORE, self.folder)

    def _caddy(self, upstream, _interval):
        (self.folder / "Caddyfile").write_text(
            f"{{\n admin off\n auto_https off\n}}\nhttp://127.0.0.1:{self.port} {{\n reverse_proxy 127.0.0.1:{upstream} {{\n  flush_interval -1\n }}\n log {{\n  output file {self.folder}/access.log\n }}\n}}\n"
        )
        env = {**os.environ, "GOMAXPROCS": "1", "HOME": str(self.folder)}
        return spawn(["caddy", "run", "--config", self.folder / "Caddyfile", "--adapter", "caddyfile"], PROXY_CORE, self.folder, env=env)

    def pid(self):
        # taskset replaces itself with the program, so its process id is that of the program.
        return self.process.pid

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def upstream_nginx(folder):
    """A fast upstream: a small JSON answer from memory."""
    port, folder = free_port(), folder / "upstream"
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 60000;
events {{ worker_connections 20000; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 10000000; keepalive_timeout 600s;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ default_type application/json; return 200 '{{"ok":true,"choices":[{{"text":"hello"}}]}}'; }} }} }}"""
    )
    process = spawn(["nginx", "-c", folder / "nginx.conf", "-p", folder], LOAD_CORE, folder)
    wait_listen(port, process)
    return port, process


def load(port, method, seconds, folder, rate):
    """Runs wrk; returns the number of successful requests."""
    script = folder / f"{method}.lua"
    body = f"wrk.body = '{BODY}'\n" if method == "POST" else ""
    script.write_text(f"wrk.method = '{method}'\nwrk.headers['Authorization'] = '{KEY}'\nwrk.headers['Content-Type'] = 'application/json'\n{body}")
    # wrk waits `delay` between requests of a connection: 32 connections with a request every 10 ms
    # make about 3,000 a second.
    if rate == "steady":
        with script.open("a") as more:
            more.write("function delay() return 10 end\n")
    connections = "-c32" if rate == "steady" else "-c16"
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", connections, f"-d{seconds}s", "-s", script, f"http://127.0.0.1:{port}/v1/chat/completions"]
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    bad = [line for line in out.splitlines() if "Non-2xx" in line or "Socket errors" in line]
    if bad:
        raise SystemExit(f"some requests failed: {bad}")
    return int(next(line for line in out.splitlines() if "requests in" in line).split()[0])


def bench_cpu(names, rounds, seconds, folder):
    upstream, process = upstream_nginx(folder)
    proxies = [Proxy(name, upstream, folder) for name in names]
    kinds = [("GET", "steady"), ("POST", "steady"), ("POST", "full")]
    results = {(name, kind): [] for name in names for kind in kinds}
    try:
        for proxy in proxies:
            load(proxy.port, "POST", 1, folder, "full")
        for _ in range(rounds):
            for kind in kinds:
                for proxy in proxies:
                    before = cpu_s(proxy.pid())
                    answered = load(proxy.port, kind[0], seconds, folder, kind[1])
                    results[proxy.name, kind].append((cpu_s(proxy.pid()) - before) / answered * 1e6)
    finally:
        for proxy in proxies:
            proxy.stop()
        process.terminate()
    print(f"\n### Processor time per request (µs, median of {rounds} rounds; in brackets min–max)\n")
    print("Steady: about 3,000 requests a second on 32 connections. Full: as many as go through on 16.\n")
    print("| proxy | GET, steady | POST, steady | compared with bare Pingora | POST, full | compared |\n| --- | --- | --- | --- | --- | --- |")
    for name in names:
        shown = [f"{statistics.median(results[name, kind]):.1f} ({min(results[name, kind]):.1f}–{max(results[name, kind]):.1f})" for kind in kinds]
        ratios = [statistics.median(a / b for a, b in zip(results[name, kind], results["Pingora", kind])) for kind in kinds[1:]]
        print(f"| {name} | {shown[0]} | {shown[1]} | {ratios[0]:.3f} | {shown[2]} | {ratios[1]:.3f} |", flush=True)


class StreamUpstream:
    """An upstream that opens a stream for every request, and sends chunks with their send time on
    command."""

    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=8192)
        self.port = self.listener.getsockname()[1]
        self.open = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        selector = selectors.DefaultSelector()
        self.listener.setblocking(False)
        selector.register(self.listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                data = b""
                with contextlib.suppress(OSError):
                    data = key.fileobj.recv(65536)
                if data:
                    key.fileobj.sendall(self.HEAD + b"9\r\ndata: x\n\n\r\n")
                    self.open.append(key.fileobj)
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


def open_streams(port, count):
    clients = []
    request = f"GET /v1/stream HTTP/1.1\r\nHost: h\r\nAuthorization: {KEY}\r\nAccept: text/event-stream\r\n\r\n".encode()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), 20)
        client.sendall(request)
        clients.append(client)
    for client in clients:
        client.settimeout(20)
        got = b""
        while b"x\n\n" not in got:
            piece = client.recv(4096)
            if not piece:
                raise SystemExit(f"a stream was refused: {got!r}")
            got += piece
    return clients


def bench_streams(names, count, folder):
    print(f"\n### Memory per idle stream, {count} streams (KiB)\n\n| proxy | before | with streams | per stream |\n| --- | --- | --- | --- |")
    for name in names:
        upstream = StreamUpstream()
        sub = pathlib.Path(tempfile.mkdtemp(dir=folder))
        proxy = Proxy(name, upstream.port, sub, interval="600s")
        try:
            for client in open_streams(proxy.port, 50):
                client.close()
            time.sleep(1)
            before = rss_kib(proxy.pid())
            clients = open_streams(proxy.port, count)
            time.sleep(2)
            after = rss_kib(proxy.pid())
            print(f"| {name} | {before} | {after} | {(after - before) / count:.1f} |", flush=True)
            for client in clients:
                client.close()
        finally:
            proxy.stop()


def bench_frames(count, folder):
    upstream = StreamUpstream()
    interval_s = 5.0
    sub = pathlib.Path(tempfile.mkdtemp(dir=folder))
    proxy = Proxy("Keylatch", upstream.port, sub, interval=f"{interval_s:.0f}s")
    late = []
    try:
        selector = selectors.DefaultSelector()
        for client in open_streams(proxy.port, count):
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, [None])
        end = time.monotonic() + 4 * interval_s + 2
        while time.monotonic() < end:
            for key, _ in selector.select(0.5):
                now = time.monotonic()
                data = key.fileobj.recv(4096)
                if b": keep-alive" in data:
                    if key.data[0] is not None:
                        late.append(now - key.data[0] - interval_s)
                    key.data[0] = now
        requests = urllib.request.urlopen(f"http://127.0.0.1:{proxy.admin}/metrics").read().decode()
        sent = next(line.split()[1] for line in requests.splitlines() if line.startswith("keylatch_stream_frames_total"))
    finally:
        proxy.stop()
    late.sort()
    at = lambda share: late[min(len(late) - 1, int(len(late) * share))] * 1000
    print(f"\n### Punctuality of frames, {count} streams, one frame each {interval_s:.0f} s (ms after the due time)\n")
    print(f"| frames | p50 | p99 | latest |\n| --- | --- | --- | --- |\n| {sent} sent, {len(late)} timed | {at(0.5):.1f} | {at(0.99):.1f} | {late[-1] * 1000:.1f} |", flush=True)


def bench_chunk(names, chunks, folder):
    """One stream at a time, one chunk at a time: from the upstream's write to the client's read."""
    print(f"\n### Time of a streamed chunk through the proxy ({chunks} chunks, ms)\n\n| proxy | p50 | p99 |\n| --- | --- | --- |")
    for name in names:
        upstream = StreamUpstream()
        sub = pathlib.Path(tempfile.mkdtemp(dir=folder))
        proxy = Proxy(name, upstream.port, sub)
        times = []
        try:
            (client,) = open_streams(proxy.port, 1)
            client.settimeout(5)
            for _ in range(chunks):
                event = b"data: 0123456789\n\n"
                begun = time.perf_counter()
                upstream.open[-1].sendall(b"%x\r\n%s\r\n" % (len(event), event))
                got = b""
                while b"\n\n" not in got:
                    got += client.recv(4096)
                times.append(time.perf_counter() - begun)
                time.sleep(0.002)
            client.close()
        finally:
            proxy.stop()
        times.sort()
        print(f"| {name} | {times[len(times) // 2] * 1000:.3f} | {times[int(len(times) * 0.99)] * 1000:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4000)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--only", choices=["cpu", "streams", "frames", "chunk"])
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 60000), hard))
    names = ["Pingora", "Keylatch"] + [name for name in ("nginx", "HAProxy", "Caddy") if shutil.which(name.lower())]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if options.only in (None, "cpu"):
            bench_cpu(names, options.rounds, options.seconds, folder)
        if options.only in (None, "streams"):
            bench_streams(["Pingora", "Keylatch", "nginx"], options.streams, folder)
        if options.only in (None, "frames"):
            bench_frames(options.streams, folder)
        if options.only in (None, "chunk"):
            bench_chunk(["Pingora", "Keylatch", "nginx"], options.chunks, folder)


if __name__ == "__main__":
    main()
