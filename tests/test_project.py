"""Rules of the project: licences and sources of dependencies, help texts, and links of the
README."""

import json
import re
import subprocess
import tomllib

import pytest

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


def keylatch(*arguments):
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "elvish", "powershell"])
def test_completions_offer_the_commands_and_no_hidden_option(shell):
    script = keylatch("completions", shell)
    for word in ("bindings", "demo-upstream", "-l config" if shell == "fish" else "--config"):
        assert word in script, word
    assert "successor" not in script


def test_bash_completes_commands(tmp_path):
    script = tmp_path / "keylatch"
    script.write_text(keylatch("completions", "bash"))
    subprocess.run(["bash", "-n", script], check=True)
    ask = f"source {script}; COMP_WORDS=(keylatch bindings un); COMP_CWORD=2; _keylatch keylatch un bindings; echo ${{COMPREPLY[*]}}"
    offered = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert offered.split() == ["unbind", "unban"]


def test_manual_pages_name_every_command(tmp_path):
    listed = re.findall(r"^  ([a-z-]+) ", keylatch("--help"), re.MULTILINE)
    page = keylatch("man")
    assert page.splitlines()[2].startswith(".TH keylatch 1 ")
    keylatch("man", "--out", tmp_path)
    assert (tmp_path / "keylatch.1").read_text().strip() == page.strip()
    assert "bindings" in listed
    for command in listed:
        if command != "help":
            assert f"keylatch-{command}(1)".replace("-", "\\-") in page
            assert (tmp_path / f"keylatch-{command}.1").read_text().count(".SH NAME") == 1, command
    assert "\\-\\-label" in (tmp_path / "keylatch-bindings-list.1").read_text()


def test_the_package_contains_the_generated_files():
    """`scripts/deb` generates what the package takes from target/package."""
    assets = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]["assets"]
    generated = {source: target for source, target, _ in assets if source.startswith("target/package/")}
    assert generated == {
        "target/package/keylatch.bash": "usr/share/bash-completion/completions/keylatch",
        "target/package/keylatch.fish": "usr/share/fish/vendor_completions.d/keylatch.fish",
        "target/package/keylatch.zsh": "usr/share/zsh/vendor-completions/_keylatch",
        "target/package/man/*.1": "usr/share/man/man1/",
    }


def test_paths_and_targets_of_the_readme_exist():
    """Paths and make targets that the README names exist."""
    text = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"`((?:config|tests|src|filters)/[\w./-]+)`", text)):
        assert (ROOT / path).exists() or (ROOT / "src" / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
