"""The cost of a small POST through a full chain: instructions and allocations, compared with the
budget in cost.json. Callgrind counts both, so the result depends on the build and not on the load
of the machine."""

import json
import pathlib
import platform
import re
import shutil
import subprocess

import pytest
from support import raw
from support.keylatch import BINARY

BUDGET = json.loads((pathlib.Path(__file__).parent / "cost.json").read_text())
SLACK = 1.05
BATCHES, REQUESTS = 4, 60
BODY = b'{"model":"demo","messages":[{"role":"user","content":"hi"}]}'
FILTERS = """
      - bearer: {accept: [well_formed]}
      - key_binding: {}
      - rate_limit: {per: key, limit: 1000000/s}
      - sse_keepalive: {}"""
ALLOCATIONS = ("malloc", "calloc", "realloc", "mallocx", "_rjem_malloc", "_rjem_calloc", "_rjem_realloc", "_rjem_mallocx")


def rustc():
    """The version of the compiler, if there is one."""
    return subprocess.run(["rustc", "-V"], capture_output=True, text=True, check=True).stdout.split()[1] if shutil.which("rustc") else None


def counted(profile):
    """The instructions and calls of allocators in a file of Callgrind."""
    names, calls, called = {}, {}, None
    for line in profile.splitlines():
        if match := re.match(r"c?fn=\((\d+)\)(?: (.*))?", line):
            if match[2]:
                names[match[1]] = match[2]
            called = match[1]
        elif match := re.match(r"calls=(\d+)", line):
            calls[called] = calls.get(called, 0) + int(match[1])
    instructions = [int(number) for number in re.findall(r"^totals: (\d+)", profile, re.M)]
    return instructions[-1], sum(count for number, count in calls.items() if names.get(number) in ALLOCATIONS)


@pytest.mark.skipif(shutil.which("valgrind") is None or platform.machine() != "x86_64", reason="needs valgrind on x86-64")
@pytest.mark.skipif(rustc() != BUDGET["rustc"], reason="the budget is for another version of rustc")
def test_a_post_stays_within_its_budget(start, echo_upstream, tmp_path):
    out = tmp_path / "callgrind"
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--instr-atstart=no"]
    keylatch = start(echo_upstream, route_filters=FILTERS, more="workers: 1", wrapper=valgrind, patience=180)
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-cost-0123456789abcdef\r\n"
    request += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)

    def control(*arguments):
        subprocess.run(["callgrind_control", *arguments, str(keylatch.process.pid)], capture_output=True, check=True)

    with raw.connect(keylatch.port, timeout=60) as client, client.makefile("rb") as file:

        def post(count):
            for _ in range(count):
                client.sendall(request)
                status, headers = raw.read_head(file)
                assert status == 200 and raw.read_body(file, headers)[1]

        post(30)
        # Timers and other threads add to some batches, so the smallest counts.
        for _ in range(BATCHES):
            control("--instr=on")
            post(REQUESTS)
            control("--instr=off")
            control("--dump")
    keylatch.stop(seconds=60)
    batches = [counted(path.read_text()) for path in tmp_path.glob("callgrind.*")]
    assert len(batches) >= BATCHES
    instructions, allocations = (min(kind) / REQUESTS for kind in zip(*batches, strict=True))
    print(f"{BINARY}: {instructions:,.0f} instructions and {allocations:.1f} allocations a POST")
    assert 0 < instructions <= BUDGET["instructions"] * SLACK and 0 < allocations <= BUDGET["allocations"] * SLACK, (
        f"a POST costs {instructions:,.0f} instructions and {allocations:.1f} allocations; find the cause, or change tests/cost.json and say why"
    )
