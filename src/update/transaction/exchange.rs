//! The exchange of what hooks may write: the original leaves the tree whole, and a copy takes its place.
//! Refuses to move anything into the copy: that is the swap's, once the copy stands there.

use super::{rename, rename_making, set_aside};
use crate::base::fsx;
use crate::state::journal::Exchange;
use crate::state::root::InstallRoot;
use anyhow::Result;
use std::path::Path;

/// Puts the copies in place of what hooks may write; the originals go away whole.
pub(super) fn exchange(root: &InstallRoot, exchanges: &[Exchange]) -> Result<()> {
    for one in exchanges.iter().filter(|one| one.old) {
        let (live, original) = (root.join(&one.path), root.state().original(one.slot));
        rename(&live, &original)?;
        // On the disk first: whatever comes back after a power cut, the original is where an undo looks for it.
        fsx::sync_parent(&original)?;
        fsx::sync_parent(&live)?;
        rename(&root.state().copy(one.slot), &live)?;
        fsx::sync_parent(&live)?;
    }
    Ok(())
}

/// Puts the originals back, however far their exchange came. What takes their place now was written by hooks and the
/// new version.
pub(super) fn undo(root: &InstallRoot, exchanges: &[Exchange], after: &Path) -> Result<()> {
    for one in exchanges {
        let (live, original) = (root.join(&one.path), root.state().original(one.slot));
        // Without an original out there, what lies in the tree is the original; unless there was none.
        if one.old && !fsx::exists(&original)? {
            continue;
        }
        if fsx::exists(&live)? {
            let slot = root.state().copy(one.slot);
            if one.disposable && !fsx::exists(&slot)? {
                rename_making(&live, &slot)?
            } else {
                set_aside(&live, after, &one.path)?
            }
        }
        if one.old {
            // The swap may have taken folders above it away.
            rename_making(&original, &live)?;
        }
        if live.parent().is_some_and(Path::exists) {
            fsx::sync_parent(&live)?;
        }
    }
    Ok(())
}
