# MySQL 9: Debian sid's own build in a folder of its own, with sid's loader and libraries. Sourced by services.sh.
PORT_mysql=$((SVC_PORT_BASE + 307))
MYSQL_ROOT=$PKG/mysql
mysql_program() { # mysql_program PROGRAM ARGUMENT...: sets COMMAND to what starts a program of that folder
  COMMAND=("$MYSQL_ROOT/usr/lib64/ld-linux-x86-64.so.2" --inhibit-cache
    --library-path "$MYSQL_ROOT/usr/lib/x86_64-linux-gnu" "$MYSQL_ROOT$1" "${@:2}")
}
missing_mysql() { missing_openssl; }
fetch_mysql() {
  [ -x "$MYSQL_ROOT/usr/sbin/mysqld" ] ||
    unpack_from_suite "$MYSQL_ROOT" sid '$2 !~ /^(lib)?perl/' mysql-server-core mysql-client-core
}
mysql_accounts() { # `demands_tls` is refused without encryption
  cat <<END
CREATE DATABASE IF NOT EXISTS $DATABASE CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS '$USER_'@'%' IDENTIFIED BY '$PASSWORD';
GRANT ALL PRIVILEGES ON *.* TO '$USER_'@'%' WITH GRANT OPTION;
CREATE USER IF NOT EXISTS 'demands_tls'@'%' IDENTIFIED BY '$PASSWORD' REQUIRE SSL;
GRANT ALL PRIVILEGES ON *.* TO 'demands_tls'@'%';
END
}
init_mysql() {
  local data=$DATA/mysql
  mkdir -p "$data"
  certificates "$DATA/mysql.certificates"
  # Durable as in production, because that is what is measured and crashed. The performance schema would cost 250 MiB.
  cat >"$data/my.cnf" <<END
[mysqld]
basedir=$MYSQL_ROOT/usr
lc_messages_dir=$MYSQL_ROOT/usr/share/mysql
character_sets_dir=$MYSQL_ROOT/usr/share/mysql/charsets
plugin_dir=$MYSQL_ROOT/usr/lib/mysql/plugin
datadir=$data/data
socket=$RUN/mysql.sock
pid_file=$RUN/mysql.own.pid
port=$PORT_mysql
bind_address=$HOST
mysqlx=OFF
secure_file_priv=NULL
user=$(id -un)
skip_name_resolve=ON
server_id=97
log_bin=binlog
binlog_row_image=FULL
gtid_mode=ON
enforce_gtid_consistency=ON
sync_binlog=1
innodb_flush_log_at_trx_commit=1
innodb_buffer_pool_size=256M
max_connections=500
performance_schema=OFF
default_time_zone=+00:00
ssl_ca=$DATA/mysql.certificates/ca.pem
ssl_cert=$DATA/mysql.certificates/server.pem
ssl_key=$DATA/mysql.certificates/server.key
END
  [ ! -e "$data/ready" ] || return 0
  rm -rf "$data/data"
  mysql_accounts >"$data/accounts.sql"
  mysql_program /usr/sbin/mysqld --defaults-file="$data/my.cnf" --initialize-insecure --init-file="$data/accounts.sql"
  "${COMMAND[@]}" >>"$LOG/mysql.log" 2>&1 9>&- || { tail -n 15 "$LOG/mysql.log" >&2; die "mysql: initialize failed"; }
  touch "$data/ready"
}
run_mysql() {
  mysql_program /usr/sbin/mysqld --defaults-file="$DATA/mysql/my.cnf"
  launch mysql "${COMMAND[@]}"
}
probe_mysql() {
  mysql_program /usr/bin/mysql --no-defaults -BN -h "$HOST" -P "$PORT_mysql" -u "$USER_" -e 'select 1'
  [ "$(MYSQL_PWD=$PASSWORD "${COMMAND[@]}" 2>/dev/null)" = 1 ]
}
url_mysql() {
  echo "MYSQL_URL=mysql://$USER_:$PASSWORD@$HOST:$PORT_mysql/$DATABASE"
  echo "MYSQL_CERTIFICATES=$DATA/mysql.certificates"
}
STOP_mysql=TERM
