//! The gate for bundles, as a table: how a zip is made, what becomes of it, and why. Each row is tried by `plan` and by
//! `apply`, which judge by the same words; what is refused ends with exit code 6 and leaves the install as it was.
//!
//! `refused` and `accepted` are the table. `flips` turns every bit of a directory; `random` tries whatever comes, for as
//! many rounds as `UPDATER_ROUNDS` says. The rules and their reasons stand in `docs/bundles.md`.
#![cfg(target_os = "linux")]

#[path = "../kit/mod.rs"]
mod kit;

mod accepted;
mod flips;
mod random;
mod refused;

use kit::zips::Part;

/// What every bundle of the table holds beside what its row is about.
fn base() -> Vec<Part> {
    vec![Part::new("run.py", kit::script("2.0", "")), Part::new("app/core.py", "# core of 2.0\n")]
}

/// A bundle of the base and these.
fn with(parts: impl IntoIterator<Item = Part>) -> kit::zips::Zip {
    kit::zips::Zip::of(base().into_iter().chain(parts))
}
