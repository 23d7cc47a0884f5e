//! Everything that is remembered below `.updater`, and the settings.

pub mod dir;
pub mod root;
pub mod lock;
pub mod baseline;
pub mod journal;
pub mod receipt;
pub mod settings;
pub mod history;
