//! The base rule, that of dpkg's conffiles: what the release shipped before (the base), what lies there now, and what
//! the bundle brings decide together.
//! Refuses to lose what somebody changed here: it stays, or it gives way to the backup's `aside/`.

use super::entries::Planner;
use super::{Action, Planned};
use crate::app::carry;
use crate::base::fsx;
use crate::state::receipt::Line;
use crate::system::{FileMetadata, FileType, files};
use crate::update::bundle::{Bundle, Entry};
use anyhow::Result;

/// The mode that a file of the bundle gets where `live` lies now: reading and writing are the live file's. Where the
/// entry carries a Unix mode, exactly those who may read may execute, or nobody; else who could execute still can.
pub fn mode_of(entry: &Entry, live: Option<&FileMetadata>) -> u32 {
    let Some(live) = live.filter(|live| entry.owner().is_none() && live.kind == FileType::File) else {
        return entry.mode;
    };
    let execute = match entry.has_mode {
        true if entry.mode & 0o111 != 0 => (live.mode & 0o444) >> 2,
        true => 0,
        false => live.mode & 0o111,
    };
    live.mode & 0o7666 | execute
}

impl Planner<'_> {
    /// What happens to an entry at whose path a shipped file lies.
    pub(super) fn by_base(&mut self, bundle: &mut Bundle, index: usize, live: FileMetadata) -> Result<Planned> {
        let entry = bundle.entries[index].clone();
        let hash = self.hash_of(&entry.path, &live)?;
        if hash == entry.sha256 && (live.kind == FileType::Link) == entry.link.is_some() {
            return Ok(self.same(&entry, index, live));
        }
        let replace = self.planned(Action::Replace, (&entry, index), Some(live), "new content");
        let Some(line) = self.input.ownership.line(&entry.path).cloned() else {
            return self.before_receipt(&entry, replace, live);
        };
        if hash == line.sha256 {
            return Ok(replace);
        }
        self.plan.changed_here.push(entry.path.clone());
        let is_program = self.is_program(&entry);
        let is_new = line.sha256 != entry.base();
        match (is_program, is_new || self.input.heal) {
            (true, true) => {
                Ok(Planned { aside: true, reason: "changed here; the release's takes its place".into(), ..replace })
            }
            (false, true) if is_new => {
                self.plan.not_taken.push(entry.path.clone());
                Ok(self.kept(&entry, index, live, "changed here, and by the release: the one that lies here stays"))
            }
            _ => Ok(self.kept(&entry, index, live, "changed here, and not by the release")),
        }
    }

    /// The same content: only who may execute it can still differ.
    pub(super) fn same(&self, entry: &Entry, index: usize, live: FileMetadata) -> Planned {
        let bits = files::MODE_BITS;
        let same_mode = mode_of(entry, Some(&live)) & bits == live.mode & bits;
        let (action, reason) = if entry.link.is_some() || same_mode {
            (Action::Unchanged, "same content")
        } else {
            (Action::Replace, "other mode")
        };
        self.planned(action, (entry, index), Some(live), reason)
    }

    /// Nobody knows what the version before shipped: what is newer than the start file was likely written here.
    fn before_receipt(&mut self, entry: &Entry, replace: Planned, live: FileMetadata) -> Result<Planned> {
        let is_newer = self.start.is_some_and(|start| live.mtime > start.mtime);
        if !is_newer || self.is_program(entry) {
            return Ok(replace);
        }
        self.plan.not_taken.push(entry.path.clone());
        let index = replace.entry.unwrap_or_default();
        Ok(self.kept(entry, index, live, "newer than the start file, so it was likely changed here: it stays"))
    }

    /// The file stays; the receipt remembers the release's as its base.
    pub(super) fn kept(&self, entry: &Entry, index: usize, live: FileMetadata, reason: &str) -> Planned {
        // Before the first receipt nothing tells a base, and next time it must stay again.
        let listed = !self.input.ownership.is_first;
        Planned { listed, ..self.planned(Action::Keep, (entry, index), Some(live), reason) }
    }

    /// True when the release ships just what the installed one did.
    pub(super) fn is_as_before(&self, entry: &Entry) -> Result<bool> {
        let kept = (self.input.kept)()?;
        let before = kept.and_then(|kept| kept.entries.into_iter().find(|e| e.path == entry.path));
        Ok(before.is_some_and(|before| before.sha256 == entry.sha256))
    }

    /// True when the operator changed more in a carried file than its settings: that much would be lost.
    pub(super) fn is_edited(&self, line: &Line, live: &[u8], names: &[String]) -> Result<bool> {
        if fsx::sha256(live) == line.sha256 {
            return Ok(false);
        }
        let Some(mut kept) = (self.input.kept)()? else { return Ok(true) };
        let Some(index) = kept.entries.iter().position(|e| e.path == line.path) else { return Ok(true) };
        if kept.entries.get(index).is_none_or(|entry| entry.size > carry::MAX_SIZE) {
            return Ok(true);
        }
        let shipped = kept.read_entry(index, carry::MAX_SIZE)?;
        Ok(!carry::differs_in_settings_alone(&shipped, live, names))
    }
}
