"""Runs the benchmarks, prints one table per subject, and writes `benches/results/DATE.json`, which
`benches/page.py` puts into docs/benchmarks.md.

All programs of a table are measured in one run, in turns, so that their ratios hold on a shared
machine. Needs wrk, nginx, PostgreSQL, Redis; HAProxy, Caddy, Envoy and Node are optional. The
programs are those of `cargo build --release`, or KEYLATCH_BINARY and PASSTHROUGH_BINARY;
target/dist/keylatch, or KEYLATCH_SHIPPED, is measured beside them if it exists.

    python3 benches/run.py --quick
    python3 benches/run.py --only cost workers --rounds 9
"""

import argparse
import contextlib
import importlib
import pathlib
import resource
import sys
import tempfile
import time

import page
import peers
import results
from harness import Bench
from proxies import Upstream, programs

SUBJECTS = ("cost", "workers", "scale", "streams", "stores", "access", "lists")
FILES = 30_000


def raise_file_limit():
    """10,000 connections need as many files in this process, and twice as many in a proxy."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, max(hard, FILES)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller tables: a quarter of an hour")
    parser.add_argument("--rounds", type=int, help="default: 3 with --quick, otherwise 7")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    options = parser.parse_args()
    raise_file_limit()
    peers.install()
    there, tables = programs(), {}
    if missing := [name for name in ("keylatch", "pingora") if name not in there]:
        raise SystemExit(f"not built: {', '.join(missing)}; see `make bench`")
    for name in ("shipped", "nginx", "haproxy", "envoy", "caddy", "portkey"):
        if name not in there:
            print(f"{name} is not measured: the program is missing", file=sys.stderr)
    about = {"commit": results.commit(), "program": "release profile", "quick": options.quick, "versions": results.versions(there)}
    for subject in options.only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            bench = Bench(pathlib.Path(folder), options.quick, options.rounds or (3 if options.quick else 7))
            upstream = Upstream(bench)
            stack.callback(upstream.stop)
            bench.upstream = upstream.port
            for name, table in importlib.import_module(subject).tables(bench):
                tables[name] = table
                print(f"\n### {table['title']}\n\n{results.markdown(table)}\n\n{table['note']}".rstrip(), flush=True)
                path = results.write({name: table}, about)
        print(f"\n({subject}: {time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    page.update()
    print(f"\nwritten: {path.relative_to(results.ROOT)}, docs/benchmarks.md", file=sys.stderr)


if __name__ == "__main__":
    main()
