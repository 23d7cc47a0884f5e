//! How fast a download is: a line that hardly moves holds the lock for ever and must end it.
//! Refuses to read a clock: it is told the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many looks one span is divided into: the span that is judged is longer than asked for by at most one part.
const PARTS: u32 = 60;

/// The least that must come within any span of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    pub span: Duration,
    /// In bytes.
    pub least: u64,
}

/// Bytes done at points of time, back to one span ago.
#[derive(Debug)]
pub struct Pace {
    floor: Floor,
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// Nothing came until now.
    pub fn new(floor: Floor, now: Instant) -> Pace {
        Pace { floor, seen: VecDeque::from([(now, 0)]) }
    }

    /// What came within the last span, where that is too little. `done`: bytes in all.
    pub fn too_little(&mut self, now: Instant, done: u64) -> Option<u64> {
        let age = |at: Instant| now.saturating_duration_since(at);
        while self.seen.get(1).is_some_and(|(at, _)| age(*at) >= self.floor.span) {
            self.seen.pop_front();
        }
        let came = self.seen.front().filter(|(at, _)| age(*at) >= self.floor.span).map(|(_, then)| done - then);
        if self.seen.back().is_none_or(|(at, _)| age(*at) >= self.floor.span / PARTS) {
            self.seen.push_back((now, done));
        }
        came.filter(|came| *came < self.floor.least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Floor = Floor { span: Duration::from_secs(60), least: 60_000 };

    /// When it is ended, in seconds, of a download that has `done(second)` bytes.
    fn ended(done: impl Fn(u64) -> u64) -> Option<u64> {
        let begin = Instant::now();
        let mut pace = Pace::new(FLOOR, begin);
        (0..600).find(|at| pace.too_little(begin + Duration::from_secs(*at), done(*at)).is_some())
    }

    #[test]
    fn a_line_that_hardly_moves_is_ended_and_a_slow_one_is_not() {
        assert_eq!(ended(|at| at * 1000), None);
        assert_eq!(ended(|at| at * 999), Some(60));
        assert_eq!(ended(|_| 0), Some(60));
        // As much at once as in the whole minute.
        assert_eq!(ended(|at| at / 30 * 30_000), None);
        // Fast at first, then hardly at all: what came before does not help.
        assert_eq!(ended(|at| if at < 100 { at * 1_000_000 } else { 100_000_000 + at }), Some(160));
    }

    #[test]
    fn few_points_of_time_are_kept() {
        let begin = Instant::now();
        let mut pace = Pace::new(FLOOR, begin);
        for at in 0..100_000 {
            pace.too_little(begin + Duration::from_millis(at * 10), at * 1000);
        }
        assert!(pace.seen.len() <= PARTS as usize + 2, "{}", pace.seen.len());
    }
}
