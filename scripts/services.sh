#!/usr/bin/env bash
# Real servers for the tests and examples, on loopback, without Docker or systemd.
#
#   scripts/services.sh up NAME...|all    install what is missing, start, wait until each answers
#   scripts/services.sh down [NAME...]    stop (all when no name is given); data stays
#   scripts/services.sh kill NAME...      SIGKILL, for crash tests; `up` starts it again on the same data
#   scripts/services.sh wipe [NAME...]    stop and delete the data; downloads stay
#   scripts/services.sh status            one line per server
#   scripts/services.sh list              each server with the variable that holds its address
#   scripts/services.sh env [NAME...]     export lines for the servers that answer: eval "$(scripts/services.sh env)"
#   scripts/services.sh tool NAME ARG...  the server's own command for operators, such as rabbitmqctl
#
# NAMES: one for each file in scripts/services/
#
# Settings (environment):
#   SVC_DIR        where data, logs, sockets and pid files live   (/var/tmp/outbox-services)
#   SVC_PKG_DIR    where downloads live; may be a cache           ($SVC_DIR/pkg)
#   SVC_PORT_BASE  first of the ports                             (25000)
#   SVC_WAIT       seconds to wait for one server                 (90)
#   KAFKA_VERSION  the version of Apache Kafka                    (4.1.1)
#   PG_BIN         the folder of PostgreSQL's programs            (the newest in /usr/lib/postgresql)
#
# A new server X is a file scripts/services/X.sh with PORT_X, STOP_X (the signal that ends it) and these functions:
#   missing_X  prints the Debian packages that it lacks     fetch_X  gets what apt does not have
#   init_X     makes its data folder, once                  run_X    starts it, by `launch`
#   probe_X    is true when it really answers               url_X    prints NAME=value for `env`, the address first
# and post_X where something is to be made after its start, stopped_X where something is left when it has stopped, and
# tool_X, its command for operators.
set -euo pipefail
SELF=$(realpath "$0")

: "${SVC_DIR:=/var/tmp/outbox-services}" "${SVC_PORT_BASE:=25000}" "${SVC_WAIT:=90}"
: "${SVC_PKG_DIR:=$SVC_DIR/pkg}"
SVC_DIR=$(realpath -m "$SVC_DIR") PKG=$(realpath -m "$SVC_PKG_DIR")
DATA=$SVC_DIR/data RUN=$SVC_DIR/run LOG=$SVC_DIR/log
HOST=127.0.0.1 USER_=outbox PASSWORD=outbox DATABASE=outbox
# Root is needed to install packages only; PostgreSQL refuses to be root and gets a user of its own then.
ROOT=
[ "$(id -u)" != 0 ] || ROOT=1

die() { echo "services: $*" >&2; exit 1; }
say() { echo "services: $*" >&2; }
port() { local name=PORT_$1; echo "${!name}"; }
listens() { (exec 3<>"/dev/tcp/$HOST/$1") 2>/dev/null; }
has_function() { declare -F "$1" >/dev/null; }

