//! How much is said, in which form.

use std::path::PathBuf;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

/// How to report.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub json: bool,
    pub quiet: bool,
    pub verbose: bool,
    pub color: Color,
    pub log_file: Option<PathBuf>,
}
