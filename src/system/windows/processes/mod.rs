//! Processes on Windows: who they are, held handles, console signals; in `start`, the suspended start of a server.
//! Refuses to act on a bare pid: every act goes through a handle whose creation time was checked.

mod start;

pub use start::{OwnChildren, exec_when_released};

use super::files::{check, is_one_of};
use crate::system::{CommandLine, Credentials, FileMetadata, Owner, ProcessId};
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use windows_sys::Wdk::System::SystemInformation::NtQuerySystemInformation;
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_INVALID_PARAMETER, ERROR_NO_MORE_FILES, FILETIME, GetHandleInformation, HANDLE,
    HANDLE_FLAG_INHERIT, INVALID_HANDLE_VALUE, SetHandleInformation, WAIT_OBJECT_0, WAIT_TIMEOUT,
};
use windows_sys::Win32::Security::{GetTokenInformation, LookupAccountSidW, TOKEN_QUERY, TOKEN_USER, TokenUser};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, GenerateConsoleCtrlEvent, GetStdHandle, STD_ERROR_HANDLE, STD_INPUT_HANDLE,
    STD_OUTPUT_HANDLE, SetConsoleCtrlHandler,
};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, PROCESSENTRY32W, Process32FirstW, Process32NextW, TH32CS_SNAPPROCESS, TH32CS_SNAPTHREAD,
    THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::Threading::{
    GetExitCodeProcess, GetProcessTimes, OpenProcess, OpenProcessToken, PROCESS_QUERY_LIMITED_INFORMATION,
    PROCESS_SYNCHRONIZE, PROCESS_TERMINATE, TerminateProcess, WaitForSingleObject,
};
use windows_sys::Win32::UI::WindowsAndMessaging::{PostThreadMessageW, WM_CLOSE};

