//! The one lock of an install: `.updater/lock`, held by the system for as long as the process lives.
//! Refuses to delete the file: whoever removes a lock file can let two updaters in.

use crate::base::error::{Class, Code, Failure};
use crate::state::dir::StateDir;
use crate::system;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a waiting updater looks again.
const POLL: Duration = Duration::from_millis(50);

/// The held lock; dropping it lets the next one in.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the install with this state directory, waiting at most `wait`.
    /// Errors: class `Locked` when another updater holds it; what `tick` says, asked while it waits; input and
    /// output errors.
    pub fn take(
        state: &StateDir,
        wait: Option<Duration>,
        tick: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Lock> {
        system::files::private_folder(state.path())?;
        let path = state.lock();
        let began = Instant::now();
        let mut file = system::files::open_private(&path)
            .map_err(|e| Failure::failed(Code::Lock, format!("the lock cannot be opened: {e}")).at(path.display()))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let left = wait.unwrap_or_default().saturating_sub(began.elapsed());
                    if left.is_zero() {
                        return Err(held(&path, &mut file).into());
                    }
                    tick()?;
                    std::thread::sleep(POLL.min(left));
                }
                Err(TryLockError::Error(e)) => {
                    let what = format!("the lock cannot be taken: {e}");
                    return Err(Failure::failed(Code::Lock, what).at(path.display()).into());
                }
            }
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{} {:.3}", std::process::id(), jiff::Timestamp::now())?;
        file.flush()?;
        Ok(Lock { _file: file })
    }
}

/// The failure that names the holder, as far as its line in the file can be read.
fn held(path: &Path, file: &mut File) -> Failure {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| Read::by_ref(file).take(200).read_to_string(&mut text));
    let message = match read.ok().and_then(|_| holder(&text)) {
        Some((pid, age)) => format!("another updater holds the lock: pid {pid}, since {age} s"),
        None => "another updater holds the lock (its pid and age are not known)".to_string(),
    };
    Failure::new(Class::Locked, Code::Locked, message)
        .at(path.display())
        .remedy("wait until it has ended, or give --wait 10m")
}

/// Pid and age in seconds from the line of the holder.
fn holder(text: &str) -> Option<(u32, i64)> {
    let (pid, since) = text.trim_end().split_once(' ')?;
    let since: jiff::Timestamp = since.parse().ok()?;
    Some((pid.parse().ok()?, (jiff::Timestamp::now().as_second() - since.as_second()).max(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(&StateDir::at(folder.path()), None, &mut || Ok(())).unwrap();
        let began = Instant::now();
        let error =
            Lock::take(&StateDir::at(folder.path()), Some(Duration::from_millis(120)), &mut || Ok(())).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(120));
        assert_eq!(error::class(&error), Class::Locked);
        let record = error::record(&error);
        assert_eq!(record.code, "locked");
        let expected = format!("another updater holds the lock: pid {}, since ", std::process::id());
        assert!(record.message.starts_with(&expected), "{}", record.message);
        drop(first);
        Lock::take(&StateDir::at(folder.path()), None, &mut || Ok(())).unwrap();
        assert!(folder.path().join("lock").exists());
    }

    #[test]
    fn the_line_of_the_holder_is_rewritten_whole() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lock"), "x".repeat(300)).unwrap();
        let _lock = Lock::take(&StateDir::at(folder.path()), None, &mut || Ok(())).unwrap();
        let text = std::fs::read_to_string(folder.path().join("lock")).unwrap();
        assert_eq!(holder(&text).map(|(pid, _)| pid), Some(std::process::id()));
        assert!(text.ends_with("Z\n"));
    }
}
