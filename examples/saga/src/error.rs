/// What goes wrong.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
