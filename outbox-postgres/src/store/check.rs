use super::Inner;
use outbox_core::{Finding, StoreError};
pub(super) async fn check(_inner: &Inner) -> Result<Vec<Finding>, StoreError> {
    Ok(Vec::new())
}
