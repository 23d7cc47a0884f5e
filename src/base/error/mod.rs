//! Failure classes, stable codes and exit codes: the one place where an error becomes a number.
//! Refuses to print anything; `report` does that.

mod codes;

pub use codes::Code;

use serde::{Deserialize, Serialize};

/// What a failure means for the operator. The discriminant is the exit code of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Failed before anything was changed.
    Failed = 1,
    /// A usage or settings error.
    Usage = 2,
    /// Failed after the stop and rolled back.
    RolledBack = 3,
    /// An operator must decide or mend.
    NeedsOperator = 4,
    /// Another updater holds the lock.
    Locked = 5,
    /// The bundle or backup was refused.
    Refused = 6,
}

/// A failure with everything that a person or a program needs: a stable word, what, where, what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub class: Class,
    pub code: Code,
    pub message: String,
    pub path: Option<String>,
    pub remedy: Option<String>,
}

impl Failure {
    pub fn new(class: Class, code: Code, message: impl Into<String>) -> Self {
        debug_assert!(code.ends_with(class), "{code} is not listed with {class:?}");
        Self { class, code, message: message.into(), path: None, remedy: None }
    }
    /// Exit 1: nothing was changed.
    pub fn failed(code: Code, message: impl Into<String>) -> Self {
        Self::new(Class::Failed, code, message)
    }
    /// Exit 2: the command line or the settings are wrong.
    pub fn usage(code: Code, message: impl Into<String>) -> Self {
        Self::new(Class::Usage, code, message)
    }
    /// Exit 4: the last lines say what stands and what to type.
    pub fn operator(code: Code, message: impl Into<String>) -> Self {
        Self::new(Class::NeedsOperator, code, message)
    }
    /// Exit 6: the bundle or backup is not acceptable.
    pub fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::new(Class::Refused, code, message)
    }
    pub fn at(mut self, path: impl std::fmt::Display) -> Self {
        self.path = Some(path.to_string());
        self
    }
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// The JSON form of an error: `{"code","message","path","remedy"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    pub code: String,
    pub message: String,
    pub path: Option<String>,
    pub remedy: Option<String>,
}

/// The class of an error chain: that of the outermost `Failure` in it, else `Failed`.
pub fn class(error: &anyhow::Error) -> Class {
    error.downcast_ref::<Failure>().map_or(Class::Failed, |failure| failure.class)
}

/// The record of an error chain; causes are joined with `: `.
pub fn record(error: &anyhow::Error) -> ErrorRecord {
    let failure = error.downcast_ref::<Failure>();
    ErrorRecord {
        code: failure.map_or(Code::Io, |f| f.code).to_string(),
        message: format!("{error:#}"),
        path: failure.and_then(|f| f.path.clone()),
        remedy: failure.and_then(|f| f.remedy.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_class_survives_added_context() {
        let error = Err::<(), _>(Failure::refused(Code::BadName, "no")).context("reading the bundle").unwrap_err();
        assert_eq!(class(&error) as i32, 6);
        assert_eq!(record(&error).message, "reading the bundle: no");
        assert_eq!(record(&error).code, "bad-name");
    }

    #[test]
    fn an_error_without_a_class_counts_as_failed() {
        assert_eq!(class(&anyhow::anyhow!("x")) as i32, 1);
    }
}
