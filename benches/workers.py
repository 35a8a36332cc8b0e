"""One and two workers on two cores that the load generator and the upstream share: requests a
second, processor time, and context switches. The two cores are busy in all rows, so requests a
second show what is left for the proxy, and only processor time and switches show its own scaling.
"""

import harness
import results
from proxies import HAProxy, Keylatch, Nginx, programs


def tables(bench):
    there = programs()
    kinds = {"keylatch": Keylatch, "nginx": Nginx, "haproxy": HAProxy}
    names = {"keylatch": "Keylatch", "nginx": "nginx", "haproxy": "HAProxy"}
    proxies = {f"{names[name]}, {workers}": kind(bench, workers=workers, cores=harness.BOTH_CORES) for name, kind in kinds.items() if name in there for workers in (1, 2)}

    def measure(proxy):
        before, began = harness.switches(proxy.process.pid), harness.cpu_s(proxy.process.pid)
        answered = proxy.load(bench.seconds, bench.folder, cores=harness.BOTH_CORES)
        cpu, after = harness.cpu_s(proxy.process.pid) - began, harness.switches(proxy.process.pid)
        voluntary, involuntary = (1000 * (new - old) / answered for new, old in zip(after, before))
        return {"rate": answered / bench.seconds, "cpu": cpu / answered * 1e6, "voluntary": voluntary, "involuntary": involuntary}

    found = harness.interleave(bench, proxies, measure)
    rows = []
    for name, series in found.items():
        single = found[name.rsplit(",", 1)[0] + ", 1"]
        cells = [results.figure(series[key]) for key in ("rate", "cpu")]
        rows.append([name, cells[0], results.ratio(series["rate"], single["rate"]), cells[1], results.ratio(series["cpu"], single["cpu"]), results.figure(series["voluntary"]), results.figure(series["involuntary"])])
    head = ["proxy, workers", "requests a second", "to one worker", "µs a request", "to one worker", "voluntary switches per 1,000", "involuntary"]
    yield "workers", results.table("One and two workers on two cores", head, rows)
