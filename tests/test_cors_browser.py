"""Preflights and cross-origin calls of a real browser: Debian's Chromium with its WebDriver."""

import http.server
import json
import shutil
import threading

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from support import raw
from support.stores import FREE

# Header fields that OpenAI's and Anthropic's client libraries add to each request.
STAINLESS = {f"x-stainless-{name}": "1" for name in ("arch", "lang", "os", "package-version", "retry-count", "runtime", "runtime-version", "timeout", "helper-method")}
CALL = """
const [url, options, done] = arguments;
fetch(url, options).then(async (answer) => done({status: answer.status, id: answer.headers.get("x-request-id"), body: await answer.text()}), (error) => done({error: String(error)}));
"""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>page</title>")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def page():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
        driver.set_script_timeout(20)
        driver.get(f"http://127.0.0.1:{server.server_port}/")
        yield driver, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_fields_that_a_page_may_send(start, echo_upstream, page):
    driver, origin = page
    headers = {"authorization": "Bearer sk-browser-abcdefgh", "content-type": "application/json"}
    options = {"method": "POST", "headers": headers, "body": "{}"}

    def call(cors, path="/v1/x", **changes):
        replica = start(echo_upstream, filters=f"  - cors: {{{cors}}}", route_filters=FREE)
        return driver.execute_async_script(CALL, f"http://127.0.0.1:{replica.port}{path}", {**options, **changes})

    listed = f"origins: ['{origin}']"
    assert call(listed)["status"] == 200
    # The browser refuses the fields of the libraries unless the preflight echoes them.
    assert "error" in call(listed, headers={**headers, **STAINLESS})
    echoed = call(f"{listed}, echo_headers: true, credentials: true", headers={**headers, **STAINLESS}, credentials="include")
    assert echoed["status"] == 200 and echoed["id"]
    assert set(STAINLESS) <= {name for name, _ in json.loads(echoed["body"])["headers"]}
    # `*` covers every field but Authorization.
    assert call("origins: ['*'], headers: ['*']", headers={"content-type": "application/json", **STAINLESS, "x-api-key": "sk-browser-abcdefgh"})["status"] == 200
    assert call("origins: ['*'], headers: ['*', authorization]", headers={**headers, **STAINLESS})["status"] == 200
    # A page can read a refusal that precedes routing.
    refused = call(f"{listed}", path="/none")
    assert refused["status"] == 404 and "error" in json.loads(refused["body"])


def test_a_star_does_not_cover_authorization(start, echo_upstream, page):
    driver, _ = page
    replica = start(echo_upstream, filters="  - cors: {origins: ['*'], headers: ['*']}", route_filters=FREE)
    asked = {"method": "POST", "headers": {"authorization": "Bearer sk-browser-abcdefgh"}, "body": "{}"}
    answer = driver.execute_async_script(CALL, f"http://127.0.0.1:{replica.port}/v1/x", asked)
    # The Fetch standard refuses this; Chromium would allow it for `*`.
    assert "error" in answer
    asks = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")]
    assert raw.request(replica.port, method="OPTIONS", headers=asks).header("access-control-allow-headers") == "*"
