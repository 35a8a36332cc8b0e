"""The results of the benchmarks: figures with their rounds, tables, the machine, and the JSON files
that `docs/benchmarks.md` is made from. Measures nothing.
"""

import datetime
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benches" / "results"


def figure(rounds):
    """A measured figure: every round, the median, and the spread."""
    rounds = [float(f"{value:.5g}") for value in rounds]
    return {"median": float(f"{statistics.median(rounds):.5g}"), "min": min(rounds), "max": max(rounds), "rounds": rounds}


def one(value):
    return figure([value])


def ratio(rounds, base):
    """The ratio to another series, computed within each round."""
    return figure([a / b for a, b in zip(rounds, base)])


def difference(rounds, base):
    return {**figure([a - b for a, b in zip(rounds, base)]), "signed": True}


def growth(sizes, figures):
    """How a figure grows with a size, by the better of two fits: a + b·n and a + b·log n. Constant
    if the last is less than a tenth above the first, or within the spread of the rounds."""
    first, last, medians = figures[0], figures[-1], [each["median"] for each in figures]
    if last["median"] <= 1.1 * first["median"] or last["min"] < first["max"]:
        return "constant"
    if len(sizes) == 2:
        # Two sizes cannot tell the shapes apart.
        return "grows"
    errors = {}
    for name, xs in (("linear", sizes), ("logarithmic", [math.log(size) for size in sizes])):
        slope, start = statistics.linear_regression(xs, medians)
        errors[name] = sum((start + slope * x - y) ** 2 for x, y in zip(xs, medians))
    return min(errors, key=errors.get)


def table(title, head, rows, note=""):
    """`head` names the columns. A row is a list of its name and its cells: figures or texts."""
    return {"title": title, "head": list(head), "rows": [list(row) for row in rows], "note": note}


def _digits(value):
    for least, digits in ((100, 0), (10, 1), (0.1, 2)):
        if abs(value) >= least:
            return digits
    return 3


def show(cell):
    """The text of a cell: the median and, if there were several rounds, the spread."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if cell["min"] == cell["max"] == 0:
        return "0"
    sign, digits = "+" if cell.get("signed") else "", _digits(cell["median"])
    form = lambda value: f"{value:{sign},.{digits}f}".replace("-", "−")  # noqa: E731
    spread = f" ({form(cell['min'])}–{form(cell['max'])})" if cell["min"] != cell["max"] else ""
    return form(cell["median"]) + spread


def markdown(some):
    lines = ["| " + " | ".join(some["head"]) + " |", "| " + " | ".join("---" for _ in some["head"]) + " |"]
    lines += ["| " + " | ".join(map(show, row)) + " |" for row in some["rows"]]
    return "\n".join(lines)


def _said(*command, pattern=r"\d+(?:\.\d+)+"):
    """The version that a program prints, or None."""
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found[0] if found else None


def _pingora():
    lock = (ROOT / "benches" / "passthrough" / "Cargo.lock").read_text()
    return re.search(r'name = "pingora"\nversion = "([^"]+)"', lock)[1]


def versions(programs):
    """The versions of all programs. `programs` are the paths of those that are not in PATH."""
    postgres = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    found = {
        "keylatch": _said(programs["keylatch"], "--version"),
        "pingora": _pingora(),
        "nginx": _said("nginx", "-v"),
        "haproxy": _said("haproxy", "-v"),
        "caddy": _said("caddy", "version"),
        "envoy": _said(programs["envoy"], "--version", pattern=r"\d+\.\d+\.\d+") if programs.get("envoy") else None,
        "portkey": programs.get("portkey version"),
        "node": _said("node", "--version"),
        "redis": _said("redis-server", "--version"),
        "postgres": _said(postgres[-1] if postgres else "postgres", "--version"),
        "wrk": _said("wrk", "-v"),
        "rustc": _said("rustc", "--version"),
    }
    return {name: version for name, version in found.items() if version}


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    numbers = re.search(r"^cpu family\s*:\s*(\d+)\nmodel\s*:\s*(\d+)$", info, re.M)
    caches = {}
    for folder in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        read = lambda name: (folder / name).read_text().strip()  # noqa: E731
        suffix = {"Data": "d", "Instruction": "i"}.get(read("type"), "")
        caches[f"L{read('level')}{suffix}"] = read("size")
    name = (model[1] if model else platform.processor()) + (f", family {numbers[1]} model {numbers[2]}" if numbers else "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {"processor": name, "caches": caches, "cores": os.cpu_count(), "memory_mib": memory, "kernel": platform.release()}


def commit():
    """The commit of the sources; `+` after it marks uncommitted changes of the program."""
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()  # noqa: E731
    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "src", "filters", "vendor", "Cargo.lock") else "")


def write(tables, about):
    """Adds tables to the file of the day, replacing tables of the same name. Each records how it was
    measured, because a run may be a part of the subjects."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{datetime.date.today()}.json"
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole.update(date=str(datetime.date.today()), commit=about["commit"], machine=machine(), versions=about["versions"])
    measured = {"commit": about["commit"], "program": about["program"], "quick": about["quick"]}
    whole["tables"] = {**whole.get("tables", {}), **{name: {**each, "measured": measured} for name, each in tables.items()}}
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    # The rounds of a figure on one line.
    path.write_text(re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda found: "[" + ", ".join(re.split(r",\s+", found[1])) + "]", text) + "\n")
    return path


def newest():
    """The newest file, with every table of earlier files that it does not have."""
    whole = {}
    for path in sorted(FOLDER.glob("*.json")):
        one_day = json.loads(path.read_text())
        one_day["tables"] = {name: {"date": one_day["date"], **each} for name, each in one_day["tables"].items()}
        whole = {**one_day, "tables": {**whole.get("tables", {}), **one_day["tables"]}}
    return whole