/// Takes over a handle that a call gave. Errors: the call failed.
fn owned(handle: HANDLE) -> io::Result<OwnedHandle> {
    if handle.is_null() || handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system just gave it to us, and nobody else closes it.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Opens a process; None: no such process.
fn open(pid: u32, access: u32) -> io::Result<Option<OwnedHandle>> {
    // SAFETY: takes numbers only.
    match owned(unsafe { OpenProcess(access, 0, pid) }) {
        Ok(handle) => Ok(Some(handle)),
        Err(error) if is_one_of(&error, &[ERROR_INVALID_PARAMETER]) => Ok(None),
        Err(error) => Err(error),
    }
}

fn has_ended(process: &OwnedHandle, millis: u32) -> io::Result<bool> {
    // SAFETY: the handle is open while `process` lives.
    match unsafe { WaitForSingleObject(process.as_raw_handle(), millis) } {
        WAIT_OBJECT_0 => Ok(true),
        WAIT_TIMEOUT => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

fn created(process: HANDLE) -> io::Result<u64> {
    let mut times = [FILETIME::default(); 4];
    let [creation, exit, kernel, user] = &mut times;
    // SAFETY: the handle is open in every caller; the four pointers are to locals.
    check(unsafe { GetProcessTimes(process, creation, exit, kernel, user) })?;
    Ok(u64::from(times[0].dwHighDateTime) << 32 | u64::from(times[0].dwLowDateTime))
}

/// Who runs under this pid now. None: nobody, or only a dead process that is still held.
pub fn identity(pid: u32) -> io::Result<Option<ProcessId>> {
    let process = match open(pid, PROCESS_QUERY_LIMITED_INFORMATION | PROCESS_SYNCHRONIZE) {
        // The right to wait may be missing where the right to ask is not.
        Err(error) if is_one_of(&error, &[ERROR_ACCESS_DENIED]) => open(pid, PROCESS_QUERY_LIMITED_INFORMATION),
        opened => opened,
    };
    let Some(process) = process? else { return Ok(None) };
    let mut code = 0;
    // SAFETY: the handle is open; the pointer is to a local.
    check(unsafe { GetExitCodeProcess(process.as_raw_handle(), &mut code) })?;
    // A living process says 259; a dead one may have chosen the same number, so the wait decides.
    let alive = code == 259 && !has_ended(&process, 0).unwrap_or(false);
    let id = ProcessId { pid, start: created(process.as_raw_handle())? };
    Ok(alive.then_some(id))
}

/// Errors: the list of processes cannot be read, or does not hold this process.
pub fn list_is_readable() -> io::Result<()> {
    let own = identity(std::process::id())?;
    own.map(drop).ok_or_else(|| io::Error::other("the list of processes does not hold this process"))
}

/// The pid of the parent. None: it has ended (its pid may belong to another by now), or the process is gone.
pub fn parent(pid: u32) -> io::Result<Option<u32>> {
    // SAFETY: takes numbers only.
    let snapshot = owned(unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0) })?;
    let mut entry = PROCESSENTRY32W { dwSize: size_of::<PROCESSENTRY32W>() as u32, ..Default::default() };
    // SAFETY: the snapshot is open; `entry` says its own size.
    let mut more = check(unsafe { Process32FirstW(snapshot.as_raw_handle(), &mut entry) });
    loop {
        match more {
            Ok(()) if entry.th32ProcessID == pid => break,
            // SAFETY: as above.
            Ok(()) => more = check(unsafe { Process32NextW(snapshot.as_raw_handle(), &mut entry) }),
            Err(error) if is_one_of(&error, &[ERROR_NO_MORE_FILES]) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let above = entry.th32ParentProcessID;
    // The number stays after the parent's end: a parent that is younger than its child is another process.
    match (identity(above), identity(pid)) {
        (Ok(Some(above_id)), Ok(Some(own))) if above_id.start <= own.start => Ok(Some(above)),
        (Err(error), _) if is_one_of(&error, &[ERROR_ACCESS_DENIED]) => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error),
        _ => Ok(None),
    }
}

/// A process held so that no later one of the same pid can be meant.
#[derive(Debug)]
pub struct Handle {
    id: ProcessId,
    process: OwnedHandle,
}

impl Handle {
    /// None: it is gone, or the pid belongs to another process by now.
    pub fn open(id: ProcessId) -> io::Result<Option<Handle>> {
        let Some(process) = open(id.pid, PROCESS_QUERY_LIMITED_INFORMATION | PROCESS_SYNCHRONIZE)? else {
            return Ok(None);
        };
        let same = created(process.as_raw_handle())? == id.start && !has_ended(&process, 0)?;
        Ok(same.then_some(Handle { id, process }))
    }

    /// Who is held.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// True when the system lets us end it (also when it has ended: then there is nothing to forbid).
    pub fn may_signal(&self) -> io::Result<bool> {
        match open(self.id.pid, PROCESS_TERMINATE) {
            Err(error) if is_one_of(&error, &[ERROR_ACCESS_DENIED]) => Ok(!self.is_alive()?),
            opened => opened.map(|_| true),
        }
    }

    /// Asks it to end: CTRL_BREAK to its group where we share its console, else WM_CLOSE to its threads.
    /// Programs may hear neither. Ok when it has ended already.
    pub fn ask_to_end(&self) -> io::Result<()> {
        // While the handle is open the pid cannot be reused, so it may be used by number here.
        // SAFETY: takes numbers only.
        if !self.is_alive()? || unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self.id.pid) } != 0 {
            return Ok(());
        }
        // SAFETY: takes numbers only.
        let snapshot = owned(unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0) })?;
        let mut entry = THREADENTRY32 { dwSize: size_of::<THREADENTRY32>() as u32, ..Default::default() };
        // SAFETY: the snapshot is open; `entry` says its own size.
        let mut more = unsafe { Thread32First(snapshot.as_raw_handle(), &mut entry) };
        while more != 0 {
            if entry.th32OwnerProcessID == self.id.pid {
                // SAFETY: takes numbers only; a thread without a queue refuses, which is no harm.
                unsafe { PostThreadMessageW(entry.th32ThreadID, WM_CLOSE, 0, 0) };
            }
            // SAFETY: as for the first one.
            more = unsafe { Thread32Next(snapshot.as_raw_handle(), &mut entry) };
        }
        Ok(())
    }

    /// Ends it. Ok when it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        let Some(process) = open(self.id.pid, PROCESS_TERMINATE | PROCESS_SYNCHRONIZE)? else { return Ok(()) };
        // SAFETY: the handle is open; the pid cannot have been reused while `self.process` is open.
        match check(unsafe { TerminateProcess(process.as_raw_handle(), 1) }) {
            Err(_) if has_ended(&process, 0)? => Ok(()),
            done => done,
        }
    }

    /// Waits for its end, `limit` at most; true when it has ended.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        // The greatest number would mean to wait for ever.
        has_ended(&self.process, u32::try_from(limit.as_millis()).unwrap_or(u32::MAX - 1).min(u32::MAX - 1))
    }

    /// True while it runs.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(!self.wait(Duration::ZERO)?)
    }
}

