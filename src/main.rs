//! `updater`: parse the role, run it, exit code. Everything else is in the library; `lib.rs` is its map, and `roles.rs`
//! says which roles there are.
//! Refuses to do any work of its own.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use updater::roles::Role;
use updater::system::{escape, monitor, processes};
use updater::update::escape::Outside;
use updater::{cli, dispatch};

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    run(Role::parse(words.collect()), program, Vec::new(), Outside::default())
}

/// Runs the role with what the roles around it took over: the handles to keep, the line to the first process.
fn run(role: Role, program: OsString, mut kept: Vec<i32>, outside: Outside) -> ExitCode {
    match role {
        Role::ExecServer => dispatch::launch(),
        Role::Monitored { given, then } => {
            kept.extend(monitor::take(given));
            run(*then, program, kept, outside)
        }
        Role::Outside { line, update_id, words } => {
            let outside = Outside::taken(line, update_id);
            kept.extend(outside.handles());
            run(Role::Cli(words), program, kept, outside)
        }
        // The handles that the caller left open are closed by the role that this one turns into.
        Role::BecomeOwner { who, given, then } => {
            dispatch::stepped(monitor::descend(&who, given, then).map(|never| match never {}))
        }
        Role::Depart { socket } => alone(&kept, || dispatch::stepped(escape::depart(&socket))),
        Role::Arrive { socket } => alone(&kept, || {
            dispatch::stepped(escape::arrive(Some(&socket), Path::new(".")).map(|never| match never {}))
        }),
        Role::Cli(words) => alone(&kept, || {
            let code = match cli::parse(std::iter::once(program).chain(words)) {
                Ok(cli) => dispatch::run(&cli, &outside),
                Err(ended) => dispatch::ended(ended),
            };
            outside.ended(code);
            ExitCode::from(code)
        }),
    }
}

/// Runs this once what our caller left open is closed: neither we nor the new server may keep it open.
fn alone(kept: &[i32], work: impl FnOnce() -> ExitCode) -> ExitCode {
    match processes::close_inherited(kept) {
        Ok(()) => work(),
        Err(e) => dispatch::cannot_begin(&e),
    }
}
