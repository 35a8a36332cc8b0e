"""Cloudflare's ranges: read anew, looked at, kept; and the firewall that lets only them in."""

import json
import os
import shutil
import subprocess

import pytest

from support.keylatch import ROOT, wait_for
from support.network import Network, can
from support.raw import request
from support.upstreams import Scripted, plain

RANGES = (ROOT / "config" / "cloudflare-ips.txt").read_text()
TRUSTED = "{{networks: [cloudflare, loopback], cloudflare_file: ranges.txt{more}}}"


def client(keylatch, peer="127.0.0.1"):
    answer = request(keylatch.port, headers=[("CF-Connecting-IP", "203.0.113.7")], source=peer)
    return dict(json.loads(answer.body)["headers"])["x-forwarded-for"]


def trusted(more=""):
    return TRUSTED.replace("{more}", more).replace("{{", "{").replace("}}", "}")


@pytest.fixture
def site():
    """A web site whose pages a test changes."""
    pages = {"/v4": RANGES}

    def answer(asked, send):
        page = pages.get(asked["target"])
        send(plain("404 Not Found") if page is None else plain(body=page.encode()))
        return True

    with Scripted(answer) as running:
        running.pages = pages
        running.url = f"http://127.0.0.1:{running.port}"
        yield running


def test_they_are_read_anew_by_command(start, echo_upstream, site):
    refresh = f", cloudflare_refresh: {{every: 24h, from: ['{site.url}/v4'], allow_private: true}}"
    keylatch = start(echo_upstream, trusted=trusted(refresh))
    said = keylatch.command("cloudflare", "ranges").stdout
    assert "as of 20" in said.splitlines()[0] and "104.16.0.0/13" in said
    # The schedule has it read for the first time.
    path = keylatch.folder / "ranges.txt"
    wait_for(path.exists, "the file is written", 20)
    assert f"Read from {site.url}/v4" in path.read_text()
    # 127.0.0.0/8 would be nobody's public network: as what it is it is refused; what is fetched goes into force by itself.
    site.pages["/v4"] = RANGES + "\n198.18.0.0/15\n"
    assert "are in" in keylatch.command("cloudflare", "refresh").stdout
    wait_for(lambda: "what has changed is in force" in keylatch.stderr.read_text(), "it is in force")
    assert "198.18.0.0/15" in keylatch.command("cloudflare", "ranges").stdout
    good = path.read_text()
    for page, says in [
        ("", "the file holds no range"),
        ("<html>Just a moment…</html>", "not a CIDR"),
        ("0.0.0.0/0", "too wide"),
        ("127.0.0.0/8\n" + RANGES, "not a public network"),
        ("104.16.0.0/13", "are not there any more"),
        ("1" * 70_000, "longer than 64 KiB"),
        (None, "404 Not Found"),
    ]:
        site.pages["/v4"] = page
        done = keylatch.command("cloudflare", "refresh")
        assert done.returncode == 1 and says in done.stderr, (page, done.stderr)
        assert path.read_text() == good, "the last good one is kept"
    site.pages["/v4"] = "104.16.0.0/13"
    assert keylatch.command("cloudflare", "refresh", "--force").returncode == 0
    assert keylatch.command("cloudflare", "ranges").stdout.count("/") == 1
    # From a file, and never from a private place unless that is said.
    (keylatch.folder / "local.txt").write_text(RANGES)
    assert keylatch.command("cloudflare", "refresh", "--from", "local.txt").returncode == 0
    keylatch.write(trusted=trusted())
    refused = keylatch.command("cloudflare", "refresh", "--from", f"{site.url}/v4")
    assert refused.returncode == 1 and "https" in refused.stderr


def test_a_file_that_is_there_goes_before_the_embedded_one(start, echo_upstream):
    keylatch = start(echo_upstream, trusted="{networks: [loopback], behind_cloudflare: [loopback]}")
    assert client(keylatch) == "203.0.113.7"
    keylatch.write(trusted="{networks: [127.0.0.1], cloudflare_file: ranges.txt, cloudflare_refresh: {every: 30s}}")
    said = keylatch.command("check").stderr
    assert "cloudflare_refresh.every: must be between 1m and 30days" in said
    keylatch.write(trusted="{cloudflare_refresh: {}}")
    assert "needs `cloudflare_file`" in keylatch.command("check").stderr


