//! PostgreSQL's time as it is on the wire: [`Micros`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgTypeInfo, PgValueRef},
};

/// A time as PostgreSQL has it, microseconds since 2000-01-01 or an infinity, which chrono has no value for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) i64);

impl Micros {
    pub(crate) const MIN: Self = Self(i64::MIN);

    /// 2000-01-01 in microseconds since 1970-01-01.
    const EPOCH: i64 = 946_684_800_000_000;

    pub(crate) fn utc(self) -> Option<DateTime<Utc>> {
        self.0.checked_add(Self::EPOCH).and_then(DateTime::from_timestamp_micros)
    }

    /// Time elapsed since `earlier`; zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or_default())
    }

    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Type<Postgres> for Micros {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Micros {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }
}

impl<'r> Decode<'r, Postgres> for Micros {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(i64::from_be_bytes(value.as_bytes()?.try_into()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_no_times_and_have_no_age() {
        assert_eq!(Micros(i64::MAX).utc(), None);
        assert_eq!(Micros(i64::MIN).utc(), None);
        assert_eq!(Micros(0).since(Micros(i64::MAX)), Duration::ZERO);
        assert_eq!(Micros(0).utc().map(|t| t.to_rfc3339()).as_deref(), Some("2000-01-01T00:00:00+00:00"));
    }
}
