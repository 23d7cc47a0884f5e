//! What an update has to say of files that are not simply the release's: what was changed here, what gives way, what is
//! kept out, what is not saved. By name, with where the bytes lie; `plan` and `apply` say the same.
//! Refuses to decide any of it: that was the plan's.

use super::preflight::Prepared;
use crate::base::error::Code;
use crate::base::path::RelPath;
use crate::update::install::Install;
use crate::update::plan::Plan;
use anyhow::Result;

/// One thing to be said, of these paths; none: of the whole.
#[derive(Debug, Clone)]
pub struct Note {
    pub code: Code,
    pub message: String,
    pub paths: Vec<RelPath>,
}

fn of(paths: &[RelPath], one: &str, many: &str) -> String {
    if let [path] = paths { format!("{path} {one}") } else { format!("{} files {many}", paths.len()) }
}

/// What gave way to the update, and where it lies now, or will, where no `backup` is made yet. None: nothing does.
pub fn moved_aside(install: &Install, plan: &Plan, backup: Option<&str>) -> Option<Note> {
    let paths = plan.moved_aside();
    let message = match backup {
        Some(id) => {
            let text = of(&paths, "was written here and gave way", "that were written here gave way");
            format!("{text}; to be found in {}/{id}/aside", install.settings.backup.dir)
        }
        None => {
            let text = of(&paths, "was written here and will give way", "that were written here will give way");
            format!("{text}; the aside/ of the update's backup will hold what was written")
        }
    };
    (!paths.is_empty()).then_some(Note { code: Code::MovedAside, message, paths })
}

/// What saved data took the place of, and where that lies now. None: nothing.
pub fn replaced_data(install: &Install, plan: &Plan, backup: &str) -> Option<Note> {
    let replaced = plan.changes().filter(|p| p.saved_data && p.live.is_some());
    let paths: Vec<RelPath> = replaced.map(|planned| planned.path.clone()).collect();
    let text = of(&paths, "was put back as it was saved", "were put back as they were saved");
    let message = format!("{text}; what stood there lies in {}/{backup}/after", install.settings.backup.dir);
    (!paths.is_empty()).then_some(Note { code: Code::DataReplaced, message, paths })
}

/// Everything that is to be said before the stop, in the order of its weight.
pub fn notes(install: &Install, prepared: &Prepared) -> Result<Vec<Note>> {
    let plan = &prepared.plan;
    let mut all = Vec::new();
    let mut say = |code, paths: Vec<RelPath>, message: String| {
        if !paths.is_empty() {
            all.push(Note { code, message, paths });
        }
    };
    let aside = plan.moved_aside();
    let stays: Vec<RelPath> = plan.changed_here.iter().filter(|path| !aside.contains(path)).cloned().collect();
    let stays: Vec<RelPath> = stays.into_iter().filter(|path| !plan.not_taken.contains(path)).collect();
    let text = of(&stays, "was changed here and stays", "were changed here and stay");
    say(Code::ChangedHere, stays, text);
    let text = of(&plan.not_taken, "was changed here and stays", "were changed here and stay");
    say(Code::NotTaken, plan.not_taken.clone(), format!("{text}; the bundle's is not taken"));
    let text = of(&plan.held_back, "of the bundle is held back", "of the bundle are held back");
    say(Code::HeldBack, plan.held_back.clone(), format!("{text}: {}", why_held_back(prepared)));
    let text = of(&plan.left_out, "of the bundle lies", "of the bundle lie");
    say(Code::OwnLeftOut, plan.left_out.clone(), format!("{text} in the updater's own places, and is left out"));
    let unsaved = prepared.selection.not_saved(&install.root)?;
    let bytes: u64 = unsaved.iter().map(|(_, bytes)| bytes).sum();
    let unsaved: Vec<RelPath> = unsaved.into_iter().map(|(path, _)| path).collect();
    let text = of(&unsaved, "stays in place and is not saved", "stay in place and are not saved");
    say(Code::NotSaved, unsaved, format!("{text} ({bytes} bytes): a rollback could only tell that they changed"));
    if let Some(count) = plan.unknown_stay.filter(|count| *count > 0) {
        let (files, stay, them) =
            if count == 1 { ("program file", "stays", "it") } else { ("program files", "stay", "them") };
        let message = format!(
            "nobody knows what the version before shipped, so {count} {files} that the bundle lacks {stay}; \
             `updater verify` lists {them} afterwards, and `updater adopt BUNDLE` of the installed version's bundle, typed \
             before an update, tells whose each file is"
        );
        all.push(Note { code: Code::BeforeReceipt, message, paths: Vec::new() });
    }
    Ok(all)
}

/// The reason, where all that is held back has the same.
fn why_held_back(prepared: &Prepared) -> String {
    let held: Vec<_> = prepared.plan.actions.iter().filter(|p| prepared.plan.held_back.contains(&p.path)).collect();
    match held.first() {
        Some(first) if held.iter().all(|p| p.reason == first.reason) => first.reason.clone(),
        _ => "what lies at these places is not the release's".into(),
    }
}
