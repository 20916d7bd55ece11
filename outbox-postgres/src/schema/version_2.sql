-- From version 1 to version 2. Does nothing where there are no tables of version 1.
--
-- Columns are renamed and added without a rewrite: payloads keep their bytes, now in payload_binary. The events
-- are read twice, to find those that break a new rule and to add the rules, and the archive's key is built anew.
-- Writers and relays wait meanwhile.
DO $version_2$
DECLARE
    moved bigint;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_attribute
                   WHERE attrelid = to_regclass('{outbox}') AND attname = 'part' AND NOT attisdropped) THEN
        RETURN;
    END IF;
    -- All at once, the leases first as a settle does: it then holds nothing yet that this waits for.
    LOCK TABLE {partitions}, {failed}, {outbox}, {holds}, {archive}, {topics}, {relays} IN ACCESS EXCLUSIVE MODE;

    -- The new names keep relays of version 1 away: they would read no payload where it is a text. Since they
    -- cannot beat either, their leases expire, and the next relay takes their partitions.
    ALTER TABLE {relays} RENAME COLUMN ttl TO lease_ttl;
    ALTER TABLE {outbox} RENAME COLUMN part TO partition;
    ALTER TABLE {holds} RENAME COLUMN part TO partition;
    ALTER TABLE {partitions} RENAME COLUMN part TO partition;
    ALTER TABLE {holds}
        ALTER COLUMN aggregate_type TYPE text COLLATE "C",
        ALTER COLUMN aggregate_id TYPE text COLLATE "C";
    ALTER TABLE {topics} ALTER COLUMN topic TYPE text COLLATE "C";
    ALTER TABLE {outbox} RENAME COLUMN payload TO payload_binary;
    ALTER TABLE {outbox}
        ADD COLUMN payload text,
        ALTER COLUMN payload_binary DROP NOT NULL,
        ALTER COLUMN sequence SET GENERATED ALWAYS;
    ALTER TABLE {archive} RENAME COLUMN payload TO payload_binary;
    ALTER TABLE {archive}
        ADD COLUMN payload text,
        ALTER COLUMN payload_binary DROP NOT NULL,
        ADD COLUMN failed_at timestamptz,
        ALTER COLUMN archived_at DROP DEFAULT,
        DROP CONSTRAINT "{prefix}_archive_pkey",
        ADD CONSTRAINT "{prefix}_archive_pkey" PRIMARY KEY (sequence, id);

    -- An event that breaks a rule cannot be changed any more, so that no relay could record what became of it.
    WITH d AS (
        DELETE FROM {outbox}
        WHERE octet_length(aggregate_type) > 255 OR octet_length(aggregate_id) > 255 OR octet_length(event_type) > 255
           OR octet_length(topic) > 255 OR octet_length(content_type) > 255 OR sequence <= 0 OR attempts < 0
        RETURNING *
    ), f AS (
        DELETE FROM {failed} f USING d WHERE f.sequence = d.sequence RETURNING f.sequence, f.failed_at
    ), h AS (
        -- What waits behind such an event has nothing to wait for any more.
        UPDATE {holds} h SET until = clock_timestamp() FROM d
        WHERE h.partition = d.partition AND h.sequence = d.sequence AND NOT h.paused
    )
    INSERT INTO {archive}
        (sequence, id, aggregate_type, aggregate_id, event_type, version, payload, payload_binary, content_type,
         headers, topic, created_at, available_at, status, attempts, last_error, cause, sent_at, failed_at, archived_at)
    SELECT d.sequence, d.id, d.aggregate_type, d.aggregate_id, d.event_type, d.version, d.payload, d.payload_binary,
           d.content_type, d.headers, d.topic, d.created_at, d.available_at,
           CASE d.status WHEN 0 THEN 2 ELSE d.status END,
           d.attempts,
           CASE d.status WHEN 0 THEN concat_ws('; ',
               (SELECT string_agg(format('%s has %s bytes, more than the limit of 255', name, bytes), '; ')
                FROM (VALUES ('aggregate_type', octet_length(d.aggregate_type)),
                             ('aggregate_id', octet_length(d.aggregate_id)),
                             ('event_type', octet_length(d.event_type)),
                             ('topic', octet_length(d.topic)),
                             ('content_type', octet_length(d.content_type))) names (name, bytes)
                WHERE bytes > 255),
               CASE WHEN d.sequence <= 0 THEN format('sequence is %s, less than 1', d.sequence) END,
               CASE WHEN d.attempts < 0 THEN format('attempts is %s, less than 0', d.attempts) END)
           ELSE d.last_error END,
           CASE d.status WHEN 0 THEN 'undecodable' ELSE d.cause END,
           d.sent_at,
           CASE d.status WHEN 0 THEN clock_timestamp() WHEN 2 THEN f.failed_at END,
           clock_timestamp()
    FROM d LEFT JOIN f ON f.sequence = d.sequence
    ON CONFLICT (sequence, id) DO NOTHING;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved > 0 THEN
        RAISE WARNING '% events of {outbox} break a rule of version 2 and were moved to {archive}', moved
            USING HINT = 'outbox list --archived, or: SELECT * FROM {archive} WHERE cause = ''undecodable''';
    END IF;
    -- Nothing can wait for an aggregate that no event can have.
    DELETE FROM {holds} WHERE octet_length(aggregate_type) > 255 OR octet_length(aggregate_id) > 255;

    ALTER TABLE {outbox}
        ADD CONSTRAINT aggregate_type_has_at_most_255_bytes CHECK (octet_length(aggregate_type) <= 255),
        ADD CONSTRAINT aggregate_id_has_at_most_255_bytes CHECK (octet_length(aggregate_id) <= 255),
        ADD CONSTRAINT event_type_has_at_most_255_bytes CHECK (octet_length(event_type) <= 255),
        ADD CONSTRAINT topic_has_at_most_255_bytes CHECK (octet_length(topic) <= 255),
        ADD CONSTRAINT content_type_has_at_most_255_bytes CHECK (octet_length(content_type) <= 255),
        ADD CONSTRAINT sequence_is_positive CHECK (sequence > 0),
        ADD CONSTRAINT attempts_are_not_negative CHECK (attempts >= 0),
        ADD CONSTRAINT payload_is_text_write_bytes_to_payload_binary
            CHECK (status = 1 OR NOT starts_with(payload, E'\\x'));
END
$version_2$;