# ---- processes: a pid file holds "pid starttime", so that a pid which was used again is not taken for ours ----
start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The name, in brackets, may hold spaces: count fields after it.
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  [ "$1" != Z ] || return 1
  echo "${20}"
}
alive() {
  local pid time
  read -r pid time 2>/dev/null <"$RUN/$1.pid" || return 1
  [ "$(start_time "$pid")" = "$time" ]
}
pid_of() { cut -d' ' -f1 "$RUN/$1.pid"; }
launch() { # launch NAME COMMAND...
  # A small shell stays as the parent and reaps the server: where process 1 is slow to reap, PostgreSQL takes its
  # own dead postmaster for a live one and refuses to start after a kill. The lock (9) is not inherited.
  local name=$1 pid i
  shift
  rm -f "$RUN/$name.pid" "$RUN/$name.new"
  setsid bash -c '"${@:2}" & echo $! >"$1.tmp" && mv "$1.tmp" "$1"; wait' _ "$RUN/$name.new" "$@" \
    </dev/null >>"$LOG/$name.log" 2>&1 9>&- &
  for ((i = 0; i < 250; i++)); do
    [ ! -e "$RUN/$name.new" ] || break
    sleep 0.02
  done
  [ -e "$RUN/$name.new" ] || die "$name: could not be started, see $LOG/$name.log"
  pid=$(cat "$RUN/$name.new")
  rm -f "$RUN/$name.new"
  echo "$pid $(start_time "$pid" || echo 0)" >"$RUN/$name.pid"
}
halt() { # halt NAME SIGNAL SECONDS
  local pid i
  if alive "$1"; then
    pid=$(pid_of "$1")
    kill -"$2" "$pid" 2>/dev/null || true
    for ((i = 0; i < $3 * 20; i++)); do
      alive "$1" || break
      sleep 0.05
    done
    if alive "$1"; then
      say "$1: no exit after $3 s, killing pid $pid"
      kill -KILL "$pid" 2>/dev/null || true
      sleep 0.3
    fi
  fi
  rm -f "$RUN/$1.pid"
}
await() {
  local i
  for ((i = 0; i < SVC_WAIT * 10; i++)); do
    ! "probe_$1" >/dev/null 2>&1 || return 0
    alive "$1" || { tail -n 15 "$LOG/$1.log" >&2; say "$1: exited while starting"; return 1; }
    sleep 0.1
  done
  tail -n 15 "$LOG/$1.log" >&2
  say "$1: no answer in $SVC_WAIT s"
  return 1
}

# ---- downloads ----
retry() { # retry COMMAND...: three times, because mirrors and proxies have bad moments
  local attempt
  for attempt in 1 2 3; do
    ! "$@" || return 0
    [ "$attempt" = 3 ] || { say "failed, trying again: $1"; sleep $((attempt * 3)); }
  done
  return 1
}
apt_install() { # in one transaction; nothing that it installs is started
  [ -n "$ROOT" ] || die "these packages are missing, and only root can install them: $*"
  command -v apt-get >/dev/null || die "these are missing, and there is no apt to install them: $*"
  local failed='' policy='' conf=/etc/postgresql-common/createcluster.d/zz-outbox.conf
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    policy=1
  fi
  mkdir -p "${conf%/*}"
  echo 'create_main_cluster = false' >"$conf"
  say "installing: $*"
  retry apt_transaction "$@" || failed=1
  rm -f "$conf"
  [ -z "$policy" ] || rm -f /usr/sbin/policy-rc.d
  [ -z "$failed" ] || { tail -n 20 "$LOG/apt.log" >&2; die "apt-get install $* failed"; }
}
apt_transaction() {
  local options=(-y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3
    -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold)
  export DEBIAN_FRONTEND=noninteractive
  { apt-get "${options[@]}" install "$@" || { apt-get -qq update && apt-get "${options[@]}" install "$@"; }; } \
    >>"$LOG/apt.log" 2>&1 </dev/null 9>&-
}

