"""Compares the manual with the program: sizes, links, commands, configurations, and quoted files
and answers."""

import hashlib
import hmac
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import urllib.request

import pytest
import yaml

from support.authority import Authority
from support.keylatch import BINARY, ROOT
from support.raw import request
from support.stores import FREE

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + [ROOT / name for name in ("README.md", "README.zh.md", "SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
README_BYTES_MAX = 6144
SQLITE = "{sqlite: {path: keylatch.db}}"


def blocks(page, kind):
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```", page.read_text(), re.S | re.M)


def commands():
    """Every `keylatch` command in the pages: the words up to the first shell operator."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|\| |&& |exec keylatch )(keylatch .*)", line.strip().removeprefix("docker compose "))
                if found:
                    yield str(page.relative_to(ROOT)), found[1].split("#")[0].split(" > ")[0].split(" <<")[0].split(" < ")[0].strip()
        # Also the commands within sentences.
        for text in re.findall(r"`(keylatch [^`]+)`", page.read_text()):
            yield str(page.relative_to(ROOT)), text.replace("\n", " ")


@pytest.mark.parametrize("page,line", sorted(set(commands())))
def test_commands_are_known(page, line):
    """Each command and option exists. Words in capitals, and ellipses, are placeholders."""
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


def test_configurations_are_valid(start, echo_upstream, tmp_path):
    """Each block is completed to a whole file, beside the files that it refers to, and checked."""
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
            if "services" in said or not {"listeners", "trusted_proxies", "storage", "admin", "filters", "alerts"} & set(said):
                continue
            whole = {
                "listeners": [{"address": "127.0.0.1:1"}],
                "upstreams": [{"name": "api", "servers": [{"address": "127.0.0.1:2"}]}],
                "routes": [{"name": "api", "upstream": "api"}],
            } | said
            text = yaml.safe_dump(whole).replace("/var/lib/keylatch/", str(keylatch.folder) + "/").replace("/etc/keylatch/", str(keylatch.folder) + "/")
            keylatch.path.write_text(text)
            keylatch.env |= {"DATABASE_URL": "postgres://a:b@127.0.0.1/c", "REDIS_URL": "redis://127.0.0.1"}
            keylatch.env |= {"OPENAI_API_KEY": "key", "TOKEN_SHA256": hashlib.sha256(b"TOKEN").hexdigest()}
            done = keylatch.command("check")
            assert done.returncode == 0, f"{page.name}: {done.stderr}\n{text}"
            count += 1
    assert count >= 15


def test_the_migration_guide(start, echo_upstream, database, tmp_path):
    """Runs the commands of the page on migration, with a table in a real PostgreSQL."""
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
    for block in blocks(DOCS / "how-to" / "migration.md", "sh"):
        line = "\n".join(each.strip() for each in block.strip().splitlines()).replace(" -c FILE", "")
        done = subprocess.run(["sh", "-ec", line], cwd=keylatch.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    use = lambda key, source: request(keylatch.port, headers=[("Authorization", f"Bearer {key}")], source=source).status  # noqa: E731
    assert [use("sk-a-key-that-is-bound", "127.0.0.2"), use("sk-a-key-that-is-bound", "127.0.0.9")] == [200, 403]
    assert [use("sk-two", "127.0.9.9"), use("sk-two", "127.0.0.2"), use("sk-gone", "127.0.0.2")] == [200, 403, 403]


def test_the_readme_stays_short():
    assert (ROOT / "README.md").stat().st_size <= README_BYTES_MAX


def prose(page):
    """The text of a page without its code blocks."""
    return re.sub(r"^ *(```+).*?^ *\1 *$", "", page.read_text(), flags=re.S | re.M)


def anchors(page):
    """The anchors of a page's headings, as GitHub and mdBook generate them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        while slug in found:
            slug += "-1"
        found.add(slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page):
    """Linked files and headings exist. Pages of the manual link only to pages of the manual,
    because the site has no other files."""
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert page.parent == ROOT or other.is_relative_to(DOCS), f"{target} is not in the manual"
        assert not anchor or anchor in anchors(other), f"{target}: there is no such heading"
    for path in re.findall(r"`((?:config|systemd|scripts|docs|tests|benches|findings|src|filters)/[A-Za-z0-9_./-]+)`", text):
        assert (ROOT / path).exists() or path == "filters/user_agent.rs", path


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"\]\(([^)]+)\)", (DOCS / "SUMMARY.md").read_text())
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"SUMMARY.md"}
    assert len(listed) == len(set(listed)) and set(listed) == there
    index = re.findall(r"\]\(([^)#]+)\)", (DOCS / "README.md").read_text())
    assert there - {"README.md"} <= set(index)


def test_prose_wraps_and_paragraphs_are_short():
    for page in PAGES:
        if page.parent.name == "reference" or page.name.endswith(".zh.md") or page.name in ("SUMMARY.md"):
            continue
        for paragraph in re.split(r"\n(?=\s*(?:[-*]|\d+\.)\s)|\n\s*\n", prose(page)):
            lines = [line for line in paragraph.splitlines() if line.strip() and not line.lstrip().startswith(("|", "#", "!["))]
            assert all(len(line) <= 100 for line in lines), f"{page.name}: {[line for line in lines if len(line) > 100]}"
            assert len(lines) <= 6, f"{page.name}: {paragraph}"


def test_the_benchmark_page_agrees_with_the_newest_results():
    """`benches/page.py` makes the tables. The figures are not judged, only their form."""
    checked = subprocess.run([sys.executable, ROOT / "benches" / "page.py", "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for path in (ROOT / "benches" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        assert found["date"] == path.stem and re.fullmatch(r"[0-9a-f]{10}\+?", found["commit"])
        assert found["machine"].keys() == {"processor", "caches", "cores", "memory_mib", "kernel"}
        assert {"keylatch", "pingora", "nginx", "redis", "postgres"} <= found["versions"].keys()
        for table in found["tables"].values():
            assert all(len(row) == len(table["head"]) for row in table["rows"])
            for figure in (cell for row in table["rows"] for cell in row if isinstance(cell, dict)):
                assert figure["median"] == pytest.approx(statistics.median(figure["rounds"]), rel=1e-3)
                assert (figure["min"], figure["max"]) == (min(figure["rounds"]), max(figure["rounds"]))


def test_metrics_match_the_page(start, echo_upstream):
    """Each metric family of a process is in the table, with its type and labels."""
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    request(keylatch.port, headers=[("Authorization", "Bearer sk-metrics-abcdefgh")])
    page = (DOCS / "reference" / "metrics.md").read_text()
    table = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in re.findall(r"^\| `(keylatch_\w+)` \| (\w+) \| (.*?) \|", page, re.M)}
    with urllib.request.urlopen(f"http://127.0.0.1:{keylatch.admin}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert len(families) >= 20
    for name, kind in families.items():
        assert name in table and table[name][0] == kind, name
        for labels in re.findall(rf"^{name}(?:_bucket|_sum|_count)?\{{(.*?)\}} ", text, re.M):
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == table[name][1], name


def test_quoted_recipes_equal_the_files():
    page = (DOCS / "how-to" / "providers.md").read_text()
    assert (ROOT / "config" / "recipes" / "openai.yaml").read_text().strip() in page


def test_the_quoted_refusal(start, echo_upstream):
    """The 403 that the pages quote, except for the request id."""
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    use = lambda source: request(keylatch.port, headers=[("Authorization", "Bearer sk-shown-abcdefgh")], source=source)  # noqa: E731
    assert use("127.0.0.1").status == 200
    refused = json.loads(use("127.0.0.2").body)
    shown = [json.loads(block) for block in blocks(DOCS / "explanation" / "bindings.md", "json")]
    for name in ("new-api.md", "new-api.zh.md"):
        shown += [json.loads(line) for line in (DOCS / "tutorial" / name).read_text().splitlines() if line.startswith('{"error"')]
    for each in shown:
        each["error"]["request_id"] = refused["error"].get("request_id")
        if "request_id" not in refused["error"]:
            del each["error"]["request_id"]
        assert each == refused
    assert len(shown) == 3


def test_the_tutorials_guard_every_path_of_the_shipped_configuration():
    """The paths on which New API reads a key, as tests/test_keys.py proves them for the shipped files."""
    guarded = re.search(r"paths: \[/v1/.*\n +except_paths: .*", (ROOT / "config" / "container.yaml").read_text())[0]
    for name in ("new-api.md", "new-api.zh.md"):
        assert guarded in (DOCS / "tutorial" / name).read_text(), name
    for name in ("README.md", "README.zh.md"):
        assert "key_form: new_api" in (ROOT / name).read_text(), name
