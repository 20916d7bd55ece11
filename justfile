# The tasks of this project. `just` lists them; `just verify` never writes, `just fix` may.

# Lists the tasks.
list:
    @just --list

# Checks format, lints, each feature alone, docs and all tests: what CI runs.
verify:
    scripts/test.sh

# Corrects format and lints where that can be done by a machine.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

# Runs the tests against real servers, which it starts if need be.
test:
    scripts/test.sh test

# Checks format, lints and docs, without any server.
lint:
    scripts/test.sh format lint docs

# Measures relaying from PostgreSQL to Kafka on real servers: `just bench`, or only some questions of it.
bench *QUESTIONS:
    cargo bench -p benches --bench relay -- {{QUESTIONS}}

# Measures every store with every broker: `just bench-matrix restart`; some pairs: `postgres-nats`; each store alone: `stores`.
bench-matrix *PAIRS:
    cargo bench -p benches --bench matrix -- {{PAIRS}}

# Measures how fast a store alone drains, without lanes and broker: `just bench-drain mysql keep 100000`.
bench-drain STORE *NUMBERS:
    cargo bench -p benches --bench drain -- {{STORE}} {{NUMBERS}}

# Holds every store against the conformance suite on real servers, and rewrites docs/conformance.md.
conformance:
    scripts/conformance.sh

# Starts, stops, kills or lists the servers: `just services up all`.
services *ARGS:
    @scripts/services.sh {{ARGS}}

# Opens the documentation of all crates.
docs:
    cargo doc --workspace --all-features --no-deps --open

# Checks licences, advisories and duplicate versions. Needs `cargo install --locked cargo-deny`.
deny:
    cargo deny --all-features check

# Names what breaks users since the last tag. Needs `cargo install --locked cargo-semver-checks`, and a tag.
semver:
    cargo semver-checks --workspace --all-features --baseline-rev "$(git describe --tags --abbrev=0)"

# Checks the spelling. Needs `cargo install --locked typos-cli`.
typos:
    typos
