# PostgreSQL, of Debian's stable release or whatever is installed. Sourced by services.sh; postgres18.sh is a newer one.
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
init_postgres() { postgres_init postgres "$(postgres_bin)"; }
postgres_init() { # postgres_init NAME PROGRAMS [OPTION...]: OPTIONs are initdb's
  local name=$1 programs=$2 data=$DATA/$1 password=$RUN/$1.password
  shift 2
  [ ! -e "$data/PG_VERSION" ] || return 0
  rm -rf "$data"
  mkdir -p "$data"
  echo "$PASSWORD" >"$password"
  if [ -n "$ROOT" ]; then
    chown postgres: "$data" "$password"
    as_postgres test -x "$data" || die "the user postgres cannot reach $data: choose another SVC_DIR"
  fi
  [ $# -gt 0 ] || set -- --locale=C.UTF-8
  as_postgres "$programs/initdb" -D "$data" -U "$USER_" --pwfile="$password" --auth-local=trust \
    --auth-host=scram-sha-256 -E UTF8 --no-sync "$@" >>"$LOG/$name.log" 2>&1
  rm -f "$password"
  # PostgreSQL reads a key only if it is its own.
  certificates "$DATA/$name.certificates"
  cp "$DATA/$name.certificates"/server.{pem,key} "$data"
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
run_postgres() { postgres_run postgres "$(postgres_bin)"; }
postgres_run() { # postgres_run NAME PROGRAMS
  local as=()
  mkdir -p "$RUN/$1"
  if [ -n "$ROOT" ]; then
    chown postgres: "$RUN/$1"
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
  fi
  launch "$1" "${as[@]}" "$2/postgres" -D "$DATA/$1" -p "$(port "$1")" -k "$RUN/$1"
}
psql_() { # psql_ NAME ARGUMENT...: a client of any version will do
  PGPASSWORD=$PASSWORD "$(postgres_bin)/psql" -X -qAt -h "$HOST" -p "$(port "$1")" -U "$USER_" -d postgres "${@:2}"
}
postgres_answers() { [ "$(psql_ "$1" -c 'select 1')" = 1 ]; }
probe_postgres() { postgres_answers postgres; }
post_postgres() { postgres_contents postgres; }
postgres_contents() {
  [ "$(psql_ "$1" -c "select count(*) from pg_database where datname = '$DATABASE'")" = 1 ] ||
    psql_ "$1" -c "create database $DATABASE"
  [ "$(psql_ "$1" -c "select count(*) from pg_roles where rolname = 'demands_tls'")" = 1 ] ||
    psql_ "$1" -c "create role demands_tls superuser login password '$PASSWORD'"
}
url_postgres() {
  echo "POSTGRES_URL=postgres://$USER_:$PASSWORD@$HOST:$PORT_postgres/$DATABASE"
  echo "POSTGRES_CERTIFICATES=$DATA/postgres.certificates"
}
STOP_postgres=INT
