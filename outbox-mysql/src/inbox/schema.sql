-- What consumers have handled: one row an event. Only the inbox writes here. Names are bytes, because collations
-- merge distinct ones; times are UTC, whatever the session's time zone.
CREATE TABLE IF NOT EXISTS {inbox} (
    consumer    VARBINARY(255) NOT NULL,
    source      VARBINARY(255) NOT NULL,
    id          VARBINARY(255) NOT NULL,
    -- The event's own time. Without one its row is never purged.
    time        DATETIME(6),
    received_at DATETIME(6)    NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (consumer, source, id),
    KEY time (consumer, time)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- How far it was forgotten: an event without a row, and not later than this, may have been handled. Never lowered.
CREATE TABLE IF NOT EXISTS {inbox_horizons} (
    consumer   VARBINARY(255) NOT NULL,
    source     VARBINARY(255) NOT NULL,
    horizon    DATETIME(6)    NOT NULL,
    changed_at DATETIME(6)    NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    PRIMARY KEY (consumer, source)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS {inbox_meta} (
    name  VARCHAR(64) NOT NULL,
    value BIGINT      NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
INSERT INTO {inbox_meta} (name, value) VALUES ('schema_version', {version})
    ON DUPLICATE KEY UPDATE value = GREATEST(value, {version});
