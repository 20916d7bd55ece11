"""A service in Python that knows nothing of the outbox but its table.

Usage: plain_insert.py URL SCHEMA ORDERS CHANGES WORKERS

Makes ORDERS orders in the database at URL (sqlite:path or postgres://...), then changes them CHANGES times, by WORKERS
threads with a connection each. Every change raises an order's version and inserts an event with that version, in one
transaction; every third transaction is rolled back. Prints the versions that the orders have at last as JSON, which
is how many events of each order are to arrive.

PostgreSQL is reached by pg8000, SQLite by the standard library.
"""

import json
import random
import sqlite3
import sys
import threading
from urllib.parse import unquote, urlsplit

EVENT = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES (%s, %s, %s, %s)"


class Sqlite:
    """One writer at a time, so the order of commits is the order of changes."""

    begin = "BEGIN IMMEDIATE"
    lock = ""

    def __init__(self, url, _schema):
        self.connection = sqlite3.connect(url.removeprefix("sqlite:"), timeout=60, isolation_level=None)

    def execute(self, sql, *values):
        return self.connection.execute(sql.replace("%s", "?"), values)


class Postgres:
    """The row of the order is locked first, so that its changes are one after the other."""

    begin = "BEGIN"
    lock = " FOR UPDATE"

    def __init__(self, url, schema):
        import pg8000.dbapi

        parts = urlsplit(url)
        self.connection = pg8000.dbapi.connect(
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            host=parts.hostname,
            port=parts.port or 5432,
            database=parts.path.lstrip("/"),
            # The server is on this machine, and takes both.
            ssl_context=False,
        )
        self.connection.autocommit = True
        self.execute(f'SET search_path = "{schema}"')

    def execute(self, sql, *values):
        cursor = self.connection.cursor()
        cursor.execute(sql, values)
        return cursor


def change(database, order, keep):
    """One business transaction: the change, and the event that tells of it."""
    database.execute(database.begin)
    row = database.execute(f"SELECT version FROM orders WHERE id = %s{database.lock}", order).fetchone()
    version = row[0] + 1
    database.execute("UPDATE orders SET version = %s WHERE id = %s", version, order)
    payload = json.dumps({"n": version, "kept": keep})
    database.execute(EVENT, "order", order, "order.changed", payload)
    database.execute("COMMIT" if keep else "ROLLBACK")


def work(connect, worker, orders, changes, failures):
    try:
        database = connect()
        chance = random.Random(worker)
        for number in range(changes):
            change(database, chance.choice(orders), keep=number % 3 != 2)
    except Exception as failure:  # The thread's own report would leave the exit code at 0.
        failures.append(f"worker {worker}: {failure!r}")


def main(url, schema, order_count, changes, workers):
    kind = Sqlite if url.startswith("sqlite:") else Postgres
    database = kind(url, schema)
    database.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    orders = [f"order {number}" for number in range(int(order_count))]
    for order in orders:
        database.execute("INSERT INTO orders (id, version) VALUES (%s, 0)", order)
    failures = []
    share = int(changes) // int(workers)
    threads = [
        threading.Thread(target=work, args=(lambda: kind(url, schema), worker, orders, share, failures))
        for worker in range(int(workers))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))
    print(json.dumps(dict(map(tuple, database.execute("SELECT id, version FROM orders").fetchall()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
