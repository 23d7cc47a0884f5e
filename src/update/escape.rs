//! Escape: an updater that would end with the server moves out before it takes the lock. The one outside does
//! everything; the first one stays to pass on what its caller wants to know, and holds nothing.
//! Refuses to go on where there is no way out: then nothing was changed.

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::report::Reporter;
use crate::state::history;
use crate::state::root::InstallRoot;
use crate::system::escape::{self, ControlSocket, RemoteUpdater};
use crate::system::processes::Signals;
use crate::system::remedies::{LEAVE_THE_SERVER, SEE_PROCESSES};
use crate::system::{EscapeRoute, Handoff, Notice, Tie, files};
use crate::update::run;
use crate::update::server;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often the first one looks for signals and news.
const POLL: Duration = Duration::from_millis(20);

/// How long `--detach` waits for the other one to begin before it returns all the same.
const BEGINNING: Duration = Duration::from_millis(700);

/// `site-1a2b3c4d`: readable, one per install, and safe as part of a unit's name.
pub fn unit_name(root: &Path) -> String {
    let shown = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let safe = |c: char| if c.is_ascii_alphanumeric() || "_.".contains(c) { c } else { '_' };
    let short: String = shown.chars().map(safe).take(64).collect();
    let sum = fsx::sha256(root.as_os_str().as_encoded_bytes());
    format!("{short}-{}", sum.get(..8).unwrap_or_default())
}

/// How this process has to leave before it may update: the way out of what ties it to the running server, or
/// away from its caller (`detach`). None: it may stay. Errors (`would-end-us`, exit 1): it must leave and cannot.
pub fn way(root: &InstallRoot, detach: bool) -> Result<Option<EscapeRoute>> {
    // What cannot be found is refused, with its reasons, by the detection.
    let tie = match server::find(root) {
        Ok(Some(running)) => tied_to(&running, root)?,
        _ => None,
    };
    if tie.is_none() && !detach {
        return Ok(None);
    }
    let way = escape::way_out(tie.as_ref(), &unit_name(root.path())).context("looking for a way out")?;
    way.map(Some).map_err(|why| {
        let tied = tie.map_or_else(|| "it is asked to go on by itself".to_string(), |tie| tie.to_string());
        Failure::failed(Code::WouldEndUs, format!("this updater cannot leave what it was started by ({tied}): {why}"))
            .at(root.path().display())
            .remedy(LEAVE_THE_SERVER)
            .into()
    })
}

/// What would end us with this server. Errors (`processes-hidden`, exit 1): the system does not show us what stands above
/// us; that cannot be found out then.
fn tied_to(server: &server::Running, root: &InstallRoot) -> Result<Option<Tie>> {
    escape::tied_to(&server.ids()).map_err(|e| match e.kind() {
        ErrorKind::PermissionDenied => Failure::failed(
            Code::ProcessesHidden,
            format!("what ties this updater to the server cannot be found out: {e}"),
        )
        .at(root.path().display())
        .remedy(SEE_PROCESSES)
        .into(),
        _ => anyhow::Error::new(e).context("finding out what ties us to the server"),
    })
}

/// What the one outside finds that is still tied. Errors: it proves not to be outside.
pub fn prove_outside(server: &server::Running, root: &InstallRoot) -> Result<()> {
    match tied_to(server, root)? {
        None => Ok(()),
        Some(tie) => {
            Err(Failure::failed(Code::WouldEndUs, format!("stopping the server would end this updater: {tie}"))
                .at(root.path().display())
                .remedy(LEAVE_THE_SERVER)
                .into())
        }
    }
}

/// What a process that runs outside of its caller was started with; nothing of it in an ordinary call.
#[derive(Default)]
pub struct Outside {
    number: Option<i32>,
    pub line: Option<Rc<ControlSocket>>,
    pub update_id: Option<String>,
}

