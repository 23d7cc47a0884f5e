//! `status --follow`: shows the update under way as it goes on, from its events file, and its end.
//! Refuses to take part: it reads, and its own end changes nothing.

use crate::base::error::{Code, Failure};
use crate::base::fsx;
use crate::base::report::Finished;
use crate::state::history;
use crate::system::processes;
use crate::update::install::Install;
use crate::update::run::Run;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::time::Duration;

/// How often new events are looked for.
const POLL: Duration = Duration::from_millis(100);

/// Shows the update that `under_way` (of `status`) tells of until it ends. With `--json`: its events, a line each.
/// The exit code is the update's. Errors (exit 4): it was cut off.
pub fn follow(install: &Install, run: &mut Run, under_way: &Value) -> Result<u8> {
    let id = under_way["update_id"].as_str().unwrap_or_default().to_string();
    let who = history::who(under_way).context("the status does not tell whose update it is")?;
    let place = install.state().events_of(&id);
    let mut events = fsx::LineTail::open(&place)?;
    loop {
        // Asked first: what it wrote before its end is read after.
        let lives = processes::identity(who.pid).context("looking at the updater")? == Some(who);
        for event in events.more(false)?.iter().filter_map(|line| serde_json::from_slice::<Value>(line).ok()) {
            show(run, &event);
            if event["event"] == "finished" {
                return Ok(event["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(4));
            }
        }
        if !lives {
            return Err(cut_off(install, &id).into());
        }
        run.check_signals()?;
        std::thread::sleep(POLL);
    }
}

fn cut_off(install: &Install, id: &str) -> Failure {
    Failure::operator(Code::Interrupted, format!("the update {id} was cut off"))
        .at(install.root.path().display())
        .remedy(format!("finish or undo it: updater recover --root '{}'", install.root.path().display()))
}

fn show(run: &mut Run, event: &Value) {
    if run.report.options().json {
        run.report.object(event);
        return;
    }
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_string();
    match event["event"].as_str() {
        Some("stage") => {
            let state = text("state");
            let message = Some(text("message")).filter(|m| !m.is_empty()).unwrap_or(state);
            run.report.line(&format!("{:>3}% {}: {message}", event["percent"], text("stage")));
        }
        Some("warning") => run.report.line(&format!("     warning: {}", text("message"))),
        Some("healed") => run.report.line(&format!("     healed: {} from {}", text("path"), text("from"))),
        Some("recovered") => run.report.line(&format!("     recovered: the update {}", text("interrupted_id"))),
        Some("finished") => {
            for line in serde_json::from_value::<Finished>(event.clone()).map(|f| f.words()).unwrap_or_default() {
                run.report.line(&line);
            }
            if let Some(error) = serde_json::from_value(event["error"].clone()).ok().flatten() {
                run.report.error(&error);
            }
        }
        _ => {}
    }
}
