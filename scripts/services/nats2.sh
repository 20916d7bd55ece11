# The newest NATS of version 2 beside the older one: Debian sid's own build in a folder of its own. Sourced by services.sh.
PORT_nats2=$((SVC_PORT_BASE + 224))
NATS2_ROOT=$PKG/nats2
missing_nats2() { :; }
fetch_nats2() {
  [ -x "$NATS2_ROOT/usr/sbin/nats-server" ] ||
    unpack_from_suite "$NATS2_ROOT" sid '$2 == "nats-server" || $2 ~ /^libc6/' nats-server
  on_foreign_libraries "$NATS2_ROOT" "$NATS2_ROOT/usr/sbin/nats-server"
}
init_nats2() { nats_conf nats2; }
run_nats2() { launch nats2 "$NATS2_ROOT/usr/sbin/nats-server" -c "$DATA/nats2/nats.conf"; }
probe_nats2() { nats_greets nats2; }
url_nats2() { echo "NATS2_URL=nats://$USER_:$PASSWORD@$HOST:$PORT_nats2"; }
STOP_nats2=TERM
