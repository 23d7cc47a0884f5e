//! What the two folders `linux/` and `windows/` both give, with its type: a function that one system lacks, or takes
//! otherwise, ends the build there. Where a caller chooses between two ways, a trait is the contract instead (`service`,
//! `starts`).
//! Refuses to run: nothing here is called.

#![expect(clippy::type_complexity, reason = "the types are what this file is for, each spelled out")]

use super::*;
use crate::roles::{Given, Role};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::time::Duration;

const _FILES: () = {
    let _: fn(&Path) -> Option<Vec<u8>> = files::path_to_bytes;
    let _: fn(&[u8]) -> PathBuf = files::path_from_bytes;
    let _: fn(&str) -> Option<&'static str> = files::bad_name;
    let _: (u32, usize) = (files::MODE_BITS, files::MAX_PATH);
    let _: fn(&Path) -> Result<FileMetadata> = files::metadata;
    let _: fn(&File) -> Result<FileMetadata> = files::metadata_of;
    let _: fn() -> Vec<FileMetadata> = files::own_files;
    let _: fn(&Path) -> Result<(u64, u64)> = files::mount;
    let _: [fn(&Path) -> Result<u64>; 2] = [files::allocated, files::free_space];
    let _: fn(&Path) -> Result<Option<&'static str>> = files::obstacle;
    let _: fn(&Path) -> Result<Attributes> = files::attributes;
    let _: fn(&Path, &Path) -> Result<bool> = files::same_attributes;
    let _: fn(&Path, &Path) -> Result<Vec<String>> = files::copy_attributes;
    let _: fn(&Path, &Attributes) -> Result<Vec<String>> = files::give_attributes;
    let _: [fn(&Path) -> Result<bool>; 2] = [files::has_default_list, files::may_clone];
    let _: fn(&Path, Owner) -> Result<()> = files::set_owner;
    let _: fn(&Path, u32) -> Result<()> = files::set_mode;
    let _: fn(&Path, i64) -> Result<()> = files::set_mtime;
    let _: [fn(&Path) -> Result<()>; 3] = [files::sync_file, files::sync_folder, files::sync_tree];
    let _: [fn(&Path) -> Result<()>; 2] = [files::make_folder, files::private_folder];
    let _: [fn(&Path) -> Result<()>; 3] = [files::remove_file, files::remove_folder, files::remove_tree];
    let _: [fn(&Path) -> Result<File>; 2] = [files::open_plain, files::open_to_read];
    let _: [fn(&Path) -> Result<File>; 2] = [files::open_to_change, files::create_new];
    let _: [fn(&Path) -> Result<File>; 2] = [files::open_private, files::open_log];
    let _: fn(&Path) -> Result<PathBuf> = files::link_target;
    let _: fn(&Path) -> Result<Vec<OsString>> = files::names;
    let _: fn(&File, &File) -> Result<bool> = files::clone_contents;
    let _: fn(&File, u64) -> Result<()> = files::preallocate;
    let _: fn(&Path, &Path) -> Result<bool> = files::link_file;
    let _: [fn(&Path, &Path) -> Result<()>; 2] = [files::make_link, files::inherit_list];
    let _: [fn(&Path, &Path) -> Result<()>; 2] = [files::rename_new, files::rename_over];
    let _: fn(&Path) -> bool = files::is_per_process;
    let _: fn(&Path, &Credentials) -> bool = files::may_write;
    let _: fn(&Path) -> Result<files::Folder> = files::Folder::open;
    let _: fn(&files::Folder, &Path) -> Result<bool> = files::Folder::is_at;
    let _: fn(&files::Folder) -> Result<()> = files::Folder::enter;
};

