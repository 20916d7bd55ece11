-- The event. A plain INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES (...) is complete.
-- Never set `sequence` yourself: that breaks the order. Names are compared byte for byte: below, they get the binary
-- collation of this server that does not pad, since any other takes distinct names for the same.
CREATE TABLE IF NOT EXISTS {outbox} (
    sequence       BIGINT       NOT NULL AUTO_INCREMENT,
    id             BINARY(16)   NOT NULL DEFAULT (UNHEX(REPLACE(UUID(), '-', ''))),
    aggregate_type VARCHAR(255) NOT NULL,
    aggregate_id   VARCHAR(255) NOT NULL,
    event_type     VARCHAR(255) NOT NULL,
    version        INT          NOT NULL DEFAULT 1,
    -- One of them is the payload; without both, the event is a tombstone.
    payload        LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    payload_binary LONGBLOB,
    content_type   VARCHAR(255),
    headers        JSON,
    topic          VARCHAR(255),
    -- Times are UTC, whatever the session's time zone.
    created_at     DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    available_at   DATETIME(6),
    -- 0 pending, 1 sent, 2 failed.
    status         TINYINT      NOT NULL DEFAULT 0,
    attempts       INT          NOT NULL DEFAULT 0,
    last_error     TEXT,
    cause          VARCHAR(16),
    sent_at        DATETIME(6),
    failed_at      DATETIME(6),
    `partition`    TINYINT UNSIGNED
        GENERATED ALWAYS AS (CRC32(CONCAT(aggregate_type, _utf8mb4'/', aggregate_id)) & 63) STORED,
    payload_bytes  INT UNSIGNED
        GENERATED ALWAYS AS (COALESCE(OCTET_LENGTH(payload), 0) + COALESCE(OCTET_LENGTH(payload_binary), 0)) STORED,
    PRIMARY KEY (sequence),
    UNIQUE KEY id (id),
    -- All that decides whether a relay takes a row: what is in flight, held or scheduled is passed by without being read.
    KEY pending (status, sequence, `partition`, available_at, payload_bytes, aggregate_type, aggregate_id),
    -- What could never be recorded. A sequence must be above zero too, but no check may name an AUTO_INCREMENT column.
    CONSTRAINT `{prefix}_aggregate_type_bytes` CHECK (OCTET_LENGTH(aggregate_type) <= 255),
    CONSTRAINT `{prefix}_aggregate_id_bytes` CHECK (OCTET_LENGTH(aggregate_id) <= 255),
    CONSTRAINT `{prefix}_event_type_bytes` CHECK (OCTET_LENGTH(event_type) <= 255),
    CONSTRAINT `{prefix}_content_type_bytes` CHECK (OCTET_LENGTH(content_type) <= 255),
    CONSTRAINT `{prefix}_topic_bytes` CHECK (OCTET_LENGTH(topic) <= 255),
    CONSTRAINT `{prefix}_attempts` CHECK (attempts >= 0)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Aggregates that wait: back-offs, parks, pauses and requeues. Operators set `until` to UTC_TIMESTAMP(6) and never
-- delete. The row of the partition is the lock of its holds.
CREATE TABLE IF NOT EXISTS {holds} (
    part           TINYINT UNSIGNED NOT NULL,
    aggregate_type VARCHAR(255)     NOT NULL,
    aggregate_id   VARCHAR(255)     NOT NULL,
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
    topic     VARCHAR(255) NOT NULL,
    paused_at DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (topic)
) ENGINE = InnoDB;

-- Sent and failed events that were moved away. A sequence comes twice where the numbers began again.
CREATE TABLE IF NOT EXISTS {archive} (
    sequence       BIGINT       NOT NULL,
    id             BINARY(16)   NOT NULL,
    aggregate_type VARCHAR(255) NOT NULL,
    aggregate_id   VARCHAR(255) NOT NULL,
    event_type     VARCHAR(255) NOT NULL,
    version        INT          NOT NULL,
    payload        LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    payload_binary LONGBLOB,
    content_type   VARCHAR(255),
    headers        JSON,
    topic          VARCHAR(255),
    created_at     DATETIME(6)  NOT NULL,
    available_at   DATETIME(6),
    status         TINYINT      NOT NULL,
    attempts       INT          NOT NULL,
    last_error     TEXT,
    cause          VARCHAR(16),
    sent_at        DATETIME(6),
    failed_at      DATETIME(6),
    archived_at    DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (sequence, id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Numbers of the adapter itself: the version of these tables.
CREATE TABLE IF NOT EXISTS {meta} (
    name  VARCHAR(64) NOT NULL,
    value BIGINT      NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What the tables lack: those above the collation of their names, which MySQL and MariaDB call by different names; those
-- of version 1 everything that version 2 brought. Each step does nothing where it was done.
SET @outbox_sql_mode = @@SESSION.sql_mode;
SET @outbox_name = CONCAT('VARCHAR(255) CHARACTER SET utf8mb4 COLLATE ',
    IF(VERSION() LIKE '%MariaDB%', 'utf8mb4_nopad_bin', 'utf8mb4_0900_bin'));

-- From here on what is not UTF-8 is a NULL or a question mark, and not an error.
SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO';

-- Names of version 1 could be any bytes. In the archive, one that is not UTF-8 keeps its ASCII, and `last_error` its bytes.
SET @outbox_step = IF({of_version_1 _archive}, 'UPDATE {archive} SET last_error = {why_refused},
    aggregate_type = {readable aggregate_type}, aggregate_id = {readable aggregate_id},
    event_type = {readable event_type}, content_type = {readable content_type}, topic = {readable topic}
    WHERE {refused_names}', 'DO 0');
{step}
SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO';
SET @outbox_step = IF({has_names _archive}, 'DO 0', CONCAT('ALTER TABLE {archive} ', IF({of_version_1 _archive},
    'CHANGE payload payload_binary LONGBLOB,
    ADD payload LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin AFTER version,
    DROP PRIMARY KEY, ADD PRIMARY KEY (sequence, id), ', ''),
    'MODIFY aggregate_type ', @outbox_name, ' NOT NULL, MODIFY aggregate_id ', @outbox_name, ' NOT NULL,
    MODIFY event_type ', @outbox_name, ' NOT NULL, MODIFY content_type ', @outbox_name, ', MODIFY topic ', @outbox_name));
{step}

-- An event that the table would refuse now goes to the archive, as failed if it was pending, and what waits behind it goes on.
SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO';
START TRANSACTION;
SET @outbox_step = IF({of_version_1 }, 'REPLACE INTO {archive} (sequence, id, aggregate_type, aggregate_id, event_type,
    version, payload_binary, content_type, headers, topic, created_at, available_at, status, attempts, last_error, cause,
    sent_at, failed_at)
    SELECT sequence, id, {readable aggregate_type}, {readable aggregate_id}, {readable event_type}, version, payload,
    {readable content_type}, headers, {readable topic}, created_at, available_at, IF(status = 0, 2, status),
    attempts, {why_refused}, IF(status = 0, ''undecodable'', cause), sent_at,
    IF(status = 0, UTC_TIMESTAMP(6), failed_at) FROM {outbox} WHERE {refused}', 'DO 0');
{step}
SET @outbox_step = IF({of_version_1 }, 'UPDATE {holds} SET until = UTC_TIMESTAMP(6)
    WHERE paused_at IS NULL AND sequence IN (SELECT sequence FROM {outbox} WHERE {refused})', 'DO 0');
{step}
SET @outbox_step = IF({of_version_1 }, 'DELETE FROM {outbox}
    WHERE ({refused}) AND (sequence, id) IN (SELECT sequence, id FROM {archive})', 'DO 0');
{step}
COMMIT;

-- What is not UTF-8 holds and pauses nothing any more.
SET @outbox_step = IF({has_names _holds}, 'DO 0',
    'DELETE FROM {holds} WHERE {not_utf8 aggregate_type} OR {not_utf8 aggregate_id}');
{step}
SET @outbox_step = IF({has_names _topics}, 'DO 0', 'DELETE FROM {topics} WHERE {not_utf8 topic}');
{step}
SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO';
SET @outbox_step = IF({has_names _holds}, 'DO 0', CONCAT('ALTER TABLE {holds}
    MODIFY aggregate_type ', @outbox_name, ' NOT NULL, MODIFY aggregate_id ', @outbox_name, ' NOT NULL'));
{step}
SET @outbox_step = IF({has_names _topics}, 'DO 0',
    CONCAT('ALTER TABLE {topics} MODIFY topic ', @outbox_name, ' NOT NULL'));
{step}

-- The partition of a row stays what it was. Its column is renamed, so that a relay of version 1, which would send a payload
-- that is a text as an empty one, cannot read the table.
SET @outbox_step = IF({has_names }, 'DO 0', CONCAT('ALTER TABLE {outbox} ', IF({of_version_1 },
    'DROP COLUMN part, DROP COLUMN payload_bytes, DROP INDEX pending,
    CHANGE payload payload_binary LONGBLOB,
    ADD payload LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin AFTER version,
    ADD `partition` TINYINT UNSIGNED
        GENERATED ALWAYS AS (CRC32(CONCAT(aggregate_type, _utf8mb4''/'', aggregate_id)) & 63) STORED,
    ADD payload_bytes INT UNSIGNED
        GENERATED ALWAYS AS (COALESCE(OCTET_LENGTH(payload), 0) + COALESCE(OCTET_LENGTH(payload_binary), 0)) STORED,
    ADD INDEX pending (status, sequence, `partition`, available_at, payload_bytes, aggregate_type, aggregate_id),
    ADD CONSTRAINT `{prefix}_aggregate_type_bytes` CHECK (OCTET_LENGTH(aggregate_type) <= 255),
    ADD CONSTRAINT `{prefix}_aggregate_id_bytes` CHECK (OCTET_LENGTH(aggregate_id) <= 255),
    ADD CONSTRAINT `{prefix}_event_type_bytes` CHECK (OCTET_LENGTH(event_type) <= 255),
    ADD CONSTRAINT `{prefix}_content_type_bytes` CHECK (OCTET_LENGTH(content_type) <= 255),
    ADD CONSTRAINT `{prefix}_topic_bytes` CHECK (OCTET_LENGTH(topic) <= 255),
    ADD CONSTRAINT `{prefix}_attempts` CHECK (attempts >= 0), ', ''),
    'MODIFY aggregate_type ', @outbox_name, ' NOT NULL, MODIFY aggregate_id ', @outbox_name, ' NOT NULL,
    MODIFY event_type ', @outbox_name, ' NOT NULL, MODIFY content_type ', @outbox_name, ', MODIFY topic ', @outbox_name));
{step}
SET SESSION sql_mode = @outbox_sql_mode;

INSERT INTO {meta} (name, value) VALUES ('schema_version', {version})
    ON DUPLICATE KEY UPDATE value = GREATEST(value, {version});
