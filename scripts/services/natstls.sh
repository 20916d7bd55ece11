# NATS with JetStream that takes nothing but TLS and no client without a certificate. Sourced by services.sh.
PORT_natstls=$((SVC_PORT_BASE + 223))
missing_natstls() {
  missing_nats
  missing_openssl
}
init_natstls() {
  local data=$DATA/natstls
  nats_conf natstls
  certificates "$data/certificates"
  cat >>"$data/nats.conf" <<END
tls {
  ca_file: "$data/certificates/ca.pem"
  cert_file: "$data/certificates/server.pem"
  key_file: "$data/certificates/server.key"
  verify: true
}
END
}
run_natstls() { launch natstls "$(nats_server)" -c "$DATA/natstls/nats.conf"; }
probe_natstls() { nats_greets natstls; }
url_natstls() {
  echo "NATS_TLS_URL=tls://$USER_:$PASSWORD@$HOST:$PORT_natstls"
  echo "NATS_TLS_CERTIFICATES=$DATA/natstls/certificates"
}
STOP_natstls=TERM
