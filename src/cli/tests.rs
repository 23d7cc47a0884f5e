//! Tests of the command line.

use super::*;
use clap::CommandFactory;
use std::path::Path;

fn read(line: &str) -> Result<Cli, Ended> {
    parse(std::iter::once("updater").chain(line.split_whitespace()).map(OsString::from))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn apply_takes_its_options() {
    let cli = read("apply a.zip --json --set PORT=8081 --set A=b=c --wait 2m --port 8081 --sha256 AB --root /x");
    assert!(matches!(cli, Err(Ended::Usage { json: true, events: true, .. })));
    let cli = read("apply a.zip --json --set PORT=8081 --set A=b=c --wait 2m --port 8081 --root /x -v").unwrap();
    let Command::Apply(apply) = &cli.command else { panic!("not apply") };
    assert_eq!(apply.set, [("PORT".into(), "8081".into()), ("A".into(), "b=c".into())]);
    assert_eq!(apply.run.wait, Some(Duration::from_secs(120)));
    assert_eq!(cli.global.root.as_deref(), Some(Path::new("/x")));
    assert!(cli.command.writes_events() && cli.global.report().verbose);
}

#[test]
fn the_legacy_call_is_an_update() {
    let cli = read("--zip-url http://x/a.zip --port 8080 --use-waitress --root /x").unwrap();
    let Command::Apply(apply) = &cli.command else { panic!("not apply") };
    assert_eq!(apply.bundle.as_deref(), Some("http://x/a.zip".as_ref()));
    assert_eq!((apply.run.port, apply.legacy_port), (None, Some(8080)));
    assert_eq!(apply.set, [("USE_WAITRESS".into(), "True".into())]);
    let cli = read("--zip-url=a.zip --port=1").unwrap();
    assert!(matches!(&cli.command, Command::Apply(apply) if apply.set.is_empty()));
    for line in ["--zip-url", "--zip-url x --port 0", "--zip-url x --prot 1", "--zip-url x apply"] {
        assert!(matches!(read(line), Err(Ended::Usage { events: true, .. })), "{line}");
    }
}

#[test]
fn every_command_is_there() {
    for line in [
        "plan",
        "plan a.zip --dry-run",
        "status --json",
        "verify --repair --from x.zip --no-restart",
        "recover --if-needed --boot --data keep",
        "init --force",
        "init --boot-recovery --remove",
        "init --systemd-helper --remove",
        "status --follow --json",
        "shim --remove",
        "doctor --json",
        "apply x.zip --detach",
        "__launch --port x",
        "--color never status -q",
    ] {
        assert!(read(line).is_ok(), "{line}");
    }
    for line in [
        "",
        "aply",
        "apply --prot 1",
        "apply --port 0",
        "apply --wait 5",
        "verify --from x",
        "recover --data both",
        "init --remove",
        "init --force --boot-recovery",
        "init --systemd-helper --boot-recovery",
        "apply --set x",
        "apply --zzz=\u{e9}",
    ] {
        let Err(Ended::Usage { failure, .. }) = read(line) else { panic!("{line} was accepted") };
        assert!(failure.message.is_ascii(), "{line}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "-V", "apply --help", "help recover"] {
        let Err(Ended::Text(text)) = read(line) else { panic!("{line}") };
        assert!(text.is_ascii() && text.ends_with('\n') && !text.contains("__launch"));
    }
    let error = ErrorRecord { code: Code::Usage.to_string(), message: "x".into(), path: None, remedy: None };
    assert_eq!(
        report::ascii_json(&error_object(&error)),
        r#"{"error":{"code":"usage","message":"x","path":null,"remedy":null}}"#
    );
}

#[test]
fn the_nearest_root_is_found_and_a_backup_never() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let make = |name: &str| {
        let path = top.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    };
    make("web/run.py");
    make("web/.updater/staging/x/run.py");
    make("web/backups/one/run.py");
    make("web/backups/one/backup.json");
    make("other/bin/updater");
    let exe = top.join("other/bin/updater");
    for cwd in ["web", "web/backups/one", "web/.updater/staging/x", "web/.updater"] {
        assert_eq!(find_root(None, &top.join(cwd), &exe).unwrap().path(), top.join("web"), "{cwd}");
    }
    // An application's own file of that name.
    make("web/backup.json");
    assert_eq!(find_root(None, &top.join("web"), &exe).unwrap().path(), top.join("web"));
    let own = top.join("web/.updater/updater");
    assert_eq!(find_root(None, &top.join("other"), &own).unwrap().path(), top.join("web"));
    assert_eq!(find_root(Some(Path::new("../web")), &top.join("other"), &exe).unwrap().path(), top.join("web"));
    for given in ["web/backups/one", "web/.updater", "nowhere"] {
        let error = find_root(Some(Path::new(given)), &top, &exe).unwrap_err();
        assert_eq!(crate::base::error::record(&error).code, "no-root");
    }
    let error = find_root(None, &top.join("other"), &exe).unwrap_err();
    assert!(error.to_string().contains(&format!("searched: {}, ", top.join("other").display())));
    assert_eq!(crate::base::error::class(&error) as i32, 2);
}
