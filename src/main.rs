//! `updater`: parse, run, report, exit code. Everything else is in the library; `lib.rs` is its map.
//! Refuses to do any work of its own.

use std::process::ExitCode;
use updater::{cli, dispatch, os};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if args.get(1).is_some_and(|a| a == "__launch") {
        return dispatch::launch();
    }
    // First of all: what we inherited must not be kept open by us or by the new server.
    if let Err(e) = os::processes::close_inherited() {
        return dispatch::cannot_begin(&e);
    }
    match cli::parse(args) {
        Ok(cli) => ExitCode::from(dispatch::run(&cli)),
        Err(ended) => ExitCode::from(dispatch::ended(ended)),
    }
}
