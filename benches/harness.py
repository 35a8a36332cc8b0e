"""Shared parts of the benchmarks: processes, their cost, load, and rounds. Measures nothing itself,
and knows no proxy.

Processor time is the process's own (user and system, from /proc), divided by the requests answered.
On a shared machine that is steadier than requests a second.
"""

import contextlib
import http.client
import os
import pathlib
import random
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROXY_CORE, LOAD_CORE = 0, max(os.sched_getaffinity(0))
BOTH_CORES = f"{PROXY_CORE},{LOAD_CORE}"
KEY = "Bearer sk-bench-0123456789abcdef"
BODY = '{"model":"demo","messages":[{"role":"user","content":"hi"}]}'
CHAT = "/v1/chat/completions"


class Bench:
    """The context of a run: an upstream, a folder, and the lengths of the measurements."""

    def __init__(self, folder, quick, rounds):
        self.folder, self.quick, self.upstream = folder, quick, None
        self.rounds, self.seconds = rounds, 2 if quick else 3

    def new_folder(self):
        return pathlib.Path(tempfile.mkdtemp(dir=self.folder))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(arguments, cores, folder, **more):
    """Starts a program on these cores. taskset replaces itself with the program, so the process id
    is that of the program."""
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(["taskset", "-c", str(cores), *map(str, arguments)], stdout=log, stderr=log, cwd=folder, **more)


def wait_listen(port, process, folder):
    for _ in range(1500):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    log = (folder / "log").read_text(errors="replace")[-2000:]
    raise SystemExit(f"a server does not listen: {process.args}\n{log}")


def stop(process, seconds=30):
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tree(pid):
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [pid, *map(int, children)]


def _tasks(pid, name):
    """A file of /proc for every thread of a process and its children."""
    for each in _tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in pathlib.Path(f"/proc/{each}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    yield (task / name).read_text()


def cpu_s(pid):
    """User and system time of a process and its children, in seconds."""
    return sum(int(text.split()[0]) for text in _tasks(pid, "schedstat")) / 1e9


def switches(pid):
    """The context switches of a process and its children: voluntary and involuntary."""
    counts = [0, 0]
    for text in _tasks(pid, "status"):
        for line in text.splitlines():
            for at, name in enumerate(("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")):
                if line.startswith(name):
                    counts[at] += int(line.split()[1])
    return counts


def memory_kib(pid):
    """The memory that a process and its children have allocated and touched, without files."""
    total = 0
    for each in _tree(pid):
        for line in pathlib.Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1])
    return total


def lua(folder, name, text):
    path = folder / f"{name}.lua"
    path.write_text(text)
    return path


def wrk(port, seconds, connections, script, path=CHAT, cores=LOAD_CORE):
    """Runs wrk; returns its output. Fails if a request does."""
    command = ["taskset", "-c", str(cores), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script, f"http://127.0.0.1:{port}{path}"]
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    bad = [line for line in out.splitlines() if "Non-2xx" in line or "Socket errors" in line]
    if bad:
        raise SystemExit(f"some requests failed: {bad}")
    return out


def load(port, seconds, folder, rate="full", path=CHAT, headers=(), cores=LOAD_CORE):
    """Sends POSTs; returns the number of answers. *Steady* is about 3,000 a second on 32
    connections, *full* as many as possible on 16."""
    fields = {"Authorization": KEY, "Content-Type": "application/json", **dict(headers)}
    text = f"wrk.method = 'POST'\nwrk.body = '{BODY}'\n" + "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in fields.items())
    if rate == "steady":
        # wrk waits this long, in ms, between the requests of a connection.
        text += "function delay() return 10 end\n"
    out = wrk(port, seconds, 32 if rate == "steady" else 16, lua(folder, f"post-{rate}", text), path, cores)
    return int(next(line for line in out.splitlines() if "requests in" in line).split()[0])


def interleave(bench, proxies, measure):
    """Calls `measure(proxy)`, which returns figures by name, for every proxy in turn, in rounds. The
    order differs from round to round, because the place in it changes a figure. Returns the rounds
    by proxy and figure. Warms up first; stops the proxies."""
    found = {name: {} for name in proxies}
    try:
        for proxy in proxies.values():
            proxy.load(1, bench.folder)
        for _ in range(bench.rounds):
            for name, proxy in random.sample(list(proxies.items()), len(proxies)):
                for key, value in measure(proxy).items():
                    found[name].setdefault(key, []).append(value)
    finally:
        for proxy in proxies.values():
            stop(proxy.process)
    return found


def cpu_us(bench, proxy, rate="full", **more):
    """The processor time of a POST, in µs."""
    before = cpu_s(proxy.process.pid)
    answered = proxy.load(bench.seconds, bench.folder, rate, **more)
    return (cpu_s(proxy.process.pid) - before) / answered * 1e6


def ask_each(port, keys):
    """The time of each request in ms, one after the other on one connection."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port, 30), []
    for key in keys:
        began = time.perf_counter()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        times.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"a request got status {answer.status}")
    connection.close()
    return times


def at_share(times, share):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * share))]
