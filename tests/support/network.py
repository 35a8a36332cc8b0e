"""Two hosts joined by a cable, as isolated network namespaces."""

import contextlib
import os
import subprocess
import sys

from support.keylatch import wait_for

INSIDE = "192.0.2.1"

SERVE = """
import socket, sys, threading
for port in map(int, sys.argv[1].split(",")):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        def answer(listener=listener):
            while True:
                listener.accept()[0].sendall(b"here")
        threading.Thread(target=answer, daemon=True).start()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 51820))
print("up", flush=True)
while True:
    said, whence = udp.recvfrom(100)
    udp.sendto(said, whence)
"""
ASK = """
import socket, sys
source, target, port, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
probe = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
probe.settimeout(0.5)
probe.bind((source, 0))
probe.connect((target, port))
if kind == "udp":
    probe.send(b"here")
sys.exit(probe.recv(10) != b"here")
"""


def can_create_namespaces():
    """Whether this machine allows the creation of network namespaces."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    return subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode == 0 and (
        subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    )


class Network:
    """A serving host inside, and a host outside with the given addresses."""

    def __init__(self, addresses, ports, interface="in0"):
        self.inside, self.outside = f"kl-in-{os.getpid()}", f"kl-out-{os.getpid()}"
        self.addresses, self.ports, self.interface = addresses, ports, interface
        self.server = None

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def run(self, where, *words, **options):
        return subprocess.run(["ip", "netns", "exec", where, *words], capture_output=True, text=True, check=False, **options)

    def __enter__(self):
        for name in (self.inside, self.outside):
            self.ip("netns", "add", name)
        self.ip("link", "add", self.interface, "netns", self.inside, "type", "veth", "peer", "name", "out0", "netns", self.outside)
        for name, link, address in ((self.inside, self.interface, "192.0.2.1/24"), (self.outside, "out0", "192.0.2.2/24")):
            self.ip("-n", name, "link", "set", "lo", "up")
            self.ip("-n", name, "addr", "add", address, "dev", link)
            self.ip("-n", name, "addr", "add", address.replace("192.0.2.", "2001:db8::").replace("/24", "/64"), "dev", link, "nodad")
            self.ip("-n", name, "link", "set", link, "up")
        for address in self.addresses:
            self.ip("-n", self.outside, "addr", "add", address, "dev", "lo")
            via = "2001:db8::2" if ":" in address else "192.0.2.2"
            self.ip("-n", self.inside, "route", "add", address, "via", via)
        command = ["ip", "netns", "exec", self.inside, sys.executable, "-c", SERVE, ",".join(map(str, self.ports))]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.server.stdout.readline() == b"up\n"
        # The interfaces need a moment to come up.
        wait_for(lambda: all(self.admits(each, self.ports[0]) for each in ("192.0.2.2", "2001:db8::2")), "they reach each other")
        return self

    def __exit__(self, *_):
        if self.server:
            self.server.kill()
            self.server.wait()
        for name in (self.inside, self.outside):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.ip("netns", "del", name)

    def admits(self, source, port, kind="tcp"):
        """Whether a client with this address gets an answer from this port."""
        target = "2001:db8::1" if ":" in source else INSIDE
        return self.run(self.outside, sys.executable, "-c", ASK, source, target, str(port), kind).returncode == 0
