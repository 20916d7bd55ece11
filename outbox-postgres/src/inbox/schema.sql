-- What consumers have handled: one row an event. Only the inbox writes here.
CREATE TABLE IF NOT EXISTS {inbox} (
    consumer    text COLLATE "C" NOT NULL,
    source      text COLLATE "C" NOT NULL,
    id          text COLLATE "C" NOT NULL,
    -- The event's own time. Without one its row is never purged.
    time        timestamptz,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, source, id)
);
CREATE INDEX IF NOT EXISTS "{prefix}_inbox_time_idx" ON {inbox} (consumer, time);

-- How far it was forgotten: an event without a row, and not later than this, may have been handled. Never lowered.
CREATE TABLE IF NOT EXISTS {inbox_horizons} (
    consumer   text COLLATE "C" NOT NULL,
    source     text COLLATE "C" NOT NULL,
    horizon    timestamptz NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, source)
);

CREATE TABLE IF NOT EXISTS {inbox_meta} (
    key   text   PRIMARY KEY,
    value bigint NOT NULL
);
INSERT INTO {inbox_meta} (key, value) VALUES ('schema_version', {version}) ON CONFLICT (key) DO NOTHING;
