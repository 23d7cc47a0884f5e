//! Users' files strewn everywhere, by chance: after an update, a rollback, a kill at any move and its recovery, a
//! restore, a row of updates, every byte and all that dresses it is where it was, or lies in `aside/` and is named.
//!
//! A case is decided by its seed alone, which a failure prints: `SEED=17 cargo test --test users_files`, and
//! `SEED=1000 CASES=300` for a row of them. `KEEP=1` keeps the folder of a failing one.
#![cfg(target_os = "linux")]

#[path = "../kit/mod.rs"]
mod kit;
mod judge;
mod look;
mod vandal;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use judge::Wrong;
use kit::{Output, owner};
use look::Kind;
use serde_json::Value;
use vandal::Vandal;
use world::World;

/// How many cases of each kind an ordinary run tries.
const CASES: u64 = 5;
/// A kill that never finds its moment is none.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the cases of one kind.
fn cases(kind: &str, keep: u32, case: &dyn Fn(&mut World, &mut Wrong) -> String) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("SEED").unwrap_or(1);
    let count = number("CASES").unwrap_or(if std::env::var_os("SEED").is_some() { 1 } else { CASES });
    let (mut ends, mut failed) = (BTreeMap::new(), Vec::new());
    for seed in first..first + count {
        let mut world = World::new(seed, keep);
        let mut wrong = Wrong::default();
        let end = case(&mut world, &mut wrong);
        *ends.entry(end.clone()).or_insert(0) += 1;
        if wrong.0.is_empty() {
            continue;
        }
        let place = world.install.root.display().to_string();
        eprintln!(
            "SEED={seed} {kind}, known: {}, given away: {}, {end}: {} wrong, in {place}\n  {}\n  ran: {}",
            world.is_known,
            world.is_given_away,
            wrong.0.len(),
            wrong.0.iter().take(8).cloned().collect::<Vec<_>>().join("\n  "),
            world.log.join("; ")
        );
        failed.push(seed);
        if std::env::var_os("KEEP").is_some() {
            world.install.stop();
            std::mem::forget(world);
        }
    }
    println!("{kind}: {ends:?}");
    assert!(failed.is_empty(), "{kind}: SEED={failed:?}");
}

fn apply(world: &mut World, at: usize, more: &str) -> Output {
    let bundle = world.bundle(at, more);
    world.run(&["apply", bundle.to_str().unwrap(), "--json"])
}

/// True for an end before the stop, which must have changed nothing.
fn refused(world: &mut World, output: &Output, wrong: &mut Wrong) -> Option<String> {
    if ![1, 6].contains(&output.code) {
        return None;
    }
    let was = world.before.clone();
    wrong.0.extend(world.judge_refused(output, &was).0);
    world.judge_settled(wrong, "1.0");
    Some(format!("refused: {}", output.error_code()))
}

fn expect(wrong: &mut Wrong, output: &Output, code: i32) -> bool {
    if output.code != code {
        wrong.say(b"", format!("exit {}: {output:?}", output.code));
    }
    output.code == code
}

fn backup_of(output: &Output) -> String {
    output.finished()["backup"].as_str().unwrap_or_default().to_string()
}

#[test]
fn an_update_leaves_what_users_have() {
    cases("update", 5, &|world, wrong| {
        let output = apply(world, 1, "");
        if let Some(end) = refused(world, &output, wrong) {
            return end;
        }
        if expect(wrong, &output, 0) {
            wrong.0.extend(world.judge_new(&[&output]).0);
            world.judge_settled(wrong, "2.0");
        }
        "applied".into()
    });
}

#[test]
fn a_rollback_brings_back_what_a_failing_version_did_to_it() {
    cases("rollback", 5, &|world, wrong| {
        let vandal = Vandal::new(world);
        let output = apply(world, 1, &vandal.lines);
        if let Some(end) = refused(world, &output, wrong) {
            return end;
        }
        if expect(wrong, &output, 3) {
            let left = world.left();
            if left.is_none() {
                wrong.say(b"", "the failing version did not come to its end");
            }
            wrong.0.extend(world.judge_old(Some(&vandal), left.as_ref(), &[&output]).0);
            world.judge_settled(wrong, "1.0");
        }
        "rolled back".into()
    });
}

// ---- kills ----

