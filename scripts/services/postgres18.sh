# PostgreSQL 18 beside the older one: Debian sid's own build in a folder of its own. Sourced by services.sh.
PORT_postgres18=$((SVC_PORT_BASE + 418))
POSTGRES18_ROOT=$PKG/postgres18
POSTGRES18_BIN=$POSTGRES18_ROOT/usr/lib/postgresql/18/bin
# The older one brings the client that asks whether this one answers, and the user that it runs as.
missing_postgres18() { missing_postgres; }
fetch_postgres18() {
  [ -x "$POSTGRES18_BIN/postgres" ] ||
    unpack_from_suite "$POSTGRES18_ROOT" sid '$2 ~ /^(lib|zlib1g|postgresql-18$)/ && $2 !~ /perl/' postgresql-18
  on_foreign_libraries "$POSTGRES18_ROOT" "$POSTGRES18_BIN"/{initdb,postgres}
}
init_postgres18() {
  # The locales of this machine are not those of sid's C library.
  postgres_init postgres18 "$POSTGRES18_BIN" --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
}
run_postgres18() { postgres_run postgres18 "$POSTGRES18_BIN"; }
probe_postgres18() { postgres_answers postgres18; }
post_postgres18() { postgres_contents postgres18; }
url_postgres18() { echo "POSTGRES18_URL=postgres://$USER_:$PASSWORD@$HOST:$PORT_postgres18/$DATABASE"; }
STOP_postgres18=INT
