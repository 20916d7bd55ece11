# RabbitMQ 4 beside the older one: Debian sid's own build, with its Erlang, in a folder of its own. Sourced by services.sh.
PORT_rabbitmq4=$((SVC_PORT_BASE + 682)) PORT_rabbitmq4_tls=$((SVC_PORT_BASE + 681))
PORT_rabbitmq4_node=$((SVC_PORT_BASE + 683)) PORT_epmd4=$((SVC_PORT_BASE + 684))
RABBITMQ4_ROOT=$PKG/rabbitmq4
RABBITMQ4_SCRIPTS=$RABBITMQ4_ROOT/usr/lib/rabbitmq/bin RABBITMQ4_PATH=$RABBITMQ4_ROOT/usr/bin:/usr/bin:/bin
missing_rabbitmq4() { missing_openssl; }
fetch_rabbitmq4() {
  local erlang=$RABBITMQ4_ROOT/usr/lib/erlang
  [ -x "$RABBITMQ4_SCRIPTS/rabbitmq-server" ] ||
    unpack_from_suite "$RABBITMQ4_ROOT" sid '$2 ~ /^(lib|zlib1g|erlang|rabbitmq-server$)/ && $2 !~ /perl/' rabbitmq-server
  on_foreign_libraries "$RABBITMQ4_ROOT" \
    "$erlang"/erts-*/bin/{beam.smp,epmd,erl_child_setup,erlc,erlexec,escript,heart,inet_gethost}
  # Erlang looks for itself where its start script says.
  sed -i "s|ROOTDIR=/usr/lib/erlang$|ROOTDIR=\"$erlang\"|" "$erlang/bin/erl" "$erlang"/erts-*/bin/erl
}
init_rabbitmq4() { rabbitmq_init rabbitmq4; }
run_rabbitmq4() { rabbitmq_run rabbitmq4 "$RABBITMQ4_SCRIPTS" "$RABBITMQ4_PATH"; }
stopped_rabbitmq4() { halt epmd4 TERM 3; }
probe_rabbitmq4() { rabbitmq_greets rabbitmq4; }
url_rabbitmq4() { echo "AMQP4_URL=amqp://$USER_:$PASSWORD@$HOST:$PORT_rabbitmq4/%2f"; }
STOP_rabbitmq4=TERM