impl Outside {
    /// Takes over the line to the first process, whose number is an open handle of ours. To be called first, once.
    pub fn taken(number: i32, update_id: String) -> Outside {
        let line = ControlSocket::taken(number).ok().map(Rc::new);
        Outside { number: line.as_ref().map(|_| number), line, update_id: Some(update_id) }
    }

    /// The handles that are ours beside the standard ones.
    pub fn handles(&self) -> Vec<i32> {
        self.number.into_iter().collect()
    }

    /// Tells the first process how this one ended.
    pub fn ended(&self, code: u8) {
        if let Some(line) = &self.line {
            line.notify(Notice::Ended(code));
        }
    }
}

/// Who asks, and for what.
pub struct Caller<'a> {
    /// The command line without the program.
    pub argv: &'a [OsString],
    pub cwd: &'a Path,
    pub detach: bool,
}

/// Has the work done outside. The exit code is the other's, or with `--detach` tells whether it has begun.
/// Errors: it did not get out; nothing was changed.
pub fn leave(root: &InstallRoot, way: &EscapeRoute, caller: &Caller, report: &mut Reporter) -> Result<u8> {
    let signals = Signals::install().context("watching for signals")?;
    let update_id = history::new_update_id();
    let place = meeting_place(root)?;
    let outputs = caller.detach.then(|| [tempfile::tempfile(), tempfile::tempfile()]);
    let outputs = match outputs {
        Some([out, err]) => {
            Some([out.context("making room for the output")?, err.context("making room for the output")?])
        }
        None => None,
    };
    let handoff =
        Handoff { argv: caller.argv, cwd: caller.cwd, update_id: &update_id, place: &place, outputs: outputs.as_ref() };
    let mut moved = run::interruptible(|| {
        escape::send(way, &handoff).map_err(|e| {
            let message = format!("the updater that was to run outside ({}) did not begin: {e}", way.word());
            Failure::failed(Code::EscapeFailed, message).at(root.path().display()).remedy(LEAVE_THE_SERVER).into()
        })
    })?;
    match outputs {
        None => relay(&mut moved, &signals, root, report),
        Some(outputs) => {
            let heard = beginning(&mut moved, &signals)?;
            Ok(ended_early(heard, outputs, root, report).unwrap_or_else(|| {
                tell_of(&moved, &update_id, root, report);
                0
            }))
        }
    }
}

/// Where both meet: of root's own where root runs it, so that nobody else has a say in it.
fn meeting_place(root: &InstallRoot) -> Result<PathBuf> {
    if let Some(folder) = escape::roots_meeting_place() {
        return Ok(folder);
    }
    let state = root.state();
    files::private_folder(state.path()).with_context(|| format!("creating {}", state.path().display()))?;
    Ok(state.path().to_path_buf())
}

/// Passes signals on, and gives back how it ended.
fn relay(moved: &mut RemoteUpdater, signals: &Signals, root: &InstallRoot, report: &mut Reporter) -> Result<u8> {
    let mut passed = Passed::default();
    let mut is_stopping = false;
    loop {
        // Counted before the news are read: whoever stops the server may mean us with it, and that was announced.
        let now = Passed::until_now(signals);
        match moved.hear(POLL).context("listening to the updater outside")? {
            Some(Notice::Ended(code)) => return Ok(code),
            Some(Notice::Lost) => return Ok(lost(root, report)),
            Some(Notice::Stopping) => is_stopping = true,
            Some(Notice::Begun) => continue,
            None => {}
        }
        if is_stopping && now.terminations > passed.terminations {
            passed.interrupt(&now, moved)?;
            return Ok(left_behind(moved, root, report));
        }
        passed.pass_on(&now, moved)?;
    }
}

/// How many signals the one outside was sent.
#[derive(Default)]
struct Passed {
    interrupts: usize,
    terminations: usize,
}

impl Passed {
    /// As many as came.
    fn until_now(signals: &Signals) -> Passed {
        Passed { interrupts: signals.interrupts(), terminations: signals.terminations() }
    }