/// True for a process of a user who has nothing to do with the install: users are not told apart here.
pub fn is_strangers(_pid: u32, _owner: Owner) -> bool {
    false
}

/// Under which user a process runs; the numbers are 0 here.
pub fn credentials(pid: u32) -> io::Result<Credentials> {
    let process = open(pid, PROCESS_QUERY_LIMITED_INFORMATION)?.ok_or(io::ErrorKind::NotFound)?;
    let mut token = std::ptr::null_mut();
    // SAFETY: the handle is open; the pointer is to a local.
    check(unsafe { OpenProcessToken(process.as_raw_handle(), TOKEN_QUERY, &mut token) })?;
    let token = owned(token)?;
    // TOKEN_USER and the longest SID (68 bytes) fit; u64 keeps it aligned.
    let mut buffer = [0u64; 32];
    let (at, size, mut used) = (buffer.as_mut_ptr(), size_of_val(&buffer) as u32, 0);
    // SAFETY: the token is open; `at` points to `size` writable bytes.
    check(unsafe { GetTokenInformation(token.as_raw_handle(), TokenUser, at.cast(), size, &mut used) })?;
    // SAFETY: the call filled a TOKEN_USER at the start of the aligned buffer.
    let sid = unsafe { (*at.cast::<TOKEN_USER>()).User.Sid };
    let (mut name, mut domain) = ([0u16; 257], [0u16; 257]);
    let (mut name_size, mut domain_size, mut kind) = (257, 257, 0);
    let (to, place) = (name.as_mut_ptr(), domain.as_mut_ptr());
    // SAFETY: the SID lies in `buffer`; both texts have the room that is said.
    check(unsafe { LookupAccountSidW(std::ptr::null(), sid, to, &mut name_size, place, &mut domain_size, &mut kind) })?;
    let user = String::from_utf16_lossy(name.get(..name_size as usize).unwrap_or(&[]));
    Ok(Credentials { user, ..Credentials::default() })
}

/// The number of the user as whom we run: there are none here.
pub fn own_uid() -> u32 {
    0
}

/// Under which user we run.
pub fn own_credentials() -> io::Result<Credentials> {
    credentials(std::process::id())
}

/// Its command line and environment. Errors: they may not be read, or a part is no Unicode and could not be
/// given back as it is (`InvalidData`, naming the part).
pub fn command_of(pid: u32) -> io::Result<CommandLine> {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
    let mut system = System::new().map_err(io::Error::other)?;
    let what = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always).with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[Pid::from_u32(pid)]), true, what);
    let process = system.process(Pid::from_u32(pid)).ok_or(io::ErrorKind::NotFound)?;
    let text = |part: &std::ffi::OsString| {
        let error =
            || io::Error::new(io::ErrorKind::InvalidData, format!("'{}' is not Unicode", part.to_string_lossy()));
        part.to_str().map(str::to_string).ok_or_else(error)
    };
    let argv = process.cmd().iter().map(text).collect::<io::Result<_>>()?;
    let mut env = Vec::new();
    for part in process.environ() {
        let pair = text(part)?;
        // Hidden variables such as `=C:=C:\x`: the first character belongs to the name.
        if let Some((at, _)) = pair.char_indices().skip(1).find(|(_, c)| *c == '=') {
            env.push((pair[..at].to_string(), pair[at + 1..].to_string()));
        }
    }
    Ok(CommandLine { argv, env })
}

/// Every process whose environment, as it was started with it, holds this variable; those of others, which we may
/// not look into, are left out. A session, as others know it, is nothing here.
pub fn marked(name: &str, value: &str, _leader: Option<u32>) -> io::Result<Vec<ProcessId>> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
    let mut system = System::new().map_err(io::Error::other)?;
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let wanted = format!("{name}={value}");
    let mut found = Vec::new();
    for (pid, process) in system.processes() {
        if process.environ().iter().any(|variable| *variable == *wanted.as_str()) {
            found.extend(identity(pid.as_u32())?);
        }
    }
    Ok(found)
}

