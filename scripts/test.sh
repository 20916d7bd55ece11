#!/usr/bin/env bash
# Everything that must hold before a change is merged: format, lints, each feature alone, docs, all tests against real
# servers. The same command on a laptop and in CI.
#
#   scripts/test.sh            all of it
#   scripts/test.sh STEP...    only these: format lint features docs test drivers
#
# Servers that it started are stopped at the end; those that were up stay. A server whose address is set
# (OUTBOX_TEST_POSTGRES_URL and so on: scripts/services.sh list) is used as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
die() { echo "test: $*" >&2; exit 1; }

[ $# -gt 0 ] || set -- format lint features docs test drivers
for step; do
  case $step in format | lint | features | docs | test | drivers) ;; *) die "unknown step: $step (format lint features docs test drivers)" ;; esac
done
# A warning is an error, but only in this project's code: the flag would rebuild the dependencies.
warnings_denied=(-D warnings)

say 'tools'
lacking=()
command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
command -v cargo >/dev/null || die 'there is no Rust: install it from https://rustup.rs'
# librdkafka, SQLite and, with all features, OpenSSL are built from source.
command -v cc >/dev/null || lacking+=(gcc)
command -v c++ >/dev/null || lacking+=(g++)
command -v make >/dev/null || lacking+=(make)
# The service in another language, with its driver from pip.
command -v python3 >/dev/null || lacking+=(python3)
python3 -m pip --version >/dev/null 2>&1 || lacking+=(python3-pip)
perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 2>/dev/null || lacking+=(perl)
[ -e /usr/include/zlib.h ] || export LIBZ_SYS_STATIC=1
if [ ${#lacking[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${lacking[*]}"
    { apt-get -y -qq install "${lacking[@]}" || { apt-get -qq update && apt-get -y -qq install "${lacking[@]}"; }; } >/dev/null
  else
    die "a C and C++ compiler, make and perl are needed; on Debian: sudo apt-get install ${lacking[*]}"
  fi
fi
for component in rustfmt clippy; do
  cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done
cargo --version

format() { cargo fmt --all --check; }
lint() { cargo clippy --workspace --all-targets --all-features -- "${warnings_denied[@]}"; }
features() {
  # Each feature alone, of the facade and of the program, as cargo knows them; the facade's `default` is the build without any.
  # Those that build a C library for minutes are among all features, which the other steps build.
  local manifest package feature
  for manifest in Cargo.toml outbox-cli/Cargo.toml; do
    package=$(sed -n 's/^name = "\(.*\)"$/\1/p' "$manifest" | head -n 1)
    cargo metadata --no-deps --format-version 1 | features_of "$manifest" | grep -vE -- '-(ssl|zstd)$' | while read -r feature; do
      echo "feature of $package: $feature"
      cargo clippy --package "$package" --no-default-features --features "$feature" -- "${warnings_denied[@]}"
      RUSTDOCFLAGS="${warnings_denied[*]}" cargo doc --package "$package" --no-deps --no-default-features --features "$feature"
    done
  done
}
features_of() { # features_of MANIFEST
  # The package is the one whose manifest that is; its features are the keys of one flat object.
  grep -o '"features":{[^}]*},"manifest_path":"'"$PWD/$1"'"' | grep -o '"[A-Za-z0-9_-]*":\[' | tr -d '":[' | sort
}
docs() { RUSTDOCFLAGS="${warnings_denied[*]}" cargo doc --workspace --all-features --no-deps; }
serve() {
  # Starts the servers that are not up, once for all steps, and tells the tests where each is.
  [ -z "${served:-}" ] || return 0
  served=yes
  local name started=()
  need() { # need NAME VARIABLE
    if [ -n "${!2:-}" ]; then
      echo "$1: $2 is set, using it"
    elif [ -n "$(scripts/services.sh env "$1")" ]; then
      echo "$1: already up"
    elif [[ " ${started[*]} " != *" $1 "* ]]; then
      started+=("$1")
    fi
  }
  local servers variable
  servers=$(scripts/services.sh list)
  while read -r name variable; do need "$name" "$variable"; done <<<"$servers"
  if [ ${#started[@]} -gt 0 ]; then
    # shellcheck disable=SC2064
    trap "scripts/services.sh down ${started[*]}" EXIT
    scripts/services.sh up "${started[@]}"
  fi
  # What the caller has set wins over what the script started.
  local exports
  exports=$(export -p | grep ' OUTBOX_TEST_' || true)
  eval "$(scripts/services.sh env)"
  eval "$exports"
  env | grep '^OUTBOX_TEST_' | cut -d= -f1
}
test_() {
  serve
  # All of them, so that one run tells everything.
  OUTBOX_REQUIRE_SERVERS=1 cargo test --workspace --all-features --no-fail-fast
}
drivers() {
  # The workspaces beside this one: their drivers share neither its lock file nor its builds.
  serve
  local manifest
  for manifest in drivers/Cargo.toml drivers/sqlx-0.8/Cargo.toml; do
    echo "$manifest"
    cargo fmt --manifest-path "$manifest" --all --check
    cargo clippy --manifest-path "$manifest" --target-dir target/drivers --workspace --all-targets --all-features -- "${warnings_denied[@]}"
    RUSTDOCFLAGS="${warnings_denied[*]}" cargo doc --manifest-path "$manifest" --target-dir target/drivers --workspace --all-features --no-deps
    OUTBOX_REQUIRE_SERVERS=1 cargo test --manifest-path "$manifest" --target-dir target/drivers --workspace --all-features --no-fail-fast
  done
}

for step; do
  say "$step"
  case $step in test) test_ ;; *) "$step" ;; esac
done
say 'all is well'
