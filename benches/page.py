"""Puts the newest results into docs/benchmarks.md: each table stands between a comment
`<!-- table: NAME -->` and `<!-- end -->`, and is replaced there.

    python3 benches/page.py [--check]
"""

import re
import sys
import textwrap

import results

MISSING = "Not measured yet."
PAGE = results.ROOT / "docs" / "benchmarks.md"
MARK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.S)


def machine_table(newest):
    machine = newest["machine"]
    rows = [
        ["processor", machine["processor"]],
        ["caches of a core", ", ".join(f"{name} {size}" for name, size in machine["caches"].items())],
        ["cores, memory", f"{machine['cores']}, {machine['memory_mib'] // 1024} GiB"],
        ["kernel", machine["kernel"]],
        ["programs", ", ".join(f"{name} {version}" for name, version in newest["versions"].items())],
        ["commit, date", f"{newest['commit']}, {newest['date']}"],
    ]
    return results.markdown(results.table("", ["part", "value"], rows))


def rendered(name, newest):
    if name == "machine":
        return machine_table(newest)
    if name not in newest["tables"]:
        return MISSING
    table = newest["tables"][name]
    older = f"Measured on {table['date']}." if table["date"] != newest["date"] else ""
    notes = textwrap.fill(" ".join(text for text in (table["note"], older) if text), 100)
    return results.markdown(table) + (f"\n\n{notes}" if notes else "")


def render(text, newest):
    return MARK.sub(lambda found: f"{found[1]}\n{rendered(found[2], newest)}\n\n{found[3]}", text)


def update():
    PAGE.write_text(render(PAGE.read_text(), results.newest()))


if __name__ == "__main__":
    if "--check" in sys.argv:
        text = PAGE.read_text()
        sys.exit(0 if MISSING not in text and render(text, results.newest()) == text else "docs/benchmarks.md does not agree with benches/results: run benches/page.py")
    update()
