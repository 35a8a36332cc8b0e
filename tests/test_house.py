"""What the project promises of itself: licences, sources, and that nothing points where it should not."""

import json
import re
import subprocess
import tomllib

from support.keylatch import BINARY, ROOT


def packages():
    out = subprocess.run(["cargo", "metadata", "--locked", "--format-version", "1"], cwd=ROOT, capture_output=True, check=True).stdout
    metadata = json.loads(out)
    # Dependencies that no platform of ours builds are not shipped; what is resolved is what counts.
    return metadata["packages"]


def test_every_dependency_has_a_licence_we_accept_and_comes_from_the_registry():
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
        # Good enough for what crates write: one of the alternatives must be made of accepted licences only.
        alternatives = [re.split(r"\s+AND\s+", alternative.strip(" ()")) for alternative in re.split(r"\s+OR\s+", expression)]
        if not any(all(part.strip(" ()") in allowed for part in parts) for parts in alternatives):
            wrong.append(f"{name} is under {expression or 'no licence it names'}")
    assert not wrong, wrong


def test_the_commands_explain_themselves():
    def run(*arguments):
        return subprocess.run([BINARY, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)

    help_text = run("--help").stdout
    for command in ("run", "check", "reload", "schema", "explain", "filters", "demo-upstream"):
        assert command in help_text and run(command, "--help").returncode == 0
    assert json.loads(run("schema").stdout)["title"] == "Keylatch configuration"
    assert "- `limit` (required): How often" in run("filters", "rate_limit").stdout
    assert run("filters", "no_such").returncode == 1
    assert "is valid" in run("check", "-c", "config/quickstart.yaml").stdout
    wrong = run("check", "-c", "README.md")
    assert (wrong.returncode, wrong.stdout) == (1, "") and "README.md:" in wrong.stderr
    explained = run("explain", "-c", "config/keylatch.yaml", "--peer", "127.0.0.1", "-H", "X-Forwarded-For: 192.0.2.1, 203.0.113.7", "--path", "/v1/a/../models?x").stdout
    assert "client    203.0.113.7, from x-forwarded-for" in explained and "the target is /v1/models?x" in explained and "route     rest" in explained


def test_names_of_the_readme_exist():
    """Paths and make targets that the README names are there."""
    text = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"`((?:config|tests|src|filters)/[\w./-]+)`", text)):
        assert (ROOT / path).exists() or (ROOT / "src" / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