/// When the updater is killed.
enum Moment {
    /// A record of the journal, and so many microseconds later.
    Record(&'static str, u64),
    /// So far in the moves of the swap (in a hundred), or in those of its undo.
    Move { part: usize, back: bool },
}

fn moment(world: &mut World, is_failing: bool) -> Moment {
    let rng = &mut world.rng;
    if rng.chance(60) {
        return Moment::Move { part: rng.below(100), back: is_failing && rng.chance(60) };
    }
    let good = ["stopping", "backup-whole", "swapping", "swapped", "starting", "committed"];
    let bad = ["stopping", "swapping", "undoing", "undoing", "data-restored", "rolled-back", "starting-old"];
    let states: &[&'static str] = if is_failing { &bad } else { &good };
    Moment::Record(states[rng.below(states.len())], rng.below(8000) as u64)
}

/// The records of the journal that are whole.
fn records(world: &World) -> Vec<Value> {
    let text = fs::read(world.install.root.join(".updater/journal")).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line.get(17..)?).ok()).collect()
}

fn record(world: &World, state: &str) -> Option<Value> {
    records(world).into_iter().find(|record| record["state"] == state)
}

/// Waits until `now` gives something, or the updater ended.
fn wait_for<T>(child: &mut Child, now: &dyn Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = now() {
            return Some(found);
        }
        assert!(Instant::now() < deadline, "the moment to kill never came");
        if child.try_wait().unwrap().is_some() {
            return None;
        }
    }
}

