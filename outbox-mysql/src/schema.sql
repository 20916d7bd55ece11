-- The event. A plain INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES (...) is complete.
-- Never set `sequence` yourself: that breaks the order. Names are bytes, because collations merge distinct keys.
CREATE TABLE IF NOT EXISTS {outbox} (
    sequence       BIGINT         NOT NULL AUTO_INCREMENT,
    id             BINARY(16)     NOT NULL DEFAULT (UNHEX(REPLACE(UUID(), '-', ''))),
    aggregate_type VARBINARY(255) NOT NULL,
    aggregate_id   VARBINARY(255) NOT NULL,
    event_type     VARBINARY(255) NOT NULL,
    version        INT            NOT NULL DEFAULT 1,
    payload        LONGBLOB       NOT NULL,
    content_type   VARBINARY(255),
    headers        JSON,
    topic          VARBINARY(255),
    -- Times are UTC, whatever the session's time zone.
    created_at     DATETIME(6)    NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    available_at   DATETIME(6),
    -- 0 pending, 1 sent, 2 failed.
    status         TINYINT        NOT NULL DEFAULT 0,
    attempts       INT            NOT NULL DEFAULT 0,
    last_error     TEXT,
    cause          VARCHAR(16),
    sent_at        DATETIME(6),
    failed_at      DATETIME(6),
    part           TINYINT UNSIGNED
        GENERATED ALWAYS AS (CRC32(CONCAT(aggregate_type, '/', aggregate_id)) & 63) STORED,
    payload_bytes  INT UNSIGNED GENERATED ALWAYS AS (LENGTH(payload)) STORED,
    PRIMARY KEY (sequence),
    UNIQUE KEY id (id),
    -- All that decides whether a relay takes a row: what is in flight, held or scheduled is passed by without being read.
    KEY pending (status, sequence, part, available_at, payload_bytes, aggregate_type, aggregate_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Aggregates that wait: back-offs, parks, pauses and requeues. Operators set `until` to UTC_TIMESTAMP(6) and never
-- delete. The row of the partition is the lock of its holds.
CREATE TABLE IF NOT EXISTS {holds} (
    part           TINYINT UNSIGNED NOT NULL,
    aggregate_type VARBINARY(255)   NOT NULL,
    aggregate_id   VARBINARY(255)   NOT NULL,
    sequence       BIGINT,
    -- Empty: without end.
    until          DATETIME(6),
    reason         VARCHAR(16)      NOT NULL,
    -- Empty: not paused by an operator.
    paused_at      DATETIME(6),
    PRIMARY KEY (part, aggregate_type, aggregate_id),
    KEY until (until),
    KEY sequence (sequence),
    KEY paused_at (paused_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Relays that are alive: one row a process.
CREATE TABLE IF NOT EXISTS {relays} (
    relay_id   BINARY(16)  NOT NULL,
    expires_at DATETIME(6) NOT NULL,
    ttl_ms     BIGINT      NOT NULL,
    joined_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (relay_id)
) ENGINE = InnoDB;

-- Who relays which share of the aggregates.
CREATE TABLE IF NOT EXISTS {partitions} (
    part  TINYINT UNSIGNED NOT NULL,
    owner BINARY(16),
    epoch BIGINT           NOT NULL DEFAULT 0,
    PRIMARY KEY (part)
) ENGINE = InnoDB;
INSERT IGNORE INTO {partitions} (part) VALUES {parts};

-- Topics that an operator has paused.
CREATE TABLE IF NOT EXISTS {topics} (
    topic     VARBINARY(255) NOT NULL,
    paused_at DATETIME(6)    NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (topic)
) ENGINE = InnoDB;

-- Sent and failed events that were moved away.
CREATE TABLE IF NOT EXISTS {archive} (
    sequence       BIGINT         NOT NULL,
    id             BINARY(16)     NOT NULL,
    aggregate_type VARBINARY(255) NOT NULL,
    aggregate_id   VARBINARY(255) NOT NULL,
    event_type     VARBINARY(255) NOT NULL,
    version        INT            NOT NULL,
    payload        LONGBLOB       NOT NULL,
    content_type   VARBINARY(255),
    headers        JSON,
    topic          VARBINARY(255),
    created_at     DATETIME(6)    NOT NULL,
    available_at   DATETIME(6),
    status         TINYINT        NOT NULL,
    attempts       INT            NOT NULL,
    last_error     TEXT,
    cause          VARCHAR(16),
    sent_at        DATETIME(6),
    failed_at      DATETIME(6),
    archived_at    DATETIME(6)    NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (sequence)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Numbers of the adapter itself: the version of these tables.
CREATE TABLE IF NOT EXISTS {meta} (
    name  VARCHAR(64) NOT NULL,
    value BIGINT      NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
INSERT INTO {meta} (name, value) VALUES ('schema_version', {version})
    ON DUPLICATE KEY UPDATE value = GREATEST(value, {version});
