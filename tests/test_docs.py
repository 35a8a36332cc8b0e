"""What the pages say to type is typed: commands in their blocks, and configurations that are whole sections."""

import hashlib
import hmac
import os
import re
import shlex
import subprocess

import pytest
import yaml

from support.authority import Authority
from support.keylatch import BINARY, ROOT
from support.raw import request
from support.stores import FREE

PAGES = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md"]
SQLITE = "{sqlite: {path: keylatch.db}}"


def blocks(page, kind):
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```", page.read_text(), re.S | re.M)


def commands():
    """Every command of ours in the pages: the words up to what the shell does with it."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|\| |&& |exec keylatch )(keylatch .*)", line.strip().removeprefix("docker compose "))
                if found:
                    yield page.name, found[1].split("#")[0].split(" > ")[0].split(" <<")[0].split(" < ")[0].strip()
        # And those within a sentence.
        for text in re.findall(r"`(keylatch [^`]+)`", page.read_text()):
            yield page.name, text


@pytest.mark.parametrize("page,line", sorted(set(commands())))
def test_commands_are_known(page, line):
    """Each is one that the program knows, with options that it has; what is in capitals, or left out, is the reader's."""
    words = shlex.split(line.replace("|", " ").replace("…", "").replace("$(date +%F)", "today"))[1:]
    subcommands = [word for word in words if re.fullmatch(r"[a-z][a-z-]+", word)]
    options = [word.split("=")[0] for word in words if word.startswith("-") and word != "-"]
    listed = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    if not subcommands:
        assert set(options) <= {"--version", "--help"}, line
        return
    first = subcommands[0]
    assert re.search(rf"^  {first} ", listed, re.M), f"{page}: {line}"
    texts = [subprocess.run([BINARY, first, "--help"], capture_output=True, text=True, check=True).stdout]
    for second in subcommands[1:]:
        deeper = subprocess.run([BINARY, first, second, "--help"], capture_output=True, text=True, check=False)
        if deeper.returncode == 0 and re.search(rf"^  {second} ", texts[0], re.M):
            texts.append(deeper.stdout)
    for option in options:
        assert any(re.search(rf"(^|\s|,){re.escape(option)}\b", text) for text in texts), f"{page}: {option} in: {line}"


def test_configurations_are_right(start, echo_upstream, tmp_path):
    """Each block is put into a file that is whole otherwise, with what it refers to beside it."""
    keylatch = start(echo_upstream)
    authority = Authority(keylatch.folder / "tls")
    issued = authority.issue("origin", "api.example.com")
    (keylatch.folder / "tls" / "origin-pull-ca.pem").write_bytes(authority.ca.read_bytes())
    (keylatch.folder / "tls" / "origin-secret").write_text("0123456789abcdef0123456789abcdef")
    assert issued.cert.exists()
    for name in ("key_hmac", "admin"):
        (keylatch.folder / name).write_text(hashlib.sha256(name.encode()).hexdigest())
    count = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            lines = block.splitlines()
            indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
            said = yaml.safe_load("\n".join(line[indent:] for line in lines))
            if "services" in said or not {"listeners", "trusted_proxies", "storage", "admin", "filters"} & set(said):
                continue
            whole = {
                "listeners": [{"address": "127.0.0.1:1"}],
                "upstreams": [{"name": "api", "servers": [{"address": "127.0.0.1:2"}]}],
                "routes": [{"name": "api", "upstream": "api"}],
            } | said
            text = yaml.safe_dump(whole).replace("/var/lib/keylatch/", str(keylatch.folder) + "/").replace("/etc/keylatch/", str(keylatch.folder) + "/")
            keylatch.path.write_text(text)
            keylatch.env |= {"DATABASE_URL": "postgres://a:b@127.0.0.1/c", "REDIS_URL": "redis://127.0.0.1"}
            done = keylatch.command("check")
            assert done.returncode == 0, f"{page.name}: {done.stderr}\n{text}"
            count += 1
    assert count >= 5


def test_from_another_gateway_as_the_page_says(start, echo_upstream, database, tmp_path):
    """The lines of the page on migration, with a table in a real PostgreSQL."""
    secret = "0123456789abcdef-of-the-other-gateway"
    hashed = lambda key: hmac.new(secret.encode(), key.encode(), hashlib.sha256).hexdigest()  # noqa: E731
    database.psql(
        "CREATE TABLE token_bindings (id serial, token_hash varchar(64), token_display varchar, bound_ip cidr, binding_mode varchar,"
        " allowed_ips jsonb, status smallint, first_used_at timestamptz, last_used_at timestamptz)",
        f"INSERT INTO token_bindings VALUES (1, '{hashed('sk-a-key-that-is-bound')}', 'sk-…ound', '127.0.0.2/32', 'single', '[]', 1, now(), now()),"
        f" (2, '{hashed('sk-two')}', 'sk-…two', '127.0.0.2/32', 'multiple', '[\"127.0.0.3\", \"127.0.9.0/24\"]', 1, now(), now()),"
        f" (3, '{hashed('sk-gone')}', 'sk-…gone', '127.0.0.2/32', 'single', '[]', 2, now(), now())",
    )
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE, secrets=f"{{key_hmac: {secret}}}")
    env = {**keylatch.env, "OLD_DATABASE_URL": database.url, "KEYLATCH_CONFIG": str(keylatch.path), "PATH": f"{BINARY.parent}:{os.environ['PATH']}"}
    for block in blocks(ROOT / "docs" / "migration.md", "sh"):
        line = "\n".join(each.strip() for each in block.strip().splitlines()).replace(" -c FILE", "")
        done = subprocess.run(["sh", "-ec", line], cwd=keylatch.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    use = lambda key, source: request(keylatch.port, headers=[("Authorization", f"Bearer {key}")], source=source).status  # noqa: E731
    assert [use("sk-a-key-that-is-bound", "127.0.0.2"), use("sk-a-key-that-is-bound", "127.0.0.9")] == [200, 403]
    assert [use("sk-two", "127.0.9.9"), use("sk-two", "127.0.0.2"), use("sk-gone", "127.0.0.2")] == [200, 403, 403]


def test_pages_refer_to_what_is_there():
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
        for path in re.findall(r"`((?:config|systemd|scripts|docs)/[A-Za-z0-9_./-]+)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
