"""The processor time of a small POST through Keylatch, a bare Pingora, and other proxies."""

import results
from harness import cpu_us, interleave
from proxies import Caddy, Envoy, HAProxy, Keylatch, Nginx, Pingora, Portkey, programs


def tables(bench):
    there = programs()
    kinds = {"pingora": Pingora, "keylatch": Keylatch, "shipped": lambda bench: Keylatch(bench, program="shipped"), "nginx": Nginx, "haproxy": HAProxy, "envoy": Envoy, "caddy": Caddy, "portkey": Portkey}
    names = {"pingora": "Pingora, bare", "keylatch": "Keylatch, release profile", "shipped": "Keylatch, as shipped", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy", "caddy": "Caddy", "portkey": "Portkey gateway (Node)"}
    proxies = {names[name]: kind(bench) for name, kind in kinds.items() if name in there}
    times = interleave(bench, proxies, lambda proxy: {rate: cpu_us(bench, proxy, rate) for rate in ("steady", "full")})
    base, rows = times["Pingora, bare"], []
    for name, found in times.items():
        rows.append([name, *(cell for rate in ("steady", "full") for cell in (results.figure(found[rate]), results.ratio(found[rate], base[rate])))])
    yield "cost", results.table("Processor time of a POST (µs)", ["proxy", "steady", "to bare Pingora", "full", "to bare Pingora"], rows)