debian_mirror() { # the address of this machine's own Debian archive, from its apt sources
  local codename
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v codename="$codename" '$1 == codename { print $2; exit }'
}
# unpack_from_suite FOLDER SUITE CONDITION PACKAGE...: the packages of another Debian suite, with those that they depend
# on, unpacked into a folder of their own. Nothing is installed: apt works on a state of its own, and verifies what it
# gets with Debian's keyring. CONDITION is awk's and picks among the packages; their name is $2.
unpack_from_suite() {
  local folder=$1 suite=$2 condition=$3 mirror work=$1.new
  shift 3
  command -v apt-get >/dev/null || die "$suite: there is no apt to fetch these packages: $*"
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || die "$suite: no Debian mirror in the apt sources"
  say "fetching from Debian $suite: $*"
  retry unpack_from_suite_once "$work" "$suite" "$condition" "$mirror" "$@" ||
    { tail -n 20 "$LOG/fetch.log" >&2; die "$suite: fetching $* failed"; }
  rm -rf "$folder"
  mv "$work/root" "$folder"
  rm -rf "$work"
}
unpack_from_suite_once() (
  # `retry` asks for this as a condition, where bash ignores `set -e`: hence the chain.
  work=$1 suite=$2 condition=$3 mirror=$4
  shift 4
  rm -rf "$work" &&
    mkdir -p "$work"/{apt/lists/partial,apt/archives/partial,packages,root} &&
    : >"$work/apt/status" &&
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/apt/sources.list" &&
    cat >"$work/apt/apt.conf" <<END &&
Dir::State "$work/apt"; Dir::State::status "$work/apt/status"; Dir::Cache "$work/apt";
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "$work/apt/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User ""; APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
END
    export APT_CONFIG=$work/apt/apt.conf &&
    apt-get -qq update &&
    packages=$(apt-get -s install "$@" | awk "\$1 == \"Inst\" && ($condition) { print \$2 }") &&
    [ -n "$packages" ] &&
    cd "$work/packages" &&
    apt-get -qq download $packages &&
    for package in ./*.deb; do dpkg -x "$package" "$work/root" || exit 1; done
) >>"$LOG/fetch.log" 2>&1 </dev/null 9>&-

# on_foreign_libraries FOLDER PROGRAM...: what was unpacked from another suite needs that suite's loader and libraries, also
# where one program starts another. So each becomes a script that starts it by them, under the script's own name.
on_foreign_libraries() {
  local folder=$1 program
  shift
  for program; do
    [ ! -e "$program.program" ] || continue
    mv "$program" "$program.program"
    cat >"$program" <<END
#!/bin/sh
exec "$folder/usr/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$folder/usr/lib/x86_64-linux-gnu" \\
  --argv0 "$program" "$program.program" "\$@"
END
    chmod 755 "$program"
  done
}

# ---- certificates ----
missing_openssl() { command -v openssl >/dev/null || echo openssl; }
certificates() { # certificates FOLDER: an authority of its own, and what it has signed for a server and for a client
  local folder=$1
  [ ! -e "$folder/ca.pem" ] || return 0
  rm -rf "$folder.new"
  mkdir -p "$folder.new"
  (
    cd "$folder.new"
    key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }
    signed() { # signed FILE NAME EXTENSION...
      key "$1.key"
      openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
      printf '%s\n' "${@:3}" >"$1.ext"
      openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile "$1.ext" -out "$1.pem"
      rm "$1.csr" "$1.ext"
    }
    key ca.key
    openssl req -x509 -new -key ca.key -subj '/CN=outbox test authority' -days 3650 -out ca.pem
    signed server localhost 'subjectAltName=DNS:localhost,IP:127.0.0.1' 'extendedKeyUsage=serverAuth'
    signed client "$USER_" "subjectAltName=DNS:$USER_" 'extendedKeyUsage=clientAuth'
  ) >>"$LOG/certificates.log" 2>&1 || die "openssl cannot make certificates, see $LOG/certificates.log"
  mv "$folder.new" "$folder"
}

# ---- servers ----
ALL=()
for file in "${SELF%.sh}"/*.sh; do
  ALL+=("$(basename "$file" .sh)")
  # shellcheck source=/dev/null
  . "$file"
done

# ---- commands ----
names() { # checks and expands names; none is all
  local name known
  [ $# -gt 0 ] && [ "$*" != all ] || set -- "${ALL[@]}"
  known=" ${ALL[*]} "
  for name; do
    [[ $known == *" $name "* ]] || die "unknown server: $name (known: ${ALL[*]})"
    echo "$name"
  done
}
lock() {
  mkdir -p "$DATA" "$RUN" "$LOG" "$PKG"
  chmod 755 "$SVC_DIR" "$DATA" "$RUN"
  exec 9>"$RUN/lock"
  flock -w 900 9 || die "another run holds $RUN/lock"
}
start() { # a server from nothing to answering
  local name=$1
  if alive "$name" && "probe_$name" >/dev/null 2>&1; then
    say "$name: already up"
    return
  fi
  ! has_function "fetch_$name" || "fetch_$name"
  if ! alive "$name"; then
    ! listens "$(port "$name")" || die "$name: port $(port "$name") is taken by a process that is not ours: set SVC_PORT_BASE"
    "init_$name"
    "run_$name"
  fi
  await "$name"
  ! has_function "post_$name" || "post_$name"
  say "$name: up on $HOST:$(port "$name")"
}
up() {
  local list name missing failed='' pids=()
  [ $# -gt 0 ] || die "up what? (${ALL[*]} | all)"
  list=$(names "$@")
  lock
  missing=$(for name in $list; do "missing_$name"; done)
  # shellcheck disable=SC2086
  [ -z "$missing" ] || apt_install $missing
  for name in $list; do
    (start "$name") &
    pids+=($!)
  done
  for name in "${pids[@]}"; do wait "$name" || failed=1; done
  [ -z "$failed" ]
}
down() {
  local list name stop
  list=$(names "$@")
  lock
  for name in $list; do
    stop=STOP_$name
    halt "$name" "${!stop}" 30 &
  done
  wait
  for name in $list; do ! has_function "stopped_$name" || "stopped_$name"; done
}
kill_() {
  local list name pid children child i
  [ $# -gt 0 ] || die "kill what?"
  list=$(names "$@")
  for name in $list; do
    alive "$name" || { say "$name: not running"; continue; }
    pid=$(pid_of "$name")
    children=$(cat "/proc/$pid/task"/*/children 2>/dev/null || true)
    kill -KILL "$pid"
    # PostgreSQL's children leave by themselves once the postmaster is gone. They outlive its port, and as long as they
    # have its shared memory no new postmaster starts.
    for ((i = 0; i < 500; i++)); do
      alive "$name" || listens "$(port "$name")" || break
      sleep 0.02
    done
    for child in $children; do
      for ((i = 0; i < 500; i++)); do
        kill -0 "$child" 2>/dev/null || break
        sleep 0.02
      done
    done
    rm -f "$RUN/$name.pid"
    say "$name: killed pid $pid"
  done
}
wipe() {
  local list name
  list=$(names "$@")
  # shellcheck disable=SC2086
  down $list
  for name in $list; do rm -rf "${DATA:?}/$name" "$LOG/$name.log"; done
}
status() {
  local name state
  for name in "${ALL[@]}"; do
    state=down
    ! alive "$name" || state=starting
    [ "$state" = down ] || ! "probe_$name" >/dev/null 2>&1 || state=up
    printf '%-10s %-8s port %s  data %s\n' "$name" "$state" "$(port "$name")" "$DATA/$name"
  done
}
list() {
  local name url
  for name in "${ALL[@]}"; do
    "url_$name" | while IFS= read -r url; do echo "$name OUTBOX_TEST_${url%%=*}"; done
  done
}
env_() {
  local list name url
  list=$(names "$@")
  for name in $list; do
    alive "$name" && "probe_$name" >/dev/null 2>&1 || continue
    "url_$name" | while IFS= read -r url; do echo "export OUTBOX_TEST_${url%%=*}='${url#*=}'"; done
  done
}
tool() {
  local name=${1:-}
  has_function "tool_$name" || die "no tool for: $name"
  shift
  "tool_$name" "$@"
}

# Servers must not keep the caller's folder busy.
cd /
command=${1:-help}
[ $# = 0 ] || shift
case $command in
  up) up "$@" ;;
  down) down "$@" ;;
  kill) kill_ "$@" ;;
  wipe) wipe "$@" ;;
  status) status ;;
  list) list ;;
  env) env_ "$@" ;;
  tool) tool "$@" ;;
  help | -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$SELF" ;;
  *) die "unknown command: $command (up down kill wipe status list env tool)" ;;
esac
