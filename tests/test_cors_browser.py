"""Preflights and cross-origin calls of real browsers: Chromium and Firefox, as Debian packages them.

A page takes calls from its own server, one after the other, and reports each result to it: no driver is needed.
"""

import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest
from support import raw
from support.stores import FREE

# What OpenAI's and Anthropic's client libraries add to each request.
STAINLESS = {f"x-stainless-{name}": "1" for name in ("arch", "lang", "os", "package-version", "retry-count", "runtime", "runtime-version", "timeout", "helper-method")}
SCRIPT = """<!doctype html><title>page</title><script type="module">
for (;;) {
  const {url, options} = await (await fetch("/next")).json();
  let result;
  try {
    const answer = await fetch(url, options);
    result = {status: answer.status, id: answer.headers.get("x-request-id"), body: await answer.text()};
  } catch (error) {
    result = {error: String(error)};
  }
  await fetch("/result", {method: "POST", body: JSON.stringify(result)});
}
</script>"""
BROWSERS = {
    "chromium": ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--user-data-dir={}"],
    "firefox": ["firefox-esr", "--headless", "--no-remote", "--profile", "{}"],
}


class Page:
    """An open page in a browser."""

    def __init__(self):
        self.calls, self.results = queue.Queue(), queue.Queue()
        page = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/next":
                    self.answer("application/json", json.dumps(page.calls.get()))
                else:
                    self.answer("text/html", SCRIPT)

            def do_POST(self):
                page.results.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.answer("text/plain", "")

            def answer(self, kind, text):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.origin = f"http://127.0.0.1:{self.server.server_port}"

    def call(self, url, options):
        """The result of `fetch(url, options)` in the page: status, request id and body, or the error."""
        self.calls.put({"url": url, "options": options})
        return self.results.get(timeout=60)


@pytest.fixture(scope="module", params=BROWSERS)
def page(request, tmp_path_factory):
    command = BROWSERS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    profile = tmp_path_factory.mktemp(request.param)
    page = Page()
    process = subprocess.Popen([argument.format(profile) for argument in command] + [page.origin + "/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield page
    process.terminate()
    process.wait(20)
    page.server.shutdown()


def test_what_a_page_may_send(start, echo_upstream, page):
    origin = page.origin
    headers = {"authorization": "Bearer sk-browser-abcdefgh", "content-type": "application/json"}
    options = {"method": "POST", "headers": headers, "body": "{}"}

    def call(cors, path="/v1/x", **changes):
        replica = start(echo_upstream, filters=f"  - cors: {{{cors}}}", route_filters=FREE)
        return page.call(f"http://127.0.0.1:{replica.port}{path}", {**options, **changes})

    listed = f"origins: ['{origin}']"
    assert call(listed)["status"] == 200
    # The libraries' own fields: refused by the browser, unless they are echoed.
    assert "error" in call(listed, headers={**headers, **STAINLESS})
    echoed = call(f"{listed}, echo_headers: true, credentials: true", headers={**headers, **STAINLESS}, credentials="include")
    assert echoed["status"] == 200 and echoed["id"]
    assert set(STAINLESS) <= {name for name, _ in json.loads(echoed["body"])["headers"]}
    # `*` covers every field but Authorization.
    assert call("origins: ['*'], headers: ['*']", headers={"content-type": "application/json", **STAINLESS, "x-api-key": "sk-browser-abcdefgh"})["status"] == 200
    assert call("origins: ['*'], headers: ['*', authorization]", headers={**headers, **STAINLESS})["status"] == 200
    # A page can read what is refused before a route is found.
    refused = call(f"{listed}", path="/none")
    assert refused["status"] == 404 and "error" in json.loads(refused["body"])


def test_a_star_does_not_cover_authorization(start, echo_upstream, page):
    replica = start(echo_upstream, filters="  - cors: {origins: ['*'], headers: ['*']}", route_filters=FREE)
    asked = {"method": "POST", "headers": {"authorization": "Bearer sk-browser-abcdefgh"}, "body": "{}"}
    answer = page.call(f"http://127.0.0.1:{replica.port}/v1/x", asked)
    # The Fetch standard refuses this; Chromium would let it pass if it were told `*`.
    assert "error" in answer
    asks = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")]
    assert raw.request(replica.port, method="OPTIONS", headers=asks).header("access-control-allow-headers") == "*"
