//! The setters of the contract's types, which grow: a new field is a new setter, and not a breaking release.

/// Writes a `with_…` for each of the fields that are named.
macro_rules! with {
    ($type:ty { $($with:ident $field:ident: $value:ty),+ $(,)? }) => {
        impl $type {
            $(
                #[doc = concat!("The same with this `", stringify!($field), "`.")]
                #[must_use]
                pub fn $with(mut self, $field: $value) -> Self {
                    self.$field = $field;
                    self
                }
            )+
        }
    };
}

pub(crate) use with;