    /// Sends it the SIGINTs that came.
    fn interrupt(&mut self, now: &Passed, moved: &RemoteUpdater) -> Result<()> {
        while self.interrupts < now.interrupts {
            self.interrupts += 1;
            moved.interrupt().context("passing the interrupt on")?;
        }
        Ok(())
    }

    /// Sends it all that came.
    fn pass_on(&mut self, now: &Passed, moved: &RemoteUpdater) -> Result<()> {
        self.interrupt(now, moved)?;
        while self.terminations < now.terminations {
            self.terminations += 1;
            moved.ask_to_end().context("passing the signal on")?;
        }
        Ok(())
    }
}

/// The server ends, and this process with it: whoever stops a unit waits for all that belongs to it.
fn left_behind(moved: &RemoteUpdater, root: &InstallRoot, report: &mut Reporter) -> u8 {
    let message = format!("this process ends with the server; the update goes on as process {}", moved.pid());
    let failure = Failure::operator(Code::LeftBehind, message)
        .at(root.path().display())
        .remedy(format!("to see its end type: updater status --follow --root '{}'", root.path().display()));
    let code = failure.class as u8;
    report.error(&crate::base::error::record(&failure.into()));
    code
}

fn lost(root: &InstallRoot, report: &mut Reporter) -> u8 {
    let failure = Failure::operator(Code::Lost, "the updater outside ended without telling how")
        .at(root.path().display())
        .remedy(format!("see what stands: updater status --root '{}'", root.path().display()));
    let code = failure.class as u8;
    report.error(&crate::base::error::record(&failure.into()));
    code
}

/// What the other one says first, at the latest after `BEGINNING`; signals are passed on meanwhile.
fn beginning(moved: &mut RemoteUpdater, signals: &Signals) -> Result<Option<Notice>> {
    let (until, mut passed) = (Instant::now() + BEGINNING, Passed::default());
    loop {
        let now = Passed::until_now(signals);
        let heard = moved.hear(POLL).context("listening to the updater outside")?;
        if heard.is_some() || Instant::now() >= until {
            return Ok(heard);
        }
        passed.pass_on(&now, moved)?;
    }
}

/// The exit code of one that has ended already; what it wrote is passed on. None: it goes on.
fn ended_early(
    heard: Option<Notice>,
    outputs: [std::fs::File; 2],
    root: &InstallRoot,
    report: &mut Reporter,
) -> Option<u8> {
    let ended = heard.filter(|said| matches!(said, Notice::Ended(_) | Notice::Lost))?;
    let [out, err] = outputs.map(text_of);
    report.relayed(&out, &err);
    Some(if let Notice::Ended(code) = ended { code } else { lost(root, report) })
}

/// Tells where the update that goes on by itself can be seen.
fn tell_of(moved: &RemoteUpdater, update_id: &str, root: &InstallRoot, report: &mut Reporter) {
    let state = root.state();
    let (status, events) = (state.status().display().to_string(), state.events_of(update_id).display().to_string());
    if report.options().json {
        report.object(&json!({"update_id": update_id, "pid": moved.pid(), "status": status, "events": events}));
    } else {
        report.line(&format!("the update {update_id} goes on by itself as process {}", moved.pid()));
        report.line(&format!("to see it type: updater status --follow --root '{}'", root.path().display()));
    }
}

fn text_of(mut file: std::fs::File) -> String {
    let mut bytes = Vec::new();
    // An unlinked file of ours: what cannot be read was not written.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes).map(drop));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_name_is_safe_and_one_per_install() {
        let (one, two) = (unit_name(Path::new("/srv/my site%")), unit_name(Path::new("/opt/my site%")));
        assert!(one.starts_with("my_site_-") && one.len() == "my_site_-".len() + 8);
        assert_ne!(one, two);
    }
}
