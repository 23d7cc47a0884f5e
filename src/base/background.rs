//! Work in a thread of its own, so that whoever waits for it can stop waiting at once: looking up a name, connecting and
//! reading block, and no signal ends that.
//! Refuses to wait for a thread that was abandoned.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(20);

/// Work under way. Dropped, it is abandoned: its thread ends by itself once it tells something or its time is up.
#[derive(Debug)]
pub struct Background<T> {
    told: Receiver<T>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts `work` in a thread of this name. It waits when `most` of what it told were not taken yet.
    /// Errors: no thread can be had.
    pub fn start(name: &str, most: usize, work: impl FnOnce(&SyncSender<T>) + Send + 'static) -> io::Result<Self> {
        let (tell, told) = sync_channel(most);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&tell))?;
        Ok(Background { told, thread })
    }

    /// What it tells within 20 ms. Errors: nothing yet, or nothing any more.
    pub fn look(&self) -> Result<T, RecvTimeoutError> {
        self.told.recv_timeout(LOOK)
    }

    /// What it tells next; None: it has ended. Errors: what `check` says, at most 20 ms after it begins to say so.
    /// The wait has no bound of its own: the work has one.
    pub fn next(&self, check: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<Option<T>> {
        loop {
            check()?;
            match self.look() {
                Ok(told) => return Ok(Some(told)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Waits for a thread that has nothing left to do.
    pub fn close(self) {
        drop(self.told);
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_tells_comes_in_order_and_its_end_is_seen() {
        let work =
            Background::start("test", 1, |tell: &SyncSender<_>| (0..3).for_each(|n| assert!(tell.send(n).is_ok())))
                .unwrap();
        let all: Vec<_> = std::iter::from_fn(|| work.next(&mut || Ok(())).unwrap()).collect();
        assert_eq!(all, [0, 1, 2]);
        work.close();
    }

    #[test]
    fn a_wait_ends_when_it_is_asked_to() {
        let (go_on, may) = std::sync::mpsc::channel::<()>();
        let work = Background::start("test", 1, move |_: &SyncSender<u8>| assert!(may.recv().is_err())).unwrap();
        let mut looks = 0;
        let ended = work.next(&mut || {
            looks += 1;
            anyhow::ensure!(looks < 3, "enough");
            Ok(())
        });
        assert_eq!((ended.unwrap_err().to_string().as_str(), looks), ("enough", 3));
        drop(go_on);
    }
}