/// The ports on which the process listens in another network: there is but one here.
pub fn ports_elsewhere(_pid: u32) -> io::Result<Vec<u16>> {
    Ok(Vec::new())
}

/// The names of the users whose processes listen on this port: those are told by the processes, which are all listed.
pub fn users_listening(_port: u16) -> Vec<String> {
    Vec::new()
}

/// True when the process stands in this very folder under another name: a folder has one name here.
pub fn stands_in(_pid: u32, _folder: &FileMetadata) -> bool {
    false
}

/// Where its standard output and error go: the system does not tell, not even of a process that we may open.
pub fn outputs(pid: u32) -> [Option<PathBuf>; 2] {
    drop(open(pid, PROCESS_QUERY_LIMITED_INFORMATION));
    [None, None]
}

/// SYSTEM_TIMEOFDAY_INFORMATION, which windows-sys gives without its fields.
#[repr(C)]
#[derive(Default)]
struct TimeOfDay {
    boot_time: i64,
    current_time: i64,
    zone_bias: i64,
    zone: u32,
    reserved: u32,
    boot_time_bias: u64,
    sleep_time_bias: u64,
}

/// A name of this run of the system; another after every boot.
pub fn boot_id() -> io::Result<String> {
    const SYSTEM_TIME_OF_DAY: i32 = 3;
    let mut info = TimeOfDay::default();
    let (at, size, mut used) = ((&raw mut info).cast(), size_of::<TimeOfDay>() as u32, 0);
    // SAFETY: `at` points to `size` writable bytes of plain numbers.
    let status = unsafe { NtQuerySystemInformation(SYSTEM_TIME_OF_DAY, at, size, &mut used) };
    if status < 0 {
        return Err(io::Error::other(format!("the boot time is unknown (status {status:#x})")));
    }
    // Setting the clock moves both numbers; their difference stays.
    Ok(format!("{:x}", info.boot_time.wrapping_sub(info.boot_time_bias as i64)))
}

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);
static TERMINATIONS: AtomicUsize = AtomicUsize::new(0);

/// # Safety
/// Called by the system, on a thread of its own.
unsafe extern "system" fn on_console(event: u32) -> i32 {
    let count = if event == CTRL_C_EVENT { &INTERRUPTS } else { &TERMINATIONS };
    count.fetch_add(1, Ordering::SeqCst);
    1
}

/// The console signals that came, counted and not acted on.
#[derive(Debug)]
pub struct Signals(());

impl Signals {
    /// Takes the signals over, for the rest of the process.
    pub fn install() -> io::Result<Signals> {
        // SAFETY: the handler is a function that lives for ever and only adds to an atomic.
        check(unsafe { SetConsoleCtrlHandler(Some(on_console), 1) })?;
        Ok(Signals(()))
    }

    /// How many CTRL_C came.
    pub fn interrupts(&self) -> usize {
        INTERRUPTS.load(Ordering::SeqCst)
    }

    /// How many CTRL_BREAK, close, log-off and shutdown events came.
    pub fn terminations(&self) -> usize {
        TERMINATIONS.load(Ordering::SeqCst)
    }
}

/// True once a console event came that asks this process to end.
pub fn was_asked_to_end() -> bool {
    INTERRUPTS.load(Ordering::SeqCst) > 0 || TERMINATIONS.load(Ordering::SeqCst) > 0
}

/// What a caller left open beyond the standard handles cannot be listed here. This takes the inherit mark from the
/// standard ones, so that no server keeps the caller's; a missing one is no error.
pub fn close_inherited(_kept: &[i32]) -> io::Result<()> {
    for which in [STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, STD_ERROR_HANDLE] {
        // SAFETY: takes a number only.
        let handle = unsafe { GetStdHandle(which) };
        let mut flags = 0;
        // SAFETY: the pointer is to a local; a handle that is not valid is refused.
        if !handle.is_null() && unsafe { GetHandleInformation(handle, &mut flags) } != 0 {
            // SAFETY: the handle was just seen to be valid. Consoles may refuse, which is no harm.
            unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, 0) };
        }
    }
    Ok(())
}
