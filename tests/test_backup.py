"""Backups of a database in use, atomic restores, and file ownership."""

import contextlib
import os
import pathlib
import shutil
import sqlite3
import subprocess
import tempfile

import pytest
from support.keylatch import BINARY, wait_for
from support.raw import request
from support.stores import FREE, SECRET, storage

SQLITE = "{sqlite: {path: data/keylatch.db, flush_every: 100ms}}"


def use(keylatch, key, source):
    return request(keylatch.port, headers=[("Authorization", f"Bearer {key}")], source=source).status


def test_backup_loss_and_restore(start, echo_upstream, tmp_path):
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    for n in range(20):
        assert use(keylatch, f"sk-{n}", f"127.0.0.{n + 2}") == 200
    wait_for(lambda: keylatch.command("bindings", "list").stdout.count("\n") == 21, "all are bound")
    backup = tmp_path / "backup"
    made = keylatch.command("backup", str(backup))
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in backup.iterdir()) == ["keylatch.db", "keylatch.db.secret", "keylatch.yaml"]
    assert backup.stat().st_mode & 0o777 == 0o700 and all(path.stat().st_mode & 0o077 == 0 for path in backup.iterdir())
    assert keylatch.command("backup", str(backup)).returncode == 1, "no file is overwritten"
    assert use(keylatch, "sk-later", "127.0.0.2") == 200
    busy = keylatch.command("restore", str(backup))
    assert busy.returncode == 1 and "stop it first" in busy.stderr
    keylatch.stop()
    there = keylatch.command("restore", str(backup))
    assert there.returncode == 1 and "exists already; use --replace" in there.stderr
    # The database and its secret are lost.
    for path in (keylatch.folder / "data").iterdir():
        path.unlink()
    done = keylatch.command("restore", str(backup))
    assert done.returncode == 0, done.stderr
    keylatch.start()
    assert [use(keylatch, f"sk-{n}", f"127.0.0.{n + 2}") for n in range(20)] == [200] * 20
    assert use(keylatch, "sk-3", "127.0.0.99") == 403, "the bindings are restored"
    assert "sk-later" not in keylatch.stdout.read_text() and keylatch.command("bindings", "list").stdout.count("\n") == 21
    keylatch.stop()
    # An invalid backup changes nothing.
    before = (keylatch.folder / "data" / "keylatch.db").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("keylatch.db", "keylatch.db.secret"):
        (other / name).write_bytes((backup / name).read_bytes())
    (other / "keylatch.db.secret").write_text("f" * 64)
    for spoil, says in [
        (lambda: None, "created with another secrets.key_hmac"),
        (lambda: (other / "keylatch.db").write_bytes(os.urandom(8192)), "cannot be restored"),
        (lambda: (other / "keylatch.db").unlink(), "No such file"),
    ]:
        spoil()
        refused = keylatch.command("restore", "--replace", str(other))
        assert refused.returncode == 1 and says in refused.stderr and "nothing was changed" in refused.stderr, refused.stderr
    assert (keylatch.folder / "data" / "keylatch.db").read_bytes() == before
    assert not list((keylatch.folder / "data").glob("*restoring*"))
    # The replaced database is kept, never overwritten, and can be restored itself.
    data = keylatch.folder / "data"
    for n in range(3):
        assert keylatch.command("restore", "--replace", str(backup)).returncode == 0
        assert len(list(data.glob("keylatch.db.before-*"))) == n + 1
    first = min(data.glob("keylatch.db.before-*"), key=lambda path: path.stat().st_ctime_ns)
    assert (first / "keylatch.db").read_bytes() == before and (first / "keylatch.db.secret").read_text() == (backup / "keylatch.db.secret").read_text()
    done = keylatch.command("restore", "--replace", str(first))
    assert done.returncode == 0 and "can be restored from there" in done.stdout
    # An unmerged write-ahead log is kept with the replaced database.
    with contextlib.closing(sqlite3.connect(data / "keylatch.db")) as database:
        for statement in ("journal_mode = WAL", "wal_autocheckpoint = 0"):
            database.execute(f"PRAGMA {statement}")
        database.execute("UPDATE bindings SET networks = '127.0.0.77/32' WHERE networks = '127.0.0.5/32'")
        database.commit()
        for path in data.glob("keylatch.db*"):
            if path.is_file():
                (other / path.name).write_bytes(path.read_bytes())
    assert (other / "keylatch.db-wal").stat().st_size and keylatch.command("restore", "--replace", str(other)).returncode == 0
    keylatch.start()
    assert (use(keylatch, "sk-3", "127.0.0.77"), use(keylatch, "sk-3", "127.0.0.5")) == (200, 403)


def test_no_restore_while_a_process_uses_the_database(start, echo_upstream, tmp_path):
    """The process runs with another configuration and folder; only its open file shows that it uses
    the database."""
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    assert use(keylatch, "sk-1", "127.0.0.2") == 200
    backup = tmp_path / "backup"
    assert keylatch.command("backup", str(backup)).returncode == 0
    copied = tmp_path / "copied.yaml"
    copied.write_text(keylatch.path.read_text().replace("data/keylatch.db", str(keylatch.folder / "data/keylatch.db")))
    command = [BINARY, "restore", "-c", copied, "--replace", backup]
    refused = subprocess.run(command, capture_output=True, text=True, env=keylatch.env)
    assert refused.returncode == 1 and "a process has it open; stop that process first" in refused.stderr, refused.stderr
    assert use(keylatch, "sk-2", "127.0.0.2") == 200 and not list((keylatch.folder / "data").glob("*.before-*"))
    keylatch.stop()
    assert subprocess.run(command, capture_output=True, env=keylatch.env).returncode == 0


