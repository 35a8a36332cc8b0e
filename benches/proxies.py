"""The measured proxies, each with one configuration and pinned to one core, and the upstream.

Keylatch runs the whole quickstart chain with its access log; the others only forward requests, and
write an access log where they usually do.
"""

import json
import os
import pathlib
import shutil

import harness
import peers
from harness import LOAD_CORE, PROXY_CORE, ROOT, free_port, spawn, wait_listen

SQLITE = "{sqlite: {path: bench.db}}"
SECRET = "{key_hmac: 0123456789abcdef0123456789abcdef}"
CHAIN = """      - bearer: {accept: [well_formed]}
      - key_binding: {new_keys_per_client: 1000000000/s}
      - rate_limit: {per: key, limit: 1000000/s}
      - sse_keepalive: {interval: %s}
"""
QUICKSTART = CHAIN % "15s"
CONFIG = """
listeners: [{{address: "127.0.0.1:{port}", limits: {limits}}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: {storage}
{redis}
secrets: {secrets}
workers: {workers}
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
filters: [client_ip: {{}}, request_id: {{}}, flood_guard: {{limit: 10000000/s}}]
routes:
{routes}  - name: api
    upstream: model
    filters:
{filters}"""


def programs():
    """The paths of the programs that are built or installed here, if they exist."""
    release, dist = ROOT / "target" / "release", ROOT / "target" / "dist"
    found = {
        "keylatch": pathlib.Path(os.environ.get("KEYLATCH_BINARY", release / "keylatch")),
        "shipped": pathlib.Path(os.environ.get("KEYLATCH_SHIPPED", dist / "keylatch")),
        "pingora": pathlib.Path(os.environ.get("PASSTHROUGH_BINARY", release / "passthrough")),
        **peers.installed(),
        **{name: pathlib.Path(shutil.which(name) or "/missing") for name in ("nginx", "haproxy", "caddy")},
    }
    return {name: path for name, path in found.items() if not isinstance(path, pathlib.Path) or path.exists()}


class Proxy:
    """A running proxy in front of an upstream."""

    headers = {}

    def __init__(self, bench, cores=PROXY_CORE, upstream=None):
        self.folder, self.port, self.cores = bench.new_folder(), free_port(), cores
        self.upstream = upstream or bench.upstream
        self.begin()

    def begin(self):
        arguments, environment = self.command()
        self.process = spawn(arguments, self.cores, self.folder, env={**os.environ, **environment})
        wait_listen(self.port, self.process, self.folder)

    def stop(self):
        harness.stop(self.process)

    def load(self, seconds, folder, rate="full", **more):
        return harness.load(self.port, seconds, folder, rate, headers=self.headers, **more)


class Keylatch(Proxy):
    def __init__(self, bench, filters=QUICKSTART, storage=SQLITE, redis="", secrets="{}", workers=1, routes="", limits="{}", program="keylatch", environment=None, **more):
        self.admin, self.program, self.environment = free_port(), program, environment or {}
        self.values = dict(filters=filters, storage=storage, redis=redis, secrets=secrets, workers=workers, routes=routes, limits=limits)
        super().__init__(bench, **more)

    def command(self):
        path = self.folder / "keylatch.yaml"
        path.write_text(CONFIG.format(port=self.port, admin=self.admin, upstream=self.upstream, **self.values))
        return [programs()[self.program], "run", "-c", path], {"KEYLATCH_RUNTIME_DIR": str(self.folder), **self.environment}


class Pingora(Proxy):
    def command(self):
        return [programs()["pingora"], f"127.0.0.1:{self.port}", f"127.0.0.1:{self.upstream}"], {}


class Workers(Proxy):
    """A proxy with a number of processes or threads."""

    def __init__(self, bench, workers=1, **more):
        self.workers = workers
        super().__init__(bench, **more)


NGINX = """daemon off; worker_processes {workers}; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 60000;
events {{ worker_connections 20000; }}
http {{ access_log {log}; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 10000000; keepalive_timeout 600s;
  {server} }}"""
FORWARD = """upstream model {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://model; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }} }}"""
ANSWER = """server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ default_type application/json;
    return 200 '{{"ok":true,"choices":[{{"text":"hello"}}]}}'; }} }}"""


class Nginx(Workers):
    def command(self):
        path, server = self.folder / "nginx.conf", FORWARD.format(port=self.port, upstream=self.upstream)
        path.write_text(NGINX.format(workers=self.workers, folder=self.folder, log=self.folder / "access.log", server=server))
        return ["nginx", "-c", path, "-p", self.folder], {}


class HAProxy(Workers):
    def command(self):
        path = self.folder / "haproxy.cfg"
        path.write_text(
            f"global\n maxconn 8000\n nbthread {self.workers}\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n"
            f" timeout server 600s\n http-reuse always\nfrontend f\n bind 127.0.0.1:{self.port}\n default_backend b\n"
            f"backend b\n server s 127.0.0.1:{self.upstream}\n"
        )
        return ["haproxy", "-f", path], {}


class Caddy(Proxy):
    def command(self):
        path = self.folder / "Caddyfile"
        path.write_text(
            f"{{\n admin off\n auto_https off\n}}\nhttp://127.0.0.1:{self.port} {{\n reverse_proxy 127.0.0.1:{self.upstream} {{\n"
            f"  flush_interval -1\n }}\n log {{\n  output file {self.folder}/access.log\n }}\n}}\n"
        )
        return ["caddy", "run", "--config", path, "--adapter", "caddyfile"], {"GOMAXPROCS": "1", "HOME": str(self.folder)}


class Envoy(Proxy):
    def command(self):
        path, types = self.folder / "envoy.json", "type.googleapis.com/envoy.extensions"
        address = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}  # noqa: E731
        log = {"@type": f"{types}.access_loggers.file.v3.FileAccessLog", "path": f"{self.folder}/access.log"}
        manager = {
            "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "codec_type": "HTTP1",
            "access_log": [{"name": "file", "typed_config": log}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "model", "timeout": "600s"}}]}]},
            "http_filters": [{"name": "router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"}}],
        }
        listener = {"address": address(self.port), "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(self.upstream)}}]}]
        cluster = {"name": "model", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "model", "endpoints": endpoints}}
        path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        return [programs()["envoy"], "-c", path, "--concurrency", 1, "--disable-hot-restart", "-l", "error"], {}


class Portkey(Proxy):
    def command(self):
        # The gateway learns provider and upstream from each request.
        self.headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{self.upstream}/v1"}
        return ["node", programs()["portkey"], f"--port={self.port}", "--headless"], {"NODE_ENV": "production"}


class Upstream(Proxy):
    """A fast upstream: nginx with a small JSON answer from memory."""

    def __init__(self, bench):
        bench.upstream = 0
        super().__init__(bench, LOAD_CORE)

    def command(self):
        path = self.folder / "nginx.conf"
        path.write_text(NGINX.format(workers=1, folder=self.folder, log="off", server=ANSWER.format(port=self.port)))
        return ["nginx", "-c", path, "-p", self.folder], {}