const _PROCESSES: () = {
    use processes::{Handle, Signals};
    let _: fn(u32) -> Result<Option<ProcessId>> = processes::identity;
    let _: fn(u32) -> Result<Option<u32>> = processes::parent;
    let _: fn() -> Result<()> = processes::list_is_readable;
    let _: fn(u32) -> Result<Credentials> = processes::credentials;
    let _: fn() -> Result<Credentials> = processes::own_credentials;
    let _: fn() -> u32 = processes::own_uid;
    let _: fn(u32, Owner) -> bool = processes::is_strangers;
    let _: fn(u32) -> Result<CommandLine> = processes::command_of;
    let _: fn(&str, &str, Option<u32>) -> Result<Vec<ProcessId>> = processes::marked;
    let _: fn(u32) -> [Option<PathBuf>; 2] = processes::outputs;
    let _: fn() -> Result<String> = processes::boot_id;
    let _: fn(u32) -> Result<Vec<u16>> = processes::ports_elsewhere;
    let _: fn(u16) -> Vec<String> = processes::users_listening;
    let _: fn(u32, &FileMetadata) -> bool = processes::stands_in;
    let _: fn(&[i32]) -> Result<()> = processes::close_inherited;
    let _: fn() -> Result<Infallible> = processes::exec_when_released;
    let _: fn(ProcessId) -> Result<Option<Handle>> = Handle::open;
    let _: fn(&Handle) -> ProcessId = Handle::id;
    let _: [fn(&Handle) -> Result<bool>; 2] = [Handle::may_signal, Handle::is_alive];
    let _: [fn(&Handle) -> Result<()>; 2] = [Handle::ask_to_end, Handle::kill];
    let _: fn(&Handle, Duration) -> Result<bool> = Handle::wait;
    let _: fn() -> Result<Signals> = Signals::install;
    let _: fn() -> bool = processes::was_asked_to_end;
    let _: [fn(&Signals) -> usize; 2] = [Signals::interrupts, Signals::terminations];
};

const _RIGHTS: () = {
    let _: [fn(&Path) -> Result<Option<Distrust>>; 2] = [trust::distrust, trust::of_one];
    let _: fn(&Path, &Path, fn(&OsStr) -> bool) -> Result<()> = trust::guard;
    let _: fn() -> bool = trust::is_guarded;
    let _: fn(&Path) -> Result<trust::Anchored> = trust::anchored;
    let _: fn() -> bool = monitor::is_monitored;
    let _: fn() -> Option<File> = monitor::handed_bundle;
    let _: fn(Given) -> Vec<i32> = monitor::take;
    let _: fn(&str, Given, Box<Role>) -> Result<Infallible> = monitor::descend;
    let _: fn(&[OsString], Owner, Option<&str>, Option<File>, &[i32]) -> Result<Option<u8>> = monitor::run;
};

const _ESCAPE: () = {
    use escape::{ControlSocket, RemoteUpdater};
    let _: fn(&[ProcessId]) -> Result<Option<Tie>> = escape::tied_to;
    let _: fn(Option<&Tie>, &str) -> Result<std::result::Result<EscapeRoute, String>> = escape::way_out;
    let _: fn() -> Option<PathBuf> = escape::roots_meeting_place;
    let _: fn(&EscapeRoute, &Handoff<'_>) -> Result<RemoteUpdater> = escape::send;
    let _: fn(&OsStr) -> Result<()> = escape::depart;
    let _: fn(Option<&OsStr>, &Path) -> Result<Infallible> = escape::arrive;
    let _: fn(&RemoteUpdater) -> u32 = RemoteUpdater::pid;
    let _: fn(&mut RemoteUpdater, Duration) -> Result<Option<Notice>> = RemoteUpdater::hear;
    let _: [fn(&RemoteUpdater) -> Result<()>; 2] = [RemoteUpdater::interrupt, RemoteUpdater::ask_to_end];
    let _: fn(i32) -> Result<ControlSocket> = ControlSocket::taken;
    let _: fn(&ControlSocket, Notice) = ControlSocket::notify;
};

const _BOOT: () = {
    let _: fn() -> Option<String> = boot::refusal;
    let _: fn(SystemPart, &str) -> [PathBuf; 2] = boot::places;
    let _: fn(SystemPart, &BootPlan) -> Result<[String; 2]> = boot::texts;
    let _: [fn(SystemPart, &str) -> Result<()>; 2] = [boot::enable, boot::disable];
    let _: fn() -> Result<()> = boot::reload;
};

const _REMEDIES: () = {
    let _: fn(&Unit) -> String = remedies::stop_service;
    let _: fn(Option<&Unit>) -> String = remedies::ask_about;
    let _: fn(u32) -> String = remedies::enter_network;
    let _: fn() -> &'static str = remedies::join_group;
    let _: fn(&str) -> String = remedies::as_root;
    let _: [&str; 2] = [remedies::SEE_PROCESSES, remedies::LEAVE_THE_SERVER];
};