network = pytest.mark.skipif(not can(), reason="needs root on Linux, and leave to make network namespaces")
CLOUDFLARES, STRANGERS = ["104.16.0.9", "2606:4700::9"], ["203.0.113.9", "2001:db9::9"]
LISTENS_443 = """
listeners: [{{address: "0.0.0.0:443"}}, {{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: memory
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
routes: [{{name: api, upstream: model}}]
"""


@network
@pytest.mark.parametrize("form", ["nft", "iptables", "ufw"])
def test_only_cloudflare_ssh_and_wireguard_are_let_in(start, echo_upstream, tmp_path, form):
    if not shutil.which(form):
        pytest.skip(f"{form} is not installed")
    keylatch = start(echo_upstream)
    keylatch.path.write_text(LISTENS_443.format(**keylatch.values))
    printed = keylatch.command("firewall", "--format", form)
    assert printed.returncode == 0, printed.stderr
    rules = tmp_path / "rules"
    rules.write_text(printed.stdout)
    with Network(CLOUDFLARES + STRANGERS, [443, 22, 3000]) as net:
        assert all(net.lets_in(address, port) for address in CLOUDFLARES + STRANGERS for port in (443, 22, 3000)), "before"
        load(net, form, rules, tmp_path)
        for times in range(2):
            for address in CLOUDFLARES + STRANGERS:
                assert net.lets_in(address, 443) == (address in CLOUDFLARES), address
                assert net.lets_in(address, 22) and not net.lets_in(address, 3000), address
            assert net.lets_in("203.0.113.9", 51820, "udp")
            # From inside everything goes on: to itself, and out.
            assert net.run(net.inside, "python3", "-c", "import socket; print(socket.create_connection(('127.0.0.1', 3000), 1).recv(10))").returncode == 0
            if times == 0:
                # Once more is no harm.
                load(net, form, rules, tmp_path)


def load(net, form, rules, folder):
    if form != "ufw":
        loaded = net.run(net.inside, *(["nft", "-f"] if form == "nft" else ["sh"]), str(rules))
        assert loaded.returncode == 0, loaded.stderr
        return
    # ufw keeps what it is told under /etc: a copy stands in its place for what runs here.
    for name in ("etc/ufw", "etc/default"):
        if not (folder / name).exists():
            shutil.copytree(f"/{name}", folder / name)
    mounts = f"mount --bind {folder}/etc/ufw /etc/ufw && mount --bind {folder}/etc/default /etc/default && sh {rules}"
    loaded = net.run(net.inside, "unshare", "-m", "sh", "-c", mounts)
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr


@network
def test_ssh_from_some_and_everything_by_wireguard(start, echo_upstream, tmp_path):
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    keylatch = start(echo_upstream)
    rules = tmp_path / "rules"
    printed = keylatch.command("firewall", "--port", "443", "--ssh", "2222", "--ssh-from", "203.0.113.0/24", "--interface", "wgtest")
    rules.write_text(printed.stdout)
    with Network(CLOUDFLARES[:1] + STRANGERS[:1], [443, 2222, 3000]) as net:
        load(net, "nft", rules, tmp_path)
        assert net.lets_in("203.0.113.9", 2222) and not net.lets_in("104.16.0.9", 2222)
    with Network(STRANGERS[:1], [443, 3000], interface="wgtest") as net:
        load(net, "nft", rules, tmp_path)
        assert net.lets_in("203.0.113.9", 3000) and net.lets_in("203.0.113.9", 443)


def test_what_cannot_be_a_rule(start, echo_upstream):
    keylatch = start(echo_upstream)
    loopback = keylatch.command("firewall")
    assert loopback.returncode == 1 and "all listeners are on loopback" in loopback.stderr
    named = keylatch.command("firewall", "--port", "443", "--interface", "wg0; rm -rf /")
    assert named.returncode == 1 and "not the name of an interface" in named.stderr
    assert keylatch.command("firewall", "--port", "443", "--ssh-from", "nowhere").returncode == 2
    if shutil.which("nft") and os.geteuid() == 0:
        printed = keylatch.command("firewall", "--port", "443").stdout
        checked = subprocess.run(["nft", "-c", "-f", "-"], input=printed, text=True, capture_output=True, check=False)
        assert checked.returncode == 0 or "Operation not permitted" in checked.stderr, checked.stderr
