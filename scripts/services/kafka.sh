# Apache Kafka: one node that is broker and controller; one port in plain text, one that demands TLS and a password.
# Sourced by services.sh.
: "${KAFKA_VERSION:=4.1.1}"
PORT_kafka=$((SVC_PORT_BASE + 92)) PORT_kafka_controller=$((SVC_PORT_BASE + 93))
PORT_kafka_sasl=$((SVC_PORT_BASE + 94))
KAFKA_JARS=$PKG/kafka-$KAFKA_VERSION
java_() { "${JAVA_HOME:+$JAVA_HOME/bin/}java" "$@"; }
missing_kafka() {
  missing_openssl
  command -v "${JAVA_HOME:+$JAVA_HOME/bin/}java" >/dev/null || echo default-jre-headless
  [ -e "$KAFKA_JARS/.ready" ] || command -v mvn >/dev/null || echo maven
}
fetch_kafka() {
  [ ! -e "$KAFKA_JARS/.ready" ] || return 0
  mkdir -p "$KAFKA_JARS"
  # The broker's own jar leaves out its logging backend, without which it does not start.
  cat >"$KAFKA_JARS/pom.xml" <<END
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version></dependency>
  </dependencies></project>
END
  say "kafka: fetching version $KAFKA_VERSION"
  retry fetch_kafka_jars || { tail -n 20 "$LOG/fetch.log" >&2; die "kafka: fetching its jars by Maven failed"; }
  touch "$KAFKA_JARS/.ready"
}
fetch_kafka_jars() {
  (cd "$KAFKA_JARS" && mvn -q -B dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$KAFKA_JARS/libs") >>"$LOG/fetch.log" 2>&1 </dev/null 9>&-
}
init_kafka() {
  local data=$DATA/kafka id
  mkdir -p "$data"
  certificates "$data/certificates"
  # Java wants the key and the certificate in one file.
  cat "$data/certificates"/server.{key,pem} >"$data/server.pem"
  cat >"$data/server.properties" <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@$HOST:$PORT_kafka_controller
listeners=PLAINTEXT://$HOST:$PORT_kafka,SASL_SSL://$HOST:$PORT_kafka_sasl,CONTROLLER://$HOST:$PORT_kafka_controller
advertised.listeners=PLAINTEXT://$HOST:$PORT_kafka,SASL_SSL://$HOST:$PORT_kafka_sasl
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location=$data/server.pem
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$USER_="$PASSWORD";
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=$data/log
num.partitions=3
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=true
END
  [ ! -e "$data/log/meta.properties" ] || return 0
  # The cluster's id is 16 bytes in URL-safe base64 without padding.
  id=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | tr -d '=')
  java_ -Xmx256m -cp "$KAFKA_JARS/libs/*" kafka.tools.StorageTool format -t "$id" -c "$data/server.properties" \
    >>"$LOG/kafka.log" 2>&1 9>&- || { tail -n 15 "$LOG/kafka.log" >&2; die "kafka: format failed"; }
}
run_kafka() {
  launch kafka "${JAVA_HOME:+$JAVA_HOME/bin/}java" -Xms256m -Xmx512m -XX:+UseG1GC -Djava.awt.headless=true \
    -cp "$KAFKA_JARS/libs/*" kafka.Kafka "$DATA/kafka/server.properties"
}
probe_kafka() { # asks for the supported API versions; the answer must carry correlation id 7 and error code 0
  [ "$( (exec 3<>"/dev/tcp/$HOST/$PORT_kafka"; printf '\0\0\0\x0d\0\x12\0\0\0\0\0\x07\0\x03svc' >&3
    timeout 3 head -c 10 <&3 | tail -c 6 | od -An -tx1 | tr -d ' \n') 2>/dev/null)" = 000000070000 ]
}
url_kafka() {
  echo "KAFKA_BROKERS=$HOST:$PORT_kafka"
  echo "KAFKA_SASL_BROKERS=$HOST:$PORT_kafka_sasl"
  echo "KAFKA_CERTIFICATES=$DATA/kafka/certificates"
}
STOP_kafka=TERM
