//! Whether somebody asked this process to end, for long work that knows nothing of a run: hashing, copying, walking.
//! Refuses to end anything outside of `during`: what follows the stop, and what cleans up, goes on to its end.

use super::processes;
use std::cell::Cell;
use std::io;

thread_local! {
    /// How many calls of `during` this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work`; in this thread, and until `work` returns, `check` fails once somebody asked this process to end.
pub fn during<T>(work: impl FnOnce() -> T) -> T {
    DEPTH.set(DEPTH.get().saturating_add(1));
    let done = work();
    DEPTH.set(DEPTH.get().saturating_sub(1));
    done
}

/// Called between two pieces of long work, at least every 20 ms or so. Errors: inside of `during`, SIGINT or SIGTERM (on
/// Windows a console event) came since this process takes them over.
pub fn check() -> io::Result<()> {
    if DEPTH.get() > 0 && processes::was_asked_to_end() {
        // Not `Interrupted`, at which the standard library tries again.
        return Err(io::Error::other("stopped by a signal"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ended_outside_of_what_may_be() {
        assert!(check().is_ok());
        during(|| during(|| ()));
        assert_eq!(DEPTH.get(), 0);
    }
}
