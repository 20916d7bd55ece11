# RabbitMQ: one port in plain text, one with TLS for those who have a certificate, which may be a login by itself.
# Sourced by services.sh; rabbitmq4.sh is a newer one.
PORT_rabbitmq=$((SVC_PORT_BASE + 672)) PORT_rabbitmq_tls=$((SVC_PORT_BASE + 671))
PORT_rabbitmq_node=$((SVC_PORT_BASE + 673)) PORT_epmd=$((SVC_PORT_BASE + 674))
RABBITMQ_PATH=/usr/sbin:/usr/bin:/sbin:/bin RABBITMQ_SCRIPTS=/usr/lib/rabbitmq/bin
missing_rabbitmq() {
  [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || echo rabbitmq-server
  missing_openssl
}
init_rabbitmq() { rabbitmq_init rabbitmq; }
rabbitmq_init() { # rabbitmq_init NAME
  local data=$DATA/$1
  mkdir -p "$data"
  certificates "$data/certificates"
  # The largest message is what version 4 has by default, so that the tests see the same on every version.
  cat >"$data/rabbitmq.conf" <<END
listeners.tcp.1 = $HOST:$(port "$1")
listeners.ssl.1 = $HOST:$(port "$1_tls")
ssl_options.cacertfile = $data/certificates/ca.pem
ssl_options.certfile = $data/certificates/server.pem
ssl_options.keyfile = $data/certificates/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
default_user = $USER_
default_pass = $PASSWORD
max_message_size = 16777216
disk_free_limit.absolute = 200MB
vm_memory_high_watermark.absolute = 1GB
log.console = true
log.console.level = warning
log.file = false
END
  echo '[rabbitmq_auth_mechanism_ssl].' >"$data/enabled_plugins"
}
rabbitmq_env() { # rabbitmq_env NAME SCRIPTS PATH: the node and its tools see no other environment than this
  local name=$1 scripts=$2 path=$3 data=$DATA/$1 loopback='-kernel inet_dist_use_interface {127,0,0,1}'
  RABBITMQ_ENV=(env -i PATH="$path" LANG=C.UTF-8 HOME="$data"
    RABBITMQ_NODENAME="${name/rabbitmq/outbox}$SVC_PORT_BASE@localhost" RABBITMQ_CONF_ENV_FILE=/dev/null
    RABBITMQ_NODE_PORT="$(port "$name")" RABBITMQ_NODE_IP_ADDRESS="$HOST" RABBITMQ_DIST_PORT="$(port "${name}_node")"
    ERL_EPMD_PORT="$(port "${name/rabbitmq/epmd}")" ERL_EPMD_ADDRESS="$HOST"
    RABBITMQ_CONFIG_FILE="$data/rabbitmq.conf" RABBITMQ_ADVANCED_CONFIG_FILE="$data/advanced.config"
    RABBITMQ_GENERATED_CONFIG_DIR="$data/config" RABBITMQ_ENABLED_PLUGINS_FILE="$data/enabled_plugins"
    RABBITMQ_MNESIA_BASE="$data/mnesia" RABBITMQ_LOG_BASE="$data/log" RABBITMQ_PID_FILE="$data/pid"
    # Makes the process that is started the node itself, so that a kill of it kills the node.
    RUNNING_UNDER_SYSTEMD=1
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$loopback +sbwt none +sbwtdcpu none +sbwtdio none"
    RABBITMQ_CTL_ERL_ARGS="$loopback")
}
run_rabbitmq() { rabbitmq_run rabbitmq "$RABBITMQ_SCRIPTS" "$RABBITMQ_PATH"; }
rabbitmq_run() { # as rabbitmq_env
  rabbitmq_env "$@"
  # Erlang's name server, which a node would start as a process that is never ended.
  local epmd=${1/rabbitmq/epmd}
  alive "$epmd" || PATH=$3 launch "$epmd" epmd -port "$(port "$epmd")" -address "$HOST"
  launch "$1" "${RABBITMQ_ENV[@]}" "$2/rabbitmq-server"
}
stopped_rabbitmq() { halt epmd TERM 3; }
probe_rabbitmq() { rabbitmq_greets rabbitmq; }
rabbitmq_greets() { # the protocol's header out, a method frame (connection.start) back
  (exec 3<>"/dev/tcp/$HOST/$(port "$1")"; printf 'AMQP\0\0\x09\x01' >&3
    [ "$(timeout 3 head -c 1 <&3 | od -An -tu1 | tr -d ' ')" = 1 ]) 2>/dev/null
}
tool_rabbitmq() { # rabbitmqctl
  rabbitmq_env rabbitmq "$RABBITMQ_SCRIPTS" "$RABBITMQ_PATH"
  "${RABBITMQ_ENV[@]}" "$RABBITMQ_SCRIPTS/rabbitmqctl" "$@"
}
url_rabbitmq() {
  echo "AMQP_URL=amqp://$USER_:$PASSWORD@$HOST:$PORT_rabbitmq/%2f"
  echo "AMQPS_URL=amqps://$USER_:$PASSWORD@$HOST:$PORT_rabbitmq_tls/%2f"
  echo "AMQPS_CERTIFICATES=$DATA/rabbitmq/certificates"
}
STOP_rabbitmq=TERM