fn spin(microseconds: u64) {
    let end = Instant::now() + Duration::from_micros(microseconds);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// Runs the updater and kills it at a moment. None: it ended before.
fn kill_at(world: &mut World, arguments: &[&str], moment: &Moment) -> Option<()> {
    let mut command = world.install.command(arguments);
    let out = fs::File::create(world.left.with_file_name("killed")).unwrap();
    command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    // Known before the moment comes, which does not wait.
    let half = wait_for(&mut child, &|| record_of(world, "begin")).and_then(|()| owner::other_half(child.id()));
    let came = match moment {
        Moment::Record(state, later) => wait_for(&mut child, &|| record(world, state)).map(|_| spin(*later)),
        Moment::Move { part, back } => {
            let moves = wait_for(&mut child, &|| record(world, "swapping"));
            let at_move = moves.and_then(|moves| wait_for_move(&mut child, world, &moves, *part, *back));
            at_move.map(|_| ())
        }
    };
    let is_killed = came.is_some() && child.try_wait().unwrap().is_none();
    let status = if is_killed { owner::kill_both(&mut child, half) } else { child.wait().unwrap() };
    world.log.push(format!("{} {arguments:?}: {status}", if is_killed { "killed" } else { "not killed" }));
    is_killed.then_some(())
}

/// Waits until one of the moves was made, or unmade.
fn wait_for_move(child: &mut Child, world: &World, record: &Value, part: usize, back: bool) -> Option<()> {
    let moves = record["moves"]["moves"].as_array().unwrap();
    let one = &moves[part * moves.len() / 100];
    let path = one["path"].as_str()?;
    let inode = || look::look(&world.install.root.join(path)).map(|seen| seen.inode);
    let original = world.before.get(path.as_bytes()).map(|seen| seen.inode);
    if back {
        wait_for(child, &|| record_of(world, "undoing"))?;
    }
    wait_for(child, &|| ((inode() == original) == back).then_some(()))
}

fn record_of(world: &World, state: &str) -> Option<()> {
    record(world, state).map(|_| ())
}

/// Recovers, every third time after a recovery that is killed, too.
fn recover(world: &mut World, wrong: &mut Wrong) -> Option<Output> {
    if world.rng.chance(33) {
        let later = world.rng.below(30_000) as u64;
        let mut command = world.install.command(&["recover", "--json"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        spin(later);
        let half = owner::other_half(child.id());
        let status = owner::kill_both(&mut child, half);
        world.log.push(format!("recover, killed after {later} us: {status}"));
    }
    let output = world.run(&["recover", "--wait", "20s", "--json"]);
    expect(wrong, &output, 0).then_some(output)
}

#[test]
fn a_kill_at_any_move_of_an_update_costs_users_nothing() {
    cases("kill", 5, &|world, wrong| {
        let (moment, bundle) = (moment(world, false), world.bundle(1, ""));
        if kill_at(world, &["apply", bundle.to_str().unwrap(), "--json"], &moment).is_none() {
            return world.log.last().unwrap().rsplit_once(": ").unwrap().1.to_string();
        }
        let Some(output) = recover(world, wrong) else { return "not recovered".into() };
        let version = world.install.version();
        match version.as_str() {
            "1.0" => wrong.0.extend(world.judge_old(None, None, &[&output]).0),
            _ => wrong.0.extend(world.judge_new(&told(world, output)).0),
        }
        world.judge_settled(wrong, &version);
        format!("killed, {version} stands")
    });
}

/// The recovery's own output, and what the killed run and those before had said by then.
fn told(world: &World, output: Output) -> Vec<&'static Output> {
    let text = fs::read_to_string(world.left.with_file_name("killed")).unwrap();
    let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok());
    let killed = Output { code: 0, stdout: whole.collect::<Vec<_>>().join("\n"), stderr: String::new() };
    vec![Box::leak(Box::new(output)), Box::leak(Box::new(killed))]
}

#[test]
fn a_kill_on_the_way_back_costs_users_nothing() {
    cases("kill a rollback", 5, &|world, wrong| {
        let vandal = Vandal::new(world);
        let (moment, bundle) = (moment(world, true), world.bundle(1, &vandal.lines));
        if kill_at(world, &["apply", bundle.to_str().unwrap(), "--json"], &moment).is_none() {
            return world.log.last().unwrap().rsplit_once(": ").unwrap().1.to_string();
        }
        let Some(output) = recover(world, wrong) else { return "not recovered".into() };
        let left = world.left();
        let (vandal, end) = match left {
            Some(_) => (Some(&vandal), "killed after it ran"),
            None => (None, "killed before it ran"),
        };
        let told = told(world, output);
        wrong.0.extend(world.judge_old(vandal, left.as_ref(), &told).0);
        world.judge_settled(wrong, "1.0");
        end.into()
    });
}

// ---- restores ----

/// What users do with the new version: they change, delete and add files. Returns their paths.
fn use_it(world: &mut World) -> BTreeSet<Vec<u8>> {
    let mut edited = BTreeSet::new();
    let plain = |path: &Vec<u8>| world.versions.iter().all(|version| !version.contains_key(path));
    let is_there = |path: &Vec<u8>| world.place(path).symlink_metadata().is_ok_and(|data| data.is_file());
    // One name of several, or a part of a database, says something of the others, too.
    let is_alone = |path: &[u8]| {
        !String::from_utf8_lossy(path).ends_with("-wal") && !world.before.contains_key(&[path, b"-wal"].concat())
    };
    let theirs = world
        .before
        .iter()
        .filter(|(path, seen)| seen.kind == Kind::File && seen.links == 1 && plain(path) && is_alone(path));
    let theirs: Vec<Vec<u8>> = theirs.map(|(path, _)| path.clone()).filter(is_there).collect();
    for path in theirs {
        let place = world.place(&path);
        let may = fs::File::options().append(true).open(&place).is_ok();
        match world.rng.below(10) {
            0..2 if may => fs::write(&place, format!("later {}", world.rng.below(10))).unwrap(),
            2 if fs::remove_file(&place).is_ok() => {}
            _ => continue,
        }
        edited.insert(path);
    }
    for name in ["uploads/later.txt", "app/later.py", "later"] {
        world.install.write(name, "later");
        edited.insert(name.into());
    }
    edited
}

fn restore(world: &mut World, wrong: &mut Wrong, data: bool) -> String {
    let output = apply(world, 1, "");
    if let Some(end) = refused(world, &output, wrong) {
        return end;
    }
    if !expect(wrong, &output, 0) {
        return "not applied".into();
    }
    let edited = use_it(world);
    let later = look::snapshot(&world.install.root);
    let backup = backup_of(&output);
    let mut arguments = vec!["restore", &backup, "--json"];
    arguments.extend(data.then_some("--data"));
    let output = world.run(&arguments);
    if [1, 6].contains(&output.code) {
        wrong.0.extend(world.judge_refused(&output, &later).0);
        world.judge_settled(wrong, "2.0");
        return format!("restore refused: {}", output.error_code());
    }
    if expect(wrong, &output, 0) {
        wrong.0.extend(world.judge_restored(&edited, &later, data).0);
        world.judge_settled(wrong, "1.0");
    }
    "restored".into()
}

#[test]
fn a_restore_of_the_code_leaves_what_users_have() {
    cases("restore", 5, &|world, wrong| restore(world, wrong, false));
}

#[test]
fn a_restore_with_the_data_loses_nothing() {
    cases("restore --data", 5, &|world, wrong| restore(world, wrong, true));
}

#[test]
fn updates_in_a_row_and_all_pruning_cost_users_nothing() {
    cases("row", 1, &|world, wrong| {
        let mut done = 0;
        for at in 1..world.versions.len() {
            let before = look::snapshot(&world.install.root);
            let output = apply(world, at, "");
            if [1, 6].contains(&output.code) {
                wrong.0.extend(world.judge_refused(&output, &before).0);
            } else if expect(wrong, &output, 0) {
                done = at;
            }
        }
        wrong.0.extend(world.judge_kept().0);
        world.run(&["backups", "prune", "--keep", "1", "--json"]).expect(0);
        wrong.0.extend(world.judge_kept().0);
        world.judge_settled(wrong, &format!("{}.0", done + 1));
        format!("{done} updates")
    });
}
