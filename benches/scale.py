"""How processor time and memory grow: with open connections, filters, rules, routes, and bindings.

All sizes of one kind run at the same time and are measured in turns; idle processes cost nothing.
"""

import contextlib
import socket
import statistics

import harness
import results
from proxies import QUICKSTART, SECRET, Keylatch
from stores import fill_sqlite

LIMITS = "{connections: 20000, connections_per_peer: 20000, idle_timeout: 1h}"
HEAD = ["size", "µs a POST", "to the first", "memory, MiB"]


def compare(bench, proxies, sizes, what, unit):
    """The table of one kind, with its growth as a note."""
    memory = {name: harness.memory_kib(proxy.process.pid) / 1024 for name, proxy in proxies.items()}
    times = harness.interleave(bench, proxies, lambda proxy: {"cpu": harness.cpu_us(bench, proxy)})
    cpu, base = [each["cpu"] for each in times.values()], next(iter(times.values()))["cpu"]
    figures, kept = [results.ratio(each, base) for each in cpu], [results.one(each) for each in memory.values()]
    rows = [[name, results.figure(each), each_ratio, each_memory] for name, each, each_ratio, each_memory in zip(proxies, cpu, figures, kept)]
    note = f"Processor time: {results.growth(sizes, figures)}{_per(sizes, cpu, figures, 'µs', unit)}. Memory: {results.growth(sizes, kept)}{_per(sizes, [[value] for value in memory.values()], kept, 'MiB', unit)}."
    return results.table(f"Processor time and memory by {what}", [what, *HEAD[1:]], rows, note)


def _per(sizes, series, figures, amount, unit):
    """The slope between the first and the last size, if the figure grows with the size."""
    if results.growth(sizes, figures) not in ("linear", "grows"):
        return ""
    slope = (statistics.median(series[-1]) - statistics.median(series[0])) / (sizes[-1] - sizes[0])
    amount, slope = ("ns", slope * 1e3) if amount == "µs" else ("KiB", slope * 1024)
    return f" ({slope:,.3g} {amount} a {unit})"


def connect_idle(proxy, count, stack):
    """Opens connections, each with one answered request."""
    request = f"GET /v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: {harness.KEY}\r\n\r\n".encode()
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 20))
        client.sendall(request)
        if not client.recv(4096).startswith(b"HTTP/1.1 200"):
            raise SystemExit("a connection was refused")


def by_connections(bench):
    sizes = (10, 1000, 10_000)
    with contextlib.ExitStack() as stack:
        proxies = {f"{size:,}": Keylatch(bench, limits=LIMITS) for size in sizes}
        for size, proxy in zip(sizes, proxies.values()):
            connect_idle(proxy, size, stack)
        return compare(bench, proxies, sizes, "idle connections", "connection")


def by_filters(bench):
    sizes = (1, 10, 50)
    item = "      - rules: [{name: r%d, if: 'request.path == \"/none/%d\"', deny: {}}]\n"
    proxies = {str(size): Keylatch(bench, "".join(item % (n, n) for n in range(size))) for size in sizes}
    return compare(bench, proxies, sizes, "filters, each with one rule", "filter")


def by_rules(bench):
    sizes = (1, 10, 50)
    item = "          - {name: r%d, if: 'request.path == \"/none/%d\"', deny: {}}\n"
    proxies = {str(size): Keylatch(bench, "      - rules:\n" + "".join(item % (n, n) for n in range(size))) for size in sizes}
    return compare(bench, proxies, sizes, "rules in one filter", "rule")


def by_routes(bench):
    sizes = (10, 100, 1000)
    item = "  - {name: r%d, match: {paths: [/r%d/*]}, upstream: model, filters: [key_binding: {}]}\n"
    # The route that matches is the last one.
    proxies = {f"{size:,}": Keylatch(bench, routes="".join(item % (n, n) for n in range(size - 1))) for size in sizes}
    return compare(bench, proxies, sizes, "routes", "route")


def by_bindings(bench):
    sizes = (1000, 100_000, 1_000_000)
    proxies, cold = {}, []
    for size in sizes:
        proxy = proxies[f"{size:,}"] = Keylatch(bench, QUICKSTART, secrets=SECRET)
        proxy.stop()
        fill_sqlite(proxy.folder / "bench.db", size)
        proxy.begin()
    for proxy in proxies.values():
        harness.ask_each(proxy.port, ["sk-first-abcdefgh"] * 50)
        cold.append(results.one(statistics.median(harness.ask_each(proxy.port, [f"sk-cold-{n:04}-abcdefgh" for n in range(500)]))))
    made = compare(bench, proxies, sizes, "bindings (SQLite)", "binding")
    made["head"].append("first use, p50 ms")
    made["rows"] = [[*row, figure] for row, figure in zip(made["rows"], cold)]
    made["note"] += f" First use: {results.growth(sizes, cold)}."
    return made


def tables(bench):
    for name, kind in (("connections", by_connections), ("filters", by_filters), ("rules", by_rules), ("routes", by_routes), ("bindings", by_bindings)):
        yield f"scale-{name}", kind(bench)
