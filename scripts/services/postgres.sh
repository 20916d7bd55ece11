# PostgreSQL, sourced by services.sh.
PORT_postgres=$((SVC_PORT_BASE + 432))
postgres_bin() { # of the newest version that is installed, with server and client
  local folder
  [ -z "${PG_BIN:-}" ] || { echo "$PG_BIN"; return; }
  for folder in /usr/lib/postgresql/*/bin; do
    [ ! -x "$folder/postgres" ] || [ ! -x "$folder/psql" ] || echo "$folder"
  done | sort -V | tail -n 1
}
as_postgres() { if [ -n "$ROOT" ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }
missing_postgres() {
  [ -n "$(postgres_bin)" ] || echo postgresql
  missing_openssl
}
init_postgres() {
  local data=$DATA/postgres password=$RUN/postgres.password
  [ ! -e "$data/PG_VERSION" ] || return 0
  rm -rf "$data"
  mkdir -p "$data"
  echo "$PASSWORD" >"$password"
  if [ -n "$ROOT" ]; then
    chown postgres: "$data" "$password"
    as_postgres test -x "$data" || die "the user postgres cannot reach $data: choose another SVC_DIR"
  fi
  as_postgres "$(postgres_bin)/initdb" -D "$data" -U "$USER_" --pwfile="$password" --auth-local=trust \
    --auth-host=scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync >>"$LOG/postgres.log" 2>&1
  rm -f "$password"
  # PostgreSQL reads a key only if it is its own.
  certificates "$DATA/postgres.certificates"
  cp "$DATA/postgres.certificates"/server.{pem,key} "$data"
  chmod 600 "$data/server.key"
  [ -z "$ROOT" ] || chown postgres: "$data"/server.{pem,key}
  # The account `demands_tls` is let in with encryption only.
  sed -i "1i host all demands_tls all reject" "$data/pg_hba.conf"
  sed -i "1i hostssl all demands_tls all scram-sha-256" "$data/pg_hba.conf"
  # Durable as in production, because that is what is measured and crashed; logical, for log tailing.
  cat >>"$data/postgresql.conf" <<END
listen_addresses = '$HOST'
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_connections = 300
shared_buffers = 256MB
max_wal_size = 2GB
timezone = 'UTC'
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
END
}
run_postgres() {
  local as=()
  mkdir -p "$RUN/postgres"
  if [ -n "$ROOT" ]; then
    chown postgres: "$RUN/postgres"
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
  fi
  launch postgres "${as[@]}" "$(postgres_bin)/postgres" -D "$DATA/postgres" -p "$PORT_postgres" -k "$RUN/postgres"
}
psql_() { PGPASSWORD=$PASSWORD "$(postgres_bin)/psql" -X -qAt -h "$HOST" -p "$PORT_postgres" -U "$USER_" -d postgres "$@"; }
probe_postgres() { [ "$(psql_ -c 'select 1')" = 1 ]; }
post_postgres() {
  [ "$(psql_ -c "select count(*) from pg_database where datname = '$DATABASE'")" = 1 ] ||
    psql_ -c "create database $DATABASE"
  [ "$(psql_ -c "select count(*) from pg_roles where rolname = 'demands_tls'")" = 1 ] ||
    psql_ -c "create role demands_tls superuser login password '$PASSWORD'"
}
url_postgres() {
  echo "POSTGRES_URL=postgres://$USER_:$PASSWORD@$HOST:$PORT_postgres/$DATABASE"
  echo "POSTGRES_CERTIFICATES=$DATA/postgres.certificates"
}
STOP_postgres=INT
