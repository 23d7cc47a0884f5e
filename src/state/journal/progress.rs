//! How far an interrupted update came: all records of its journal, folded once.
//! Refuses to decide what becomes of it: that is `recover`'s.

use super::records::{DataPolicy, Record};
use crate::base::path::RelPath;
use crate::system::ProcessId;

/// The last state that was reached for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The server may be down; all files are old.
    Stopping,
    /// The backup has its record.
    BackupWhole,
    /// Every move is named, and some may be made.
    Swapping,
    /// Hooks run, or have run, on the new tree.
    Hooks,
    /// The tree is new, and nothing was started by us.
    Swapped,
    /// The new version was or is being started.
    Starting,
    /// The way back from a started version was decided, with this for the data.
    Undoing(DataPolicy),
    /// Data is as it was at the stop.
    DataRestored,
    /// The old version is whole.
    RolledBack,
    /// The new version is whole.
    Committed,
}

/// A start that the journal knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The boot of the system in which it was.
    pub boot: String,
    /// None: a service manager was asked, and its main process is not known.
    pub process: Option<ProcessId>,
}

/// Hooks that were begun after the swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HooksBegun {
    /// The boot of the system in which they began.
    pub boot: String,
    /// The data that they may write.
    pub data: Vec<RelPath>,
}

/// What the records of a journal say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    /// The newest start of the new version.
    pub started: Option<Start>,
    /// The newest start of the old version on the way back.
    pub started_old: Option<Start>,
    pub hooks: Option<HooksBegun>,
    /// Recoveries that were tried and cut off, or failed; those that ended with a question to a person do not count.
    pub attempts: usize,
}

impl Progress {
    pub(super) fn of(records: &[Record]) -> Progress {
        let start = Progress { phase: Phase::Stopping, started: None, started_old: None, hooks: None, attempts: 0 };
        records.iter().fold(start, Progress::after)
    }

    /// The progress after one more record.
    fn after(mut self, record: &Record) -> Progress {
        match record {
            Record::Begin(_) | Record::Stopping => {}
            Record::BackupWhole => self.reach(Phase::BackupWhole),
            Record::Swapping { .. } => self.reach(Phase::Swapping),
            Record::Hooking { boot, data } => {
                self.hooks = Some(HooksBegun { boot: boot.clone(), data: data.clone() });
                self.reach(Phase::Hooks);
            }
            Record::Hooked => self.reach(Phase::Hooks),
            Record::Swapped => self.reach(Phase::Swapped),
            Record::Starting { boot, process } => {
                self.started = Some(Start { boot: boot.clone(), process: *process });
                self.reach(Phase::Starting);
            }
            Record::Undoing { data } => self.reach(Phase::Undoing(*data)),
            Record::DataRestored => self.reach(Phase::DataRestored),
            Record::RolledBack => self.reach(Phase::RolledBack),
            Record::StartingOld { boot, process } => {
                self.started_old = Some(Start { boot: boot.clone(), process: Some(*process) });
            }
            Record::Committed => self.reach(Phase::Committed),
            Record::Attempt => self.attempts = self.attempts.saturating_add(1),
            Record::Undecided => self.attempts = self.attempts.saturating_sub(1),
        }
        self
    }

    /// Phases are reached in their order; a later decision about the data takes the place of an earlier one.
    fn reach(&mut self, phase: Phase) {
        if phase.rank() >= self.phase.rank() {
            self.phase = phase;
        }
    }

    /// Data was put back to how it was at the stop, and never is again.
    pub fn is_data_restored(&self) -> bool {
        self.phase == Phase::DataRestored
    }
}

impl Phase {
    fn rank(self) -> u8 {
        match self {
            Phase::Stopping => 0,
            Phase::BackupWhole => 1,
            Phase::Swapping => 2,
            Phase::Hooks => 3,
            Phase::Swapped => 4,
            Phase::Starting => 5,
            Phase::Undoing(_) => 6,
            Phase::DataRestored => 7,
            Phase::RolledBack => 8,
            Phase::Committed => 9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starting() -> Record {
        Record::Starting { boot: "b".into(), process: None }
    }

    #[test]
    fn a_later_phase_is_never_taken_back_by_an_earlier_record() {
        let way_back = [starting(), Record::Undoing { data: DataPolicy::Restored }, Record::DataRestored];
        assert_eq!(Progress::of(&way_back).phase, Phase::DataRestored);
        let again = [&way_back[..], &[Record::Attempt, Record::Undoing { data: DataPolicy::Kept }]].concat();
        assert_eq!(Progress::of(&again).phase, Phase::DataRestored);
    }

    #[test]
    fn the_newest_decision_about_the_data_counts() {
        let decided = |data| Record::Undoing { data };
        let records = [starting(), decided(DataPolicy::Restored), decided(DataPolicy::Kept)];
        assert_eq!(Progress::of(&records).phase, Phase::Undoing(DataPolicy::Kept));
    }

    #[test]
    fn a_question_to_a_person_is_no_attempt() {
        let records = [Record::Attempt, Record::Undecided, Record::Attempt];
        assert_eq!(Progress::of(&records).attempts, 1);
    }
}
