//! `updater`: parse, run, report, exit code. Everything else is in the library; `lib.rs` is its map.
//! Refuses to do any work of its own.

use std::process::ExitCode;
use updater::{cli, dispatch, system, update::escape, update::owner};

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().collect();
    if args.get(1).is_some_and(|a| a == "__launch") {
        return dispatch::launch();
    }
    // First of all: what we inherited must not be kept open by us or by the new server.
    let mut kept = system::monitor::take(&mut args);
    let outside = escape::Outside::named(&mut args);
    kept.extend(outside.handles());
    if let Some(become_owner) = owner::step(&args) {
        return dispatch::stepped(become_owner);
    }
    if let Err(e) = system::processes::close_inherited(&kept) {
        return dispatch::cannot_begin(&e);
    }
    if let Some(moved) = escape::step(&args) {
        return dispatch::stepped(moved);
    }
    let code = match cli::parse(args) {
        Ok(cli) => dispatch::run(&cli, &outside),
        Err(ended) => dispatch::ended(ended),
    };
    outside.ended(code);
    ExitCode::from(code)
}
