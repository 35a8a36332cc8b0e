"""SQLite: the location of the file, and the files after a stop."""

import contextlib
import shutil
import sqlite3
import subprocess

import pytest
from support.keylatch import BINARY, wait_for
from support.stores import FREE, SECRET, send_request

STORE = "{sqlite: {path: data/keys.db, flush_every: 100ms}}"


def rows(path):
    with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
        return database.execute("SELECT count(*) FROM bindings").fetchone()[0]


def test_a_clean_stop_merges_the_log_into_the_file(start, echo_upstream):
    replica = start(echo_upstream, route_filters=FREE, storage=STORE)
    for number in range(20):
        assert send_request(replica, f"sk-stopped-{number:04}-abcdefgh").status == 200
    replica.stop()
    data = replica.folder / "data"
    assert rows(data / "keys.db") == 20
    assert not (data / "keys.db-wal").exists()


def test_a_relative_path_follows_the_configuration_file(start, echo_upstream, tmp_path):
    replica = start(echo_upstream, route_filters=FREE, storage=STORE)
    assert send_request(replica, "sk-somewhere-abcdefgh").status == 200
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = subprocess.run([BINARY, "bindings", "list", "-c", replica.path], cwd=elsewhere, capture_output=True, text=True, env=replica.env, check=False)
    assert listed.returncode == 0 and "sk-…efgh" in listed.stdout, listed.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_database_left_in_the_working_directory_is_an_error(start, echo_upstream, tmp_path):
    replica = start(echo_upstream, route_filters=FREE, storage=STORE)
    replica.stop()
    before = tmp_path / "before"
    before.mkdir()
    shutil.move(replica.folder / "data", before / "data")
    for command in ("run", "migrate"):
        done = subprocess.run([BINARY, command, "-c", replica.path], cwd=before, capture_output=True, text=True, env=replica.env, timeout=30, check=False)
        assert done.returncode == 1 and "relative to the configuration file" in done.stderr, done.stderr
    assert not (replica.folder / "data").exists()


def test_an_upgrade_keeps_the_write_ahead_log_of_the_new_process(start, echo_upstream):
    replica = start(echo_upstream, route_filters=FREE, storage=STORE)
    assert send_request(replica, "sk-before-0001-abcdefgh").status == 200
    before = replica.upgrade()
    wait_for(lambda: before.poll() is not None, "the process before has ended", 20)
    assert send_request(replica, "sk-after-0002-abcdefgh").status == 200
    replica.stop()
    assert rows(replica.folder / "data" / "keys.db") == 2


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ('storage: {postgres: {url: "postgress://u:swordfish@h/d"}}', "must begin with `postgres://`"),
        ('storage: {postgres: {url: "postgres://u:swordfish@h:70000/d"}}', "port"),
        ('storage: {postgres: {url: "postgres://u:sword%fish@h/d"}}', "write it as %25"),
        ('storage: {postgres: {url: "postgres://h/d", listen_url: "postgres://u:swordfish@h:x/d"}}', "storage.postgres.listen_url"),
        ('storage: {postgres: {url: "postgres://h/d?sslmode=disable", tls: verify_full}}', "contradicts"),
        ('storage: memory\nredis: {url: "redis://:swordfish@h:x/0"}', "port"),
        ('storage: memory\nredis: {url: "redis://:swordfish@h/x"}', "database"),
        ('storage: memory\nredis: {url: "redis://:swordfish@a,b/0"}', "more than one server"),
    ],
)
def test_check_reports_errors_of_a_start(start, echo_upstream, section, says):
    replica = start(echo_upstream, secrets=SECRET)
    replica.stop()
    text = replica.path.read_text().replace("storage: memory", section)
    if "redis" in section:
        text = text.replace("      []", "      - rate_limit: {per: client, limit: 1000/s, scope: shared}")
    replica.path.write_text(text)
    for command in ("check", "run"):
        done = replica.command(command)
        assert done.returncode == 1 and says in done.stderr and "fish@" not in done.stderr, done.stderr
