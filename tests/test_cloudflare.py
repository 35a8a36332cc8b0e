"""Cloudflare's address ranges: refresh, validation, storage; and the firewall that admits only
them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from support.keylatch import BINARY, ROOT, wait_for
from support.network import Network, can_create_namespaces
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
    """A web site with pages set by the test."""
    pages = {"/v4": RANGES}

    def answer(asked, send):
        page = pages.get(asked["target"])
        send(plain("404 Not Found") if page is None else plain(body=page.encode()))
        return True

    with Scripted(answer) as running:
        running.pages = pages
        running.url = f"http://127.0.0.1:{running.port}"
        yield running


def test_ranges_are_refreshed_by_schedule_and_command(start, echo_upstream, site):
    refresh = f", cloudflare_refresh: {{every: 24h, from: ['{site.url}/v4'], allow_private: true}}"
    keylatch = start(echo_upstream, trusted=trusted(refresh))
    said = keylatch.command("cloudflare", "ranges").stdout
    assert "as of 20" in said.splitlines()[0] and "104.16.0.0/13" in said
    # The schedule reads the ranges for the first time.
    path = keylatch.folder / "ranges.txt"
    wait_for(path.exists, "the file is written", 20)
    assert f"Read from {site.url}/v4" in path.read_text()
    # 127.0.0.0/8 is no public network, so the list is refused; a valid list takes effect by itself.
    site.pages["/v4"] = RANGES + "\n2.16.0.0/13\n"
    assert "wrote 23 ranges" in keylatch.command("cloudflare", "refresh").stdout
    wait_for(lambda: "changed files are in force" in keylatch.stderr.read_text(), "the new list is active")
    assert "2.16.0.0/13" in keylatch.command("cloudflare", "ranges").stdout
    good = path.read_text()
    for page, says in [
        ("", "the file contains no range"),
        ("<html>Just a moment…</html>", "not a CIDR"),
        ("0.0.0.0/0", "too wide"),
        ("127.0.0.0/8\n" + RANGES, "not a public network"),
        ("104.16.0.0/13", "known ranges are missing"),
        ("1" * 70_000, "longer than 64 KiB"),
        (None, "404 Not Found"),
    ]:
        site.pages["/v4"] = page
        done = keylatch.command("cloudflare", "refresh")
        assert done.returncode == 1 and says in done.stderr, (page, done.stderr)
        assert path.read_text() == good, "the last good list is kept"
    site.pages["/v4"] = "104.16.0.0/13"
    assert keylatch.command("cloudflare", "refresh", "--force").returncode == 0
    assert keylatch.command("cloudflare", "ranges").stdout.count("/") == 1
    # From a file, and from a private address only with the option for it.
    (keylatch.folder / "local.txt").write_text(RANGES)
    assert keylatch.command("cloudflare", "refresh", "--from", "local.txt").returncode == 0
    # A relative path is relative to the working directory, not to the configuration file.
    (keylatch.folder / "sub").mkdir()
    (keylatch.folder / "sub" / "there.txt").write_text(RANGES)
    elsewhere = [BINARY, "cloudflare", "refresh", "--from", "there.txt", "-c", keylatch.path]
    done = subprocess.run(elsewhere, cwd=keylatch.folder / "sub", capture_output=True, text=True, check=False, env=keylatch.env)
    assert done.returncode == 0 and "sub/there.txt" in path.read_text(), done.stderr
    keylatch.write(trusted=trusted())
    refused = keylatch.command("cloudflare", "refresh", "--from", f"{site.url}/v4")
    assert refused.returncode == 1 and "https" in refused.stderr


def test_the_file_takes_precedence_over_the_embedded_list(start, echo_upstream):
    keylatch = start(echo_upstream, trusted="{networks: [loopback], behind_cloudflare: [loopback]}")
    assert client(keylatch) == "203.0.113.7"
    keylatch.write(trusted="{networks: [127.0.0.1], cloudflare_file: ranges.txt, cloudflare_refresh: {every: 30s}}")
    said = keylatch.command("check").stderr
    assert "cloudflare_refresh.every: must be between 1m and 30days" in said
    # A missing file is reported with its remedy, and the command that creates it works.
    keylatch.write(trusted="{networks: [127.0.0.1], cloudflare_file: ranges.txt}")
    said = keylatch.command("check").stderr
    assert "trusted_proxies.cloudflare_file: `ranges.txt` does not exist; run `keylatch cloudflare refresh`" in said, said
    (keylatch.folder / "local.txt").write_text(RANGES)
    assert keylatch.command("cloudflare", "refresh", "--from", "local.txt").returncode == 0
    assert keylatch.command("check").returncode == 0 and (keylatch.folder / "ranges.txt").stat().st_mode & 0o777 == 0o644
    # The new file keeps the permissions of the old one.
    (keylatch.folder / "ranges.txt").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(keylatch.folder / "ranges.txt", 12345, 12346)
    assert keylatch.command("cloudflare", "refresh", "--from", "local.txt").returncode == 0
    after = (keylatch.folder / "ranges.txt").stat()
    assert after.st_mode & 0o777 == 0o640 and (os.geteuid() != 0 or (after.st_uid, after.st_gid) == (12345, 12346))
    keylatch.write(trusted="{cloudflare_refresh: {}}")
    assert "requires `cloudflare_file`" in keylatch.command("check").stderr


network = pytest.mark.skipif(not can_create_namespaces(), reason="needs Linux and the right to create network namespaces")
CLOUDFLARES, STRANGERS = ["104.16.0.9", "2606:4700::9"], ["203.0.113.9", "2001:db9::9"]
DHCP = {
    "nft": ["sh", "-c", "nft list ruleset | grep -q 'ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept'"],
    "iptables": ["ip6tables", "-C", "KEYLATCH", "-p", "udp", "-s", "fe80::/10", "--sport", "547", "--dport", "546", "-j", "RETURN"],
}
LISTENS_443 = """
listeners: [{{address: "0.0.0.0:443"}}, {{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: memory
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
routes: [{{name: api, upstream: model}}]
"""


@network
@pytest.mark.parametrize("form", ["nft", "iptables", "ufw"])
def test_only_cloudflare_ssh_and_wireguard_are_admitted(start, echo_upstream, tmp_path, form):
    if not shutil.which(form):
        pytest.skip(f"{form} is not installed")
    keylatch = start(echo_upstream)
    keylatch.path.write_text(LISTENS_443.format(**keylatch.values))
    printed = keylatch.command("firewall", "--format", form)
    assert printed.returncode == 0, printed.stderr
    rules = tmp_path / "rules"
    rules.write_text(printed.stdout)
    with Network(CLOUDFLARES + STRANGERS, [443, 22, 3000]) as net:
        assert all(net.admits(address, port) for address in CLOUDFLARES + STRANGERS for port in (443, 22, 3000)), "admitted without the firewall"
        load(net, form, rules, tmp_path)
        for times in range(2):
            for address in CLOUDFLARES + STRANGERS:
                assert net.admits(address, 443) == (address in CLOUDFLARES), address
                assert net.admits(address, 22) and not net.admits(address, 3000), address
            assert net.admits("203.0.113.9", 51820, "udp")
            # Answers of a DHCPv6 server belong to no tracked connection.
            assert form == "ufw" or net.run(net.inside, *DHCP[form]).returncode == 0
            # Loopback and outgoing connections still work.
            assert net.run(net.inside, "python3", "-c", "import socket; print(socket.create_connection(('127.0.0.1', 3000), 1).recv(10))").returncode == 0
            if times == 0:
                # Loading the rules twice is harmless.
                load(net, form, rules, tmp_path)


def load(net, form, rules, folder):
    if form != "ufw":
        loaded = net.run(net.inside, *(["nft", "-f"] if form == "nft" else ["sh"]), str(rules))
        assert loaded.returncode == 0, loaded.stderr
        return
    return within(net, folder, f"sh {rules}")


def within(net, folder, command):
    """ufw stores its rules under /etc, so the command runs with a copy mounted in its place."""
    for name in ("etc/ufw", "etc/default"):
        if not (folder / name).exists():
            shutil.copytree(f"/{name}", folder / name)
    mounts = f"mount --bind {folder}/etc/ufw /etc/ufw && mount --bind {folder}/etc/default /etc/default && {command}"
    loaded = net.run(net.inside, "unshare", "-m", "sh", "-c", mounts)
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    return loaded.stdout + loaded.stderr


@network
def test_ssh_from_named_networks_and_all_ports_over_wireguard(start, echo_upstream, tmp_path):
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    keylatch = start(echo_upstream)
    rules = tmp_path / "rules"
    printed = keylatch.command("firewall", "--port", "443", "--ssh", "2222", "--ssh-from", "203.0.113.0/24", "--interface", "wgtest")
    rules.write_text(printed.stdout)
    with Network(CLOUDFLARES[:1] + STRANGERS[:1], [443, 2222, 3000]) as net:
        load(net, "nft", rules, tmp_path)
        assert net.admits("203.0.113.9", 2222) and not net.admits("104.16.0.9", 2222)
    with Network(STRANGERS[:1], [443, 3000], interface="wgtest") as net:
        load(net, "nft", rules, tmp_path)
        assert net.admits("203.0.113.9", 3000) and net.admits("203.0.113.9", 443)


def test_invalid_firewall_options(start, echo_upstream):
    keylatch = start(echo_upstream)
    loopback = keylatch.command("firewall")
    assert loopback.returncode == 1 and "all listeners are on loopback" in loopback.stderr
    named = keylatch.command("firewall", "--port", "443", "--interface", "wg0; rm -rf /")
    assert named.returncode == 1 and "not the name of an interface" in named.stderr
    assert keylatch.command("firewall", "--port", "443", "--ssh-from", "nowhere").returncode == 2
    for option in ("--port", "--ssh", "--wireguard"):
        assert "0 is not in 1..=65535" in keylatch.command("firewall", option, "0").stderr
    assert "--docker needs" in keylatch.command("firewall", "--port", "443", "--docker", "--format", "ufw").stderr
    # A port for other networks is not opened to Cloudflare.
    keylatch.path.write_text(LISTENS_443.format(**keylatch.values).replace('"127.0.0.1:{port}"'.format(**keylatch.values), '"10.8.0.1:8080"'))
    printed = keylatch.command("firewall", "--interface", "wg0", "--interface", "docker0").stdout
    assert "dport { 443 } accept" in printed and "Not opened to Cloudflare, as the address is private: 10.8.0.1:8080" in printed
    assert 'iifname { "wg0", "docker0" } accept' in printed
    keylatch.path.write_text(keylatch.path.read_text().replace("0.0.0.0:443", "10.8.0.1:443"))
    printed = keylatch.command("firewall").stdout
    assert "tcp dport 22 accept" in printed and "443 }" not in printed
    if shutil.which("nft") and os.geteuid() == 0:
        printed = keylatch.command("firewall", "--port", "443").stdout
        checked = subprocess.run(["nft", "-c", "-f", "-"], input=printed, text=True, capture_output=True, check=False)
        assert checked.returncode == 0 or "Operation not permitted" in checked.stderr, checked.stderr


@network
@pytest.mark.parametrize("form", ["iptables", "ufw"])
def test_new_ranges_replace_the_old_ones(start, echo_upstream, tmp_path, form):
    """Remaining ranges are admitted throughout, removed ranges are refused, and foreign rules stay
    and are reported."""
    if not shutil.which(form):
        pytest.skip(f"{form} is not installed")
    keylatch = start(echo_upstream)
    keylatch.path.write_text(LISTENS_443.format(**keylatch.values) + "trusted_proxies: {cloudflare_file: ranges.txt}\n")
    rules = tmp_path / "rules"
    gone, stays, own = "203.0.113.9", "104.16.0.9", "198.18.0.9"

    def printed(*ranges):
        (keylatch.folder / "ranges.txt").write_text("\n".join(ranges))
        done = keylatch.command("firewall", "--format", form)
        assert done.returncode == 0, done.stderr
        rules.write_text(done.stdout)

    printed("203.0.113.0/24", "104.16.0.0/13")
    with Network([gone, stays, own], [443, 22, 3000]) as net:
        load(net, form, rules, tmp_path)
        assert net.admits(gone, 443) and net.admits(stays, 443) and not net.admits(own, 443)
        if form == "ufw":
            within(net, tmp_path, f"ufw allow from {own} to any port 443 proto tcp")
        printed("104.16.0.0/13")
        said = load(net, form, rules, tmp_path)
        assert not net.admits(gone, 443) and net.admits(stays, 443) and net.admits(stays, 22) and not net.admits(stays, 3000)
        if form == "ufw":
            assert net.admits(own, 443) and f"ufw allow from {own} to any port 443 proto tcp" in said and "These rules were not added by keylatch" in said
            again = load(net, form, rules, tmp_path)
            assert "Rule deleted" not in again and "Skipping adding existing rule" in again
        else:
            # Admitted packets still pass the rules of others: a fail2ban ban holds.
            for rule in (["-N", "f2b-sshd"], ["-A", "f2b-sshd", "-s", stays, "-j", "REJECT"], ["-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "f2b-sshd"]):
                assert net.run(net.inside, "iptables", *rule).returncode == 0
            load(net, form, rules, tmp_path)
            assert not net.admits(stays, 22) and net.admits(own, 22) and net.admits(stays, 443)
            # A list that fails to load changes nothing.
            broken = rules.read_text().replace("104.16.0.0/13", "104.16.0.0/99")
            rules.write_text(broken)
            assert net.run(net.inside, "sh", str(rules)).returncode != 0
            assert net.admits(stays, 443) and not net.admits(gone, 443) and not net.admits(stays, 3000)


@network
def test_a_second_run_keeps_the_options_of_the_first(start, echo_upstream, tmp_path):
    """The options of the first run are stored in the file, so that a second run without them locks
    no client out."""
    keylatch = start(echo_upstream)
    keylatch.path.write_text(LISTENS_443.format(**keylatch.values) + "trusted_proxies: {cloudflare_file: ranges.txt}\n")
    ranges, rules, following = keylatch.folder / "ranges.txt", keylatch.folder / "firewall.nft", keylatch.folder / "firewall.next"
    # An overlapping network is harmless.
    ranges.write_text("104.16.0.0/13\n104.16.5.0/24\n104.24.0.0/14\n")
    options = ["--ssh", "2222", "--ssh-from", "203.0.113.0/24", "--wireguard", "51821", "--interface", "wg7", "--interface", "docker0", "--port", "443", "--port", "80"]
    made = keylatch.command("firewall", *options, "--output", str(rules))
    assert made.returncode == 0 and not made.stdout, made.stderr
    text = rules.read_text()
    assert text == keylatch.command("firewall", *options).stdout
    again = keylatch.command("firewall", "--like", str(rules), "--output", str(following))
    assert again.returncode == 0 and following.read_text() == text, again.stderr
    ranges.write_text("104.16.0.0/13\n198.41.128.0/17\n")
    assert keylatch.command("firewall", "--like", str(rules), "--output", str(following)).returncode == 0
    assert "198.41.128.0/17" in following.read_text() and "tcp dport 2222" in following.read_text()
    with Network(["203.0.113.9"], [2222, 22]) as net:
        for path in (rules, following):
            load(net, "nft", path, tmp_path)
            assert net.admits("203.0.113.9", 2222) and not net.admits("203.0.113.9", 22)
    # A failed run changes nothing.
    ranges.write_text("nonsense\n")
    before = rules.read_text()
    assert keylatch.command("firewall", *options, "--output", str(rules)).returncode == 1 and rules.read_text() == before
    rules.write_text("table inet keylatch {}\n")
    assert "is missing" in keylatch.command("firewall", "--like", str(rules)).stderr
    many = [word for port in range(1000, 1020) for word in ("--port", str(port))]
    ranges.write_text("104.16.0.0/13\n")
    assert keylatch.command("firewall", "--format", "iptables", *many).stdout.count("--dports") == 2


@network
def test_ports_published_by_docker(start, echo_upstream, tmp_path):
    """A container behind this machine with a forwarded port, as Docker sets it up."""
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    keylatch = start(echo_upstream)
    keylatch.path.write_text(LISTENS_443.format(**keylatch.values))
    rules, container = tmp_path / "rules", f"kl-box-{os.getpid()}"
    rules.write_text(keylatch.command("firewall", "--docker").stdout)
    with Network(["104.16.0.9", "203.0.113.9"], [22, 443, 3000]) as net:
        net.ip("netns", "add", container)
        server = None
        try:
            net.ip("link", "add", "br-test", "netns", net.inside, "type", "veth", "peer", "name", "eth0", "netns", container)
            for name, link, address in ((net.inside, "br-test", "172.31.0.1/24"), (container, "eth0", "172.31.0.2/24")):
                net.ip("-n", name, "addr", "add", address, "dev", link)
                net.ip("-n", name, "link", "set", link, "up")
            net.ip("-n", container, "route", "add", "default", "via", "172.31.0.1")
            dnat = "table ip nat { chain pre { type nat hook prerouting priority dstnat; tcp dport { 443, 8443 } dnat to 172.31.0.2:8080; }; chain post { type nat hook postrouting priority srcnat; ip saddr 172.31.0.0/24 masquerade; }; }"
            assert net.run(net.inside, "sh", "-c", f"echo 1 > /proc/sys/net/ipv4/ip_forward && nft '{dnat}'").returncode == 0
            serve = "import socket\nlistener = socket.create_server(('0.0.0.0', 8080))\nprint('up', flush=True)\nwhile True: listener.accept()[0].sendall(b'here')"
            server = subprocess.Popen(["ip", "netns", "exec", container, sys.executable, "-c", serve], stdout=subprocess.PIPE)
            assert server.stdout.readline() == b"up\n"
            assert all(net.admits(address, port) for address in net.addresses for port in (443, 8443)), "admitted without the firewall"
            load(net, "nft", rules, tmp_path)
            assert net.admits("104.16.0.9", 443) and not net.admits("203.0.113.9", 443)
            assert not net.admits("104.16.0.9", 8443), "only named ports are admitted"
            # Outgoing connections of containers still work.
            out = net.run(container, sys.executable, "-c", "import socket; socket.create_connection(('172.31.0.1', 3000), 2).recv(10)")
            assert out.returncode != 0, "containers reach the machine only through a named bridge"
            udp = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.2', 9)); s.settimeout(2); s.connect(('192.0.2.2', 9)); s.send(b'x'); s.recv(1)"
            assert "refused" in net.run(container, sys.executable, "-c", udp).stderr, "answers pass"
        finally:
            if server:
                server.kill()
                server.wait()
            net.ip("netns", "del", container)
