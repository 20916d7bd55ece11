# NATS with JetStream. Sourced by services.sh; natstls.sh is the same with TLS.
PORT_nats=$((SVC_PORT_BASE + 222))
missing_nats() { [ -n "$(nats_server)" ] || echo nats-server; }
nats_server() { command -v nats-server || { [ ! -x /usr/sbin/nats-server ] || echo /usr/sbin/nats-server; }; }
init_nats() { nats_conf nats; }
nats_conf() { # nats_conf NAME
  local data=$DATA/$1
  mkdir -p "$data"
  cat >"$data/nats.conf" <<END
listen: "$HOST:$(port "$1")"
server_name: $1
authorization { user: "$USER_", password: "$PASSWORD" }
jetstream { store_dir: "$data", max_memory_store: 256MB, max_file_store: 4GB }
END
}
run_nats() { launch nats "$(nats_server)" -c "$DATA/nats/nats.conf"; }
probe_nats() { nats_greets nats; }
nats_greets() { # the greeting comes unasked; JetStream must be on
  local line
  (exec 3<>"/dev/tcp/$HOST/$(port "$1")"; IFS= read -r -t 3 -u 3 line; [[ $line == INFO*'"jetstream":true'* ]]) 2>/dev/null
}
url_nats() { echo "NATS_URL=nats://$USER_:$PASSWORD@$HOST:$PORT_nats"; }
STOP_nats=TERM
