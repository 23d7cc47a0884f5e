//! The only writer: events, human lines, errors, logs and the progress bar; every byte ASCII.
//! Refuses to fail: an update does not depend on anybody reading about it.

mod ascii;
mod form;
mod options;
mod outcome;
mod stage;

pub use ascii::{ascii, ascii_json};
use form::{append, with_schema};
pub use options::{Color, Options};
pub use outcome::{Direction, Finished, Outcome, Running, Stands};
pub use stage::Stage;

use crate::base::error::{Code, ErrorRecord};
use crate::base::path::RelPath;
use ascii::one_line;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many paths one warning lists as events.
const MOST_PATHS: usize = 1_000;
/// How many paths people read in one line.
const FEW_PATHS: usize = 5;
/// At most one progress event in this time.
const THROTTLE: Duration = Duration::from_millis(200);

/// Writes everything that a run says, to whoever listens.
pub struct Reporter {
    options: Options,
    /// Some once events are on.
    update_id: Option<String>,
    stages: Vec<Stage>,
    closed: Vec<Stage>,
    current: Option<Stage>,
    /// The end of the last stage waits for the outcome: only that says whether it is 100.
    held: Option<(Stage, &'static str, String)>,
    seq: u64,
    percent: u8,
    legacy: (&'static str, u8),
    last_progress: Option<Instant>,
    finished: Option<Value>,
    events: Option<File>,
    logs: Vec<File>,
    bar: Option<indicatif::ProgressBar>,
    #[cfg(test)]
    seen: Vec<Value>,
}

impl Reporter {
    pub fn new(options: Options) -> Reporter {
        let mut new = Reporter {
            update_id: None,
            stages: Vec::new(),
            closed: Vec::new(),
            current: None,
            held: None,
            seq: 0,
            percent: 0,
            legacy: ("connecting", 5),
            last_progress: None,
            finished: None,
            events: None,
            logs: Vec::new(),
            bar: None,
            #[cfg(test)]
            seen: Vec::new(),
            options,
        };
        if let Some(path) = new.options.log_file.clone() {
            new.log_to(&path);
        }
        new
    }

    /// How this reporter was asked to report.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Turns events on. `stages`: those of the command, in order; the end of the last one, or the
    /// skipping of those that an early success leaves out, brings the percent to 100.
    pub fn begin(&mut self, update_id: String, stages: &[Stage]) {
        self.update_id = Some(update_id);
        self.stages = stages.to_vec();
        if !self.options.json && !self.options.quiet && !stages.is_empty() && std::io::stderr().is_terminal() {
            let bar = indicatif::ProgressBar::with_draw_target(Some(100), indicatif::ProgressDrawTarget::stderr());
            if let Ok(style) = indicatif::ProgressStyle::with_template("[{bar:30}] {pos:>3}% {wide_msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            self.bar = Some(bar);
        }
    }

    /// Adds a human log, appended to; a log that cannot be written is left out.
    pub fn log_to(&mut self, path: &Path) {
        self.logs.extend(append(path));
    }

    /// Adds a human log that is open already.
    pub fn log_into(&mut self, file: File) {
        self.logs.push(file);
    }

    /// Keeps the events in this file, too.
    pub fn events_to(&mut self, path: &Path) {
        self.events = append(path);
    }

    /// Goes on with the events of a run that was cut off, for its own file alone: the numbers go on, too.
    pub fn resumed(update_id: &str, events: &Path, stages: &[Stage]) -> Reporter {
        let mut new = Reporter::new(Options { quiet: true, ..Options::default() });
        let text = std::fs::read_to_string(events).unwrap_or_default();
        let numbers = |key: &str| {
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.filter_map(|event| event[key].as_u64()).max().unwrap_or(0)
        };
        (new.seq, new.percent) = (numbers("seq"), u8::try_from(numbers("percent")).unwrap_or(99).min(99));
        new.begin(update_id.to_string(), stages);
        new.events_to(events);
        // A line that was cut off in the middle must not swallow the next.
        if let Some(file) = new.events.as_mut().filter(|_| !text.is_empty() && !text.ends_with('\n')) {
            let _ = file.write_all(b"\n");
        }
        new
    }

    pub fn stage_started(&mut self, stage: Stage, message: &str) {
        if self.current == Some(stage) || self.closed.contains(&stage) {
            return;
        }
        self.release(99);
        if let Some(open) = self.current {
            self.close(open, "done", "");
        }
        self.current = Some(stage);
        if let Some(base) = stage.base() {
            self.raise(base);
        }
        if let Some(legacy) = stage.legacy().filter(|new| new.1 > self.legacy.1) {
            self.legacy = legacy;
        }
        self.stage_event(stage, "started", message);
    }

    pub fn stage_done(&mut self, stage: Stage, message: &str) {
        self.close(stage, "done", message);
    }

    pub fn stage_skipped(&mut self, stage: Stage, message: &str) {
        self.close(stage, "skipped", message);
    }

    pub fn stage_failed(&mut self, stage: Stage, message: &str) {
        self.close(stage, "failed", message);
    }

    /// Marks the stage that was started and has not ended as failed, if there is one.
    pub fn fail_current(&mut self, message: &str) {
        if let Some(stage) = self.current {
            self.close(stage, "failed", message);
        }
    }

    /// How far a stage is; few of these are written. `unit`: `bytes` or `files`.
    pub fn progress(&mut self, stage: Stage, done: u64, total: u64, unit: &str) {
        if self.closed.contains(&stage) {
            return;
        }
        let due = self.last_progress.is_none_or(|last| last.elapsed() >= THROTTLE);
        if !due && (done < total || total == 0) {
            return;
        }
        self.last_progress = Some(Instant::now());
        if let Some(base) = stage.base() {
            let part = u128::from(stage.weight()) * u128::from(done.min(total)) / u128::from(total.max(1));
            self.raise(base.saturating_add(u8::try_from(part).unwrap_or(0)));
        }
        let percent = self.percent;
        let fields = json!({"stage": stage.word(), "percent": percent, "done": done, "total": total, "unit": unit});
        self.event("progress", fields);
        if let Some(bar) = &self.bar {
            bar.set_position(u64::from(percent));
        }
    }

    pub fn warning(&mut self, code: Code, message: &str, path: Option<&str>) {
        self.event("warning", json!({"code": code, "message": message, "path": path}));
        let place = path.map(|path| format!(" ({})", one_line(path))).unwrap_or_default();
        let text = format!("warning: {}{place}", ascii(message));
        self.log(&text);
        let told_as_event = self.options.json && self.update_id.is_some();
        if !self.options.quiet && !told_as_event {
            self.to_stderr(&text);
        }
    }

    /// One warning of many paths: an event for each, up to a number; people read one line, or all of them with `-v`.
    pub fn warn_of(&mut self, code: Code, message: &str, paths: &[RelPath]) {
        if paths.is_empty() {
            return self.warning(code, message, None);
        }
        for path in paths.iter().take(MOST_PATHS) {
            self.event("warning", json!({"code": code, "message": message, "path": path.to_string()}));
        }
        if paths.len() > MOST_PATHS {
            let more = format!("{message}; {} more of them are not listed", paths.len() - MOST_PATHS);
            self.event("warning", json!({"code": code, "message": more, "path": null}));
        }
        let named = paths.iter().map(|path| one_line(&path.to_string()));
        let shown = if self.options.verbose { paths.len() } else { FEW_PATHS };
        let mut names: Vec<String> = named.take(shown).collect();
        if paths.len() > shown {
            names.push(format!("and {} more", paths.len() - shown));
        }
        let text = format!("warning: {} ({})", ascii(message), names.join(", "));
        self.log(&text);
        let told_as_event = self.options.json && self.update_id.is_some();
        if !self.options.quiet && !told_as_event {
            self.to_stderr(&text);
        }
    }

    /// An old backup was taken away.
    pub fn pruned(&mut self, backup: &str, bytes: u64) {
        self.event("pruned", json!({"backup": backup, "bytes": bytes}));
        self.say(&format!("pruned: the backup {} ({bytes} bytes)", one_line(backup)));
    }

    /// A file was mended; `from`: `staging`, `bundle` or `backup`.
    pub fn healed(&mut self, path: &str, from: &str) {
        self.event("healed", json!({"path": path, "from": from}));
        self.say(&format!("healed: {} from {}", one_line(path), one_line(from)));
    }

    /// An earlier run was finished or undone first.
    pub fn recovered(&mut self, interrupted_id: &str, direction: Direction) {
        self.event("recovered", json!({"interrupted_id": interrupted_id, "direction": direction}));
        self.say(&format!(
            "recovered: the interrupted update {}, to the {} version",
            one_line(interrupted_id),
            direction.word()
        ));
    }

    /// The last event; anything after it is ignored.
    pub fn finished(&mut self, finished: &Finished) {
        if self.finished.is_some() {
            return;
        }
        let good = finished.exit_code == 0;
        if let Some(open) = self.current {
            self.close(open, if good { "done" } else { "failed" }, "");
        }
        if good {
            for stage in self.stages.clone() {
                self.close(stage, "skipped", "");
            }
            self.release(100);
            self.percent = 100;
            self.legacy = ("done", 100);
        } else {
            self.release(99);
        }
        let mut fields = serde_json::to_value(finished).unwrap_or_default();
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("percent".to_string(), json!(self.percent));
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.finished = Some(self.event("finished", fields));
        if let Some(events) = &self.events {
            let _ = events.sync_all();
        }
        for line in finished.words() {
            self.say(&ascii(&line));
        }
        if let Some(error) = finished.error.as_ref().filter(|_| !self.options.json) {
            self.error(error);
        }
    }

    /// A line of a human result, to stdout.
    pub fn line(&mut self, text: &str) {
        self.say(&ascii(text));
    }

    /// What another process of this program wrote for the same caller.
    pub fn relayed(&mut self, stdout: &str, stderr: &str) {
        for line in stdout.lines() {
            self.to_stdout(&ascii(line));
        }
        for line in stderr.lines() {
            self.to_stderr(&ascii(line));
        }
    }

    /// Asks a person at a terminal; without one the answer is yes. Nothing but `y` or `yes` agrees.
    pub fn confirm(&mut self, question: &str) -> bool {
        if self.options.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return true;
        }
        self.to_stderr(&format!("{} [y/N]", ascii(question)));
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        read.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
    }

    /// What only `--verbose` and the logs tell.
    pub fn note(&mut self, text: &str) {
        let text = ascii(text);
        self.log(&text);
        if self.options.verbose && !self.options.quiet {
            self.to_stderr(&text);
        }
    }

    /// Prints one JSON object, `"schema": 1` first.
    pub fn object(&mut self, value: &Value) {
        self.to_stdout(&ascii_json(&with_schema(value)));
    }

    /// A human error, to stderr: what, where, what to do.
    pub fn error(&mut self, error: &ErrorRecord) {
        let mut rest = String::new();
        if let Some(path) = &error.path {
            let _ = write!(rest, "\n  path: {}", one_line(path));
        }
        if let Some(remedy) = &error.remedy {
            let _ = write!(rest, "\n  remedy: {}", ascii(remedy));
        }
        let what = ascii(&error.message);
        self.log(&format!("error: {what}{rest}"));
        let colored = match self.options.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        let word = if colored { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        self.to_stderr(&format!("{word} {what}{rest}"));
    }

    /// The stage that was started and has not ended.
    pub fn stage_now(&self) -> Option<Stage> {
        self.current
    }

    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// Name and percent for the dashboard of the legacy server; never falling.
    pub fn legacy_stage(&self) -> (&'static str, u8) {
        self.legacy
    }

    /// The whole `finished` event, once it was written.
    pub fn last_finished(&self) -> Option<Value> {
        self.finished.clone()
    }

    /// Below 100: that belongs to the outcome.
    fn raise(&mut self, percent: u8) {
        self.percent = self.percent.max(percent.min(99));
    }

    fn close(&mut self, stage: Stage, state: &'static str, message: &str) {
        if self.closed.contains(&stage) || self.finished.is_some() {
            return;
        }
        self.release(99);
        if self.current == Some(stage) {
            self.current = None;
        }
        self.closed.push(stage);
        if state != "failed" && self.stages.last() == Some(&stage) {
            self.held = Some((stage, state, message.to_string()));
            return;
        }
        if state != "failed"
            && let Some(base) = stage.base()
        {
            self.raise(base.saturating_add(stage.weight()));
        }
        self.stage_event(stage, state, message);
    }

    /// Writes the held end of the last stage.
    fn release(&mut self, percent: u8) {
        if let Some((stage, state, message)) = self.held.take() {
            if percent == 100 {
                self.percent = 100;
            } else if let Some(base) = stage.base() {
                self.raise(base.saturating_add(stage.weight()));
            }
            self.stage_event(stage, state, &message);
        }
    }

    fn stage_event(&mut self, stage: Stage, state: &'static str, message: &str) {
        let fields = json!({"stage": stage.word(), "state": state, "percent": self.percent, "message": message});
        self.event("stage", fields);
        let text = match (message.is_empty(), state) {
            (true, _) => format!("{}: {state}", stage.word()),
            (false, "failed" | "skipped") => format!("{}: {state}: {}", stage.word(), ascii(message)),
            (false, _) => format!("{}: {}", stage.word(), ascii(message)),
        };
        self.log(&text);
        if let Some(bar) = &self.bar {
            bar.set_position(u64::from(self.percent));
            bar.set_message(one_line(&text));
        }
        let plain = self.bar.is_none() && !message.is_empty();
        if !self.options.json && !self.options.quiet && (plain || self.options.verbose) {
            self.to_stdout(&text);
        }
    }

    /// Writes an event with its common fields, and gives it back.
    fn event(&mut self, word: &str, fields: Value) -> Value {
        if self.finished.is_some() {
            return Value::Null;
        }
        let mut all = Map::new();
        all.insert("schema".to_string(), json!(1));
        all.insert("ts".to_string(), json!(format!("{:.3}", jiff::Timestamp::now())));
        all.insert("update_id".to_string(), json!(self.update_id));
        all.insert("seq".to_string(), json!(self.seq + 1));
        all.insert("event".to_string(), json!(word));
        if let Value::Object(fields) = fields {
            all.extend(fields);
        }
        let event = Value::Object(all);
        // Before `begin` there is no stream; only an outcome (of a usage error) is an event even so.
        if self.update_id.is_none() && word != "finished" {
            return event;
        }
        self.seq += 1;
        let line = ascii_json(&event);
        if let Some(file) = &mut self.events {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
        if self.options.json {
            self.to_stdout(&line);
        }
        #[cfg(test)]
        self.seen.push(event.clone());
        event
    }

    /// A human line to the logs and, unless quiet or JSON, to stdout.
    fn say(&mut self, text: &str) {
        self.log(text);
        if !self.options.json && !self.options.quiet {
            self.to_stdout(text);
        }
    }

    fn log(&mut self, text: &str) {
        if self.logs.is_empty() {
            return;
        }
        let line = format!("{:.3} {text}\n", jiff::Timestamp::now());
        for file in &mut self.logs {
            // Others may append to the same file; go to its end each time.
            let _ = file.seek(SeekFrom::End(0));
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn to_stdout(&self, text: &str) {
        self.beside_the_bar(|| {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}");
            let _ = out.flush();
        });
    }

    fn to_stderr(&self, text: &str) {
        self.beside_the_bar(|| {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }

    fn beside_the_bar(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

#[cfg(test)]
mod tests;
