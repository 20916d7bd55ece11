#!/usr/bin/env bash
# The whole order system in one command: starts the servers that are not there, runs the demo, stops what it started.
#
#   examples/order_system/run.sh                    on Kafka
#   examples/order_system/run.sh --broker rabbitmq  on RabbitMQ, or nats
#
# Other options go to the demo (--help tells them). Servers whose addresses are set (OUTBOX_TEST_POSTGRES_URL and so on)
# are used as they are.
set -euo pipefail
cd "$(dirname "$0")/../.."

broker=kafka previous=
for argument; do
  [ "$previous" != --broker ] || broker=$argument
  case $argument in --broker=*) broker=${argument#*=} ;; esac
  previous=$argument
done
case $broker in
  kafka) variable=OUTBOX_TEST_KAFKA_BROKERS ;;
  rabbitmq) variable=OUTBOX_TEST_AMQP_URL ;;
  nats) variable=OUTBOX_TEST_NATS_URL ;;
  *) echo "run: the broker is $broker: give kafka, rabbitmq or nats" >&2; exit 2 ;;
esac

started=()
need() { # need NAME VARIABLE
  local exports
  [ -z "${!2:-}" ] || return 0
  exports=$(scripts/services.sh env "$1")
  if [ -z "$exports" ]; then
    started+=("$1")
    scripts/services.sh up "$1"
    exports=$(scripts/services.sh env "$1")
  fi
  eval "$exports"
}
trap '[ ${#started[@]} -eq 0 ] || scripts/services.sh down "${started[@]}"' EXIT
need postgres OUTBOX_TEST_POSTGRES_URL
need "$broker" "$variable"
cargo run --package order_system -- demo "$@"
