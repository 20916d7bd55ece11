# MariaDB, sourced by services.sh.
PORT_mariadb=$((SVC_PORT_BASE + 306))
missing_mariadb() {
  [ -x /usr/sbin/mariadbd ] && [ -x /usr/bin/mariadb ] || echo mariadb-server-core mariadb-client-core
  missing_openssl
}
mariadb_accounts() { # `demands_tls` is refused without encryption
  cat <<END
CREATE DATABASE IF NOT EXISTS $DATABASE CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS '$USER_'@'%' IDENTIFIED BY '$PASSWORD';
GRANT ALL PRIVILEGES ON *.* TO '$USER_'@'%' WITH GRANT OPTION;
CREATE USER IF NOT EXISTS 'demands_tls'@'%' IDENTIFIED BY '$PASSWORD' REQUIRE SSL;
GRANT ALL PRIVILEGES ON *.* TO 'demands_tls'@'%';
END
}
init_mariadb() {
  local data=$DATA/mariadb
  certificates "$DATA/mariadb.certificates"
  [ ! -e "$data/.ready" ] || return 0
  rm -rf "$data"
  mkdir -p "$data"
  mariadb-install-db --no-defaults --datadir="$data" --auth-root-authentication-method=normal --user="$(id -un)" \
    --skip-test-db --skip-name-resolve >>"$LOG/mariadb.log" 2>&1
  touch "$data/.ready"
}
run_mariadb() {
  # Durable as in production, because that is what is measured and crashed.
  launch mariadb /usr/sbin/mariadbd --no-defaults --datadir="$DATA/mariadb" --user="$(id -un)" \
    --bind-address="$HOST" --port="$PORT_mariadb" --socket="$RUN/mariadb.sock" --pid-file="$RUN/mariadb.own.pid" \
    --skip-name-resolve --server-id=10 --log-bin=binlog --binlog-format=ROW --binlog-row-image=FULL --sync-binlog=1 \
    --innodb-flush-log-at-trx-commit=1 --innodb-buffer-pool-size=256M --max-connections=500 \
    --character-set-server=utf8mb4 --default-time-zone=+00:00 \
    --ssl-cert="$DATA/mariadb.certificates/server.pem" --ssl-key="$DATA/mariadb.certificates/server.key"
}
mariadb_() { MYSQL_PWD=$PASSWORD mariadb --no-defaults -BN -h "$HOST" -P "$PORT_mariadb" -u "$USER_" "$@"; }
probe_mariadb() {
  [ "$(mariadb_ -e 'select 1')" != 1 ] || return 0
  # At the first start there is only root, and only through the socket.
  [ -S "$RUN/mariadb.sock" ] || return 1
  mariadb_accounts | mariadb --no-defaults -u root -S "$RUN/mariadb.sock"
  [ "$(mariadb_ -e 'select 1')" = 1 ]
}
url_mariadb() {
  echo "MARIADB_URL=mysql://$USER_:$PASSWORD@$HOST:$PORT_mariadb/$DATABASE"
  echo "MARIADB_CERTIFICATES=$DATA/mariadb.certificates"
}
STOP_mariadb=TERM
