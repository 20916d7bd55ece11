-- The event. A plain INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES (...) is complete.
-- Leave "sequence" to the database and never raise the sequence's CACHE: both would break the order.
CREATE TABLE IF NOT EXISTS {outbox} (
    sequence       bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    id             uuid        NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    aggregate_type text        NOT NULL,
    aggregate_id   text        NOT NULL,
    event_type     text        NOT NULL,
    version        integer     NOT NULL DEFAULT 1,
    -- A text such as JSON in payload, anything else in payload_binary. Neither is a tombstone, both is an error.
    payload        text,
    payload_binary bytea,
    content_type   text,
    headers        jsonb,
    topic          text,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    available_at   timestamptz,
    -- 0 pending, 1 sent, 2 failed. No index may name it: every settle would have to touch that index.
    status         smallint    NOT NULL DEFAULT 0,
    attempts       integer     NOT NULL DEFAULT 0,
    last_error     text,
    cause          text,
    sent_at        timestamptz,
    partition      smallint    NOT NULL GENERATED ALWAYS AS
        ((get_byte(decode(md5(aggregate_type || '/' || aggregate_id), 'hex'), 0) & 63)::smallint) STORED,
    -- What no relay could record is refused at the insert, where the server's error says the name of the rule.
    CONSTRAINT aggregate_type_has_at_most_255_bytes CHECK (octet_length(aggregate_type) <= 255),
    CONSTRAINT aggregate_id_has_at_most_255_bytes CHECK (octet_length(aggregate_id) <= 255),
    CONSTRAINT event_type_has_at_most_255_bytes CHECK (octet_length(event_type) <= 255),
    CONSTRAINT topic_has_at_most_255_bytes CHECK (octet_length(topic) <= 255),
    CONSTRAINT content_type_has_at_most_255_bytes CHECK (octet_length(content_type) <= 255),
    CONSTRAINT sequence_is_positive CHECK (sequence > 0),
    CONSTRAINT attempts_are_not_negative CHECK (attempts >= 0),
    -- PostgreSQL makes bytes that are bound to a text column a text in hexadecimal, without a word. The status
    -- comes first, so that marking an event as sent does not read a large payload again.
    CONSTRAINT payload_is_text_write_bytes_to_payload_binary CHECK (status = 1 OR NOT starts_with(payload, E'\\x'))
) WITH (fillfactor = {fillfactor});

-- Scheduled events, by the time at which they become due.
CREATE INDEX IF NOT EXISTS "{prefix}_scheduled_idx" ON {outbox} (available_at, sequence)
    WHERE available_at IS NOT NULL;

-- Failed events: the index by which they are found.
CREATE TABLE IF NOT EXISTS {failed} (
    sequence  bigint      PRIMARY KEY,
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS "{prefix}_failed_at_idx" ON {failed} (failed_at);

-- Aggregates that wait: back-offs, parks, pauses and requeues. Operators set "until" to now and never delete.
-- An index holds rows of 2,704 bytes at most (a name of 2,900 characters once stopped every settle): the rules
-- for the names of an event keep the key far below that. Its names are compared by their bytes, so that the index
-- outlives a change of the system's collations.
CREATE TABLE IF NOT EXISTS {holds} (
    partition      smallint    NOT NULL,
    aggregate_type text        COLLATE "C" NOT NULL,
    aggregate_id   text        COLLATE "C" NOT NULL,
    sequence       bigint,
    -- Nothing of the aggregate below this was waiting when the hold began.
    from_sequence  bigint      NOT NULL DEFAULT 0,
    until          timestamptz NOT NULL DEFAULT 'infinity',
    reason         text        NOT NULL,
    paused         boolean     NOT NULL DEFAULT false,
    changed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (partition, aggregate_type, aggregate_id)
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS "{prefix}_holds_until_idx" ON {holds} (until);
CREATE INDEX IF NOT EXISTS "{prefix}_holds_sequence_idx" ON {holds} (sequence);
CREATE INDEX IF NOT EXISTS "{prefix}_holds_paused_idx" ON {holds} (changed_at) WHERE paused;

-- Relays that are alive: one row a process.
CREATE TABLE IF NOT EXISTS {relays} (
    relay_id   uuid        PRIMARY KEY,
    expires_at timestamptz NOT NULL,
    lease_ttl  interval    NOT NULL,
    joined_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Who relays which share of the aggregates, and below which sequence nothing of it is left to be read.
CREATE TABLE IF NOT EXISTS {partitions} (
    partition smallint PRIMARY KEY,
    owner     uuid,
    epoch     bigint   NOT NULL DEFAULT 0,
    floor     bigint   NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO {partitions} (partition) SELECT generate_series(0, 63) ON CONFLICT DO NOTHING;

-- Topics that an operator has paused.
CREATE TABLE IF NOT EXISTS {topics} (
    topic     text        COLLATE "C" PRIMARY KEY,
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Sent and failed events that were moved away. It takes whatever comes, also what was there before under the
-- same sequence: after a restore, or after the sequence was set back.
CREATE TABLE IF NOT EXISTS {archive} (
    sequence       bigint      NOT NULL,
    id             uuid        NOT NULL,
    aggregate_type text        NOT NULL,
    aggregate_id   text        NOT NULL,
    event_type     text        NOT NULL,
    version        integer     NOT NULL,
    payload        text,
    payload_binary bytea,
    content_type   text,
    headers        jsonb,
    topic          text,
    created_at     timestamptz NOT NULL,
    available_at   timestamptz,
    status         smallint    NOT NULL,
    attempts       integer     NOT NULL,
    last_error     text,
    cause          text,
    sent_at        timestamptz,
    failed_at      timestamptz,
    -- Without a default, so that a program of version 1, which does not know payload_binary, is refused.
    archived_at    timestamptz NOT NULL,
    PRIMARY KEY (sequence, id)
);

-- Numbers of the adapter itself: the version of these tables, and how far retention has looked.
CREATE TABLE IF NOT EXISTS {meta} (
    key   text   PRIMARY KEY,
    value bigint NOT NULL
);
INSERT INTO {meta} (key, value) VALUES ('purge_position', 0) ON CONFLICT (key) DO NOTHING;
INSERT INTO {meta} (key, value) VALUES ('schema_version', {version})
    -- The version of a later release stays, should an earlier one's text be run again.
    ON CONFLICT (key) DO UPDATE SET value = greatest({meta}.value, excluded.value);
