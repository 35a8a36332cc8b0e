"""Rules of the project: licences and sources of dependencies, help texts, and links of the
README."""

import json
import re
import subprocess
import tomllib

from support.keylatch import BINARY, ROOT


def packages():
    out = subprocess.run(["cargo", "metadata", "--locked", "--format-version", "1"], cwd=ROOT, capture_output=True, check=True).stdout
    metadata = json.loads(out)
    # Only resolved dependencies count; the others are built on no supported platform.
    return metadata["packages"]


def test_every_dependency_has_an_accepted_licence_and_comes_from_the_registry():
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allowed, banned = set(rules["licenses"]["allow"]), {ban["crate"] for ban in rules["bans"]["deny"]}
    wrong = []
    for package in packages():
        name = f"{package['name']} {package['version']}"
        source = package["source"]
        if source is None:
            continue
        if not source.startswith("registry+"):
            wrong.append(f"{name} comes from {source}")
        if package["name"] in banned:
            wrong.append(f"{name} is banned")
        expression = (package["license"] or "").replace("/", " OR ")
        # A simple reading of SPDX: one of the alternatives must consist of accepted licences.
        alternatives = [re.split(r"\s+AND\s+", alternative.strip(" ()")) for alternative in re.split(r"\s+OR\s+", expression)]
        if not any(all(part.strip(" ()") in allowed for part in parts) for parts in alternatives):
            wrong.append(f"{name} is under {expression or 'no licence it names'}")
    assert not wrong, wrong


def test_every_command_has_help():
    def run(*arguments):
        return subprocess.run([BINARY, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)

    help_text = run("--help").stdout
    for command in ("run", "check", "reload", "schema", "explain", "filters", "demo-upstream"):
        assert command in help_text and run(command, "--help").returncode == 0
    assert json.loads(run("schema").stdout)["title"] == "Keylatch configuration"
    assert "- `limit` (required): The rate" in run("filters", "rate_limit").stdout
    assert run("filters", "no_such").returncode == 1
    assert "is valid" in run("check", "-c", "config/quickstart.yaml").stdout
    wrong = run("check", "-c", "README.md")
    assert (wrong.returncode, wrong.stdout) == (1, "") and "README.md:" in wrong.stderr
    explained = run("explain", "-c", "config/keylatch.yaml", "--peer", "127.0.0.1", "-H", "X-Forwarded-For: 192.0.2.1, 203.0.113.7", "--path", "/v1/a/../models?x").stdout
    assert "client    203.0.113.7, from x-forwarded-for" in explained and "the target is /v1/models?x" in explained and "route     rest" in explained


def test_paths_and_targets_of_the_readme_exist():
    """Paths and make targets that the README names exist."""
    text = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"`((?:config|tests|src|filters)/[\w./-]+)`", text)):
        assert (ROOT / path).exists() or (ROOT / "src" / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