def test_a_start_after_an_interrupted_restore(start, echo_upstream, tmp_path):
    """The state of the database is unknown then. A start must not create a new one with another
    secret."""
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    backup, data = tmp_path / "backup", keylatch.folder / "data"
    assert keylatch.command("backup", str(backup)).returncode == 0
    itself = keylatch.command("restore", "--replace", str(data))
    keylatch.stop()
    assert itself.returncode == 1 and "stop it first" in itself.stderr
    itself = keylatch.command("restore", "--replace", str(data))
    assert itself.returncode == 1 and "is the database itself" in itself.stderr, itself.stderr
    (data / "keylatch.db").rename(data / "keylatch.db.restoring")
    for refused in (keylatch.command("migrate"), keylatch.command("run")):
        assert refused.returncode == 1 and "has an interrupted restore" in refused.stderr, refused.stderr
    assert not (data / "keylatch.db").exists()
    assert keylatch.command("restore", "--replace", str(backup)).returncode == 0
    assert not (data / "keylatch.db.restoring").exists() and keylatch.command("migrate").returncode == 0


def test_a_database_behind_a_symbolic_link(start, echo_upstream, tmp_path):
    """The path is a symbolic link to a missing file; a restore writes to the target of the link."""
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    backup, data, real = tmp_path / "backup", keylatch.folder / "data", tmp_path / "real"
    assert keylatch.command("backup", str(backup)).returncode == 0
    keylatch.stop()
    shutil.rmtree(data)
    data.mkdir(), real.mkdir()
    (data / "keylatch.db").symlink_to(real / "keylatch.db")
    done = keylatch.command("migrate")
    assert done.returncode == 0 and (real / "keylatch.db").stat().st_mode & 0o777 == 0o600, done.stderr
    assert (data / "keylatch.db").is_symlink()


def test_a_failed_backup_leaves_no_files(start, echo_upstream, tmp_path):
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    (keylatch.folder / "data" / "keylatch.db.secret").rename(tmp_path / "secret")
    failed = keylatch.command("backup", str(tmp_path / "backup"))
    assert failed.returncode == 1 and "keylatch.db.secret is missing" in failed.stderr and not (tmp_path / "backup").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of files")
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_files_created_by_root_belong_to_the_service(start, echo_upstream, tmp_path, umask):
    # In a folder that the owner may enter.
    place = tempfile.TemporaryDirectory(prefix="kl-", dir="/tmp", ignore_cleanup_errors=True)
    os.chmod(place.name, 0o755)
    backup, data = tmp_path / "backup", pathlib.Path(place.name) / "data"
    keylatch = start(echo_upstream, route_filters=FREE, storage=f"{{sqlite: {{path: {data}/keylatch.db, flush_every: 100ms}}}}")
    assert keylatch.command("backup", str(backup)).returncode == 0
    keylatch.stop()

    def owners():
        return {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) for path in data.rglob("*") if path.is_file()}

    os.umask(umask)
    try:
        for make in (["migrate"], ["restore", str(backup)], ["restore", "--replace", str(backup)]):
            if make[-1] != str(backup) or "--replace" not in make:
                shutil.rmtree(data)
                data.mkdir(mode=0o700)
                os.chown(data, 12345, 12346)
            done = keylatch.command(*make)
            assert done.returncode == 0, done.stderr
            assert (data / "keylatch.db").exists() and owners() == {(12345, 12346, 0o600)}, make
        # Also the files that SQLite creates while the database is open.
        keylatch.start()
        assert use(keylatch, "sk-1", "127.0.0.2") == 200 and len(list(data.glob("keylatch.db*"))) > 3
        assert owners() == {(12345, 12346, 0o600)}
    finally:
        os.umask(0o022)


def test_a_backup_during_writes(start, echo_upstream, tmp_path):
    """The backup is consistent, and writers do not wait for it."""
    keylatch = start(echo_upstream, route_filters=FREE, storage=SQLITE)
    for n in range(3):
        for m in range(40):
            assert use(keylatch, f"sk-{n}-{m}", "127.0.0.2") == 200
        assert keylatch.command("backup", str(tmp_path / f"b{n}")).returncode == 0
        copy = sqlite3.connect(tmp_path / f"b{n}" / "keylatch.db")
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM bindings").fetchone()[0] == 40 * (n + 1)


def test_database_servers_use_their_own_tools(start, echo_upstream, database, tmp_path):
    """This test carries out the printed steps."""
    keylatch = start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=storage(database))
    assert use(keylatch, "sk-1", "127.0.0.2") == 200
    nothing = keylatch.command("backup", str(tmp_path / "unused"))
    assert nothing.returncode == 1 and not nothing.stdout and "nothing was copied" in nothing.stderr and not (tmp_path / "unused").exists()
    printed, again = nothing.stderr, keylatch.command("restore", "x")
    assert again.returncode == 1 and again.stderr.replace("changed", "copied") == printed
    lines = [line.strip().removesuffix("\\") for line in printed.splitlines()]
    dump = next(line.split("backup:")[1].strip() for line in lines if "pg_dump" in line)
    back = next(line for line in lines if line.startswith("pg_restore"))
    env = {**os.environ, "DATABASE_URL": database.url}
    run = lambda line: subprocess.run(["sh", "-c", line], cwd=tmp_path, env=env, check=True, capture_output=True)  # noqa: E731
    run(dump)
    keylatch.stop()
    database.psql("DROP SCHEMA public CASCADE")
    database.psql("CREATE SCHEMA public")
    run(back)
    keylatch.start()
    assert (use(keylatch, "sk-1", "127.0.0.2"), use(keylatch, "sk-1", "127.0.0.3")) == (200, 403)
