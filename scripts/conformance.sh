#!/usr/bin/env bash
# Holds every store, publisher and inbox here against the conformance suite, on real servers, and writes what came of it
# into docs/conformance.md.
#
#   scripts/conformance.sh         runs the suites and rewrites the tables
#   scripts/conformance.sh FILE    only rewrites them, from a file that OUTBOX_CONFORMANCE_TABLE has named
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
PAGE=docs/conformance.md

# The columns, from left to right: which half of the suite, the package, a part of the harness's name, the title. Where
# several harnesses are one column, such as isolation levels, a clause is kept if it is kept by all of them.
COLUMNS='a store|outbox-conformance||memory
a store|outbox-sqlite||SQLite
a store|outbox-postgres||PostgreSQL
a store|outbox-mysql|Mysql|MySQL
a store|outbox-mysql|Mariadb|MariaDB
a store|outbox-mongo||MongoDB
a store|custom_store||custom
a publisher|outbox-conformance|MemoryPublisher|memory
a publisher|outbox-conformance|JsonLines|JSON lines
a publisher|outbox-kafka||Kafka
a publisher|outbox-rabbitmq||RabbitMQ
a publisher|outbox-nats||NATS
a publisher|webhook||webhook
an inbox|outbox-conformance||memory
an inbox|outbox-sqlite||SQLite
an inbox|outbox-postgres||PostgreSQL
an inbox|outbox-mysql|Mysql|MySQL
an inbox|outbox-mysql|Mariadb|MariaDB
an inbox|outbox-mongo||MongoDB'

run() { # run FILE: every suite, each of which appends its table to FILE
  scripts/services.sh up postgres postgres18 mysql mariadb mongodb kafka rabbitmq rabbitmq4 nats nats2
  eval "$(scripts/services.sh env)"
  OUTBOX_REQUIRE_SERVERS=1 OUTBOX_CONFORMANCE_TABLE=$1 cargo test --workspace --all-features --test conformance \
    --test inbox --test memory --test json_lines
}

merge() { # merge FILE HALF: one table of all of that half, with a column for each store
  COLUMNS=$COLUMNS awk -v half="$2" '
    BEGIN {
      count = split(ENVIRON["COLUMNS"], lines, "\n")
      for (n = 1; n <= count; n++) {
        split(lines[n], part, "|")
        if (part[1] != half) continue
        package[++columns] = part[2]; harness[columns] = part[3]; title[columns] = part[4]
      }
    }
    / clauses of an? [a-z]+ kept/ {
      split($0, part, "`")
      column = 0
      for (n = 1; n <= columns; n++)
        if ($1 == package[n] && index(part[2], harness[n]) && index(part[3], "clauses of " half " kept")) column = n
      if (column) found[column] = 1
      next
    }
    column && /^\| `/ {
      split($0, part, " [|] ")
      clause = substr(part[1], 3); answer = part[3]; sub(/ [|]$/, "", answer)
      if (!(clause in sentence)) { sentence[clause] = part[2]; order[++clauses] = clause }
      if (answer == "kept") { if (!((clause, column) in mark)) mark[clause, column] = "✓" }
      else if (answer ~ /^not asked/) { mark[clause, column] = "–"; notes[++noted] = clause ", " title[column] ": " answer }
      else mark[clause, column] = "**broken**"
    }
    END {
      head = "| clause | what it says |"; rule = "|---|---|"
      for (n = 1; n <= columns; n++) { head = head " " title[n] " |"; rule = rule ":-:|" }
      print head; print rule
      for (c = 1; c <= clauses; c++) {
        row = "| " order[c] " | " sentence[order[c]] " |"
        for (n = 1; n <= columns; n++) row = row " " mark[order[c], n] " |"
        print row
      }
      if (noted) print ""
      for (n = 1; n <= noted; n++) print "- " notes[n]
      for (n = 1; n <= columns; n++) if (!found[n]) { print "conformance: no table of " half " by " title[n] > "/dev/stderr"; exit 1 }
    }' "$1"
}

replace() { # replace FILE HALF: puts the table between the marks that the page has for it
  local table
  table=$(merge "$1" "$2")
  TABLE=$table awk -v begin="<!-- $2 -->" -v end="<!-- end of $2 -->" '
    $0 == begin { print; print ""; print ENVIRON["TABLE"]; print ""; skip = 1 }
    $0 == end { skip = 0 }
    !skip || $0 == end { if ($0 != begin) print }' "$PAGE" >"$PAGE.new"
  mv "$PAGE.new" "$PAGE"
}

tables=${1:-}
if [ -z "$tables" ]; then
  tables=$(mktemp)
  trap 'rm -f "$tables"' EXIT
  run "$tables"
fi
replace "$tables" "a store"
replace "$tables" "a publisher"
replace "$tables" "an inbox"
