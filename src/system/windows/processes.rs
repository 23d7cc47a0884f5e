//! Processes on Windows: who they are, held handles, console signals, and a start that is held until its
//! identity is on record.
//! Refuses to act on a bare pid: every act goes through a handle whose creation time was checked.
//!
//! The held start: the server is created suspended inside a job that ends it when the last handle of the job
//! closes (our death); the release clears that limit and lets it run.

use super::files::{check, is_one_of, wide};
use crate::system::starts::{Held, Running, StartedProcess, Starter, SuspendedStart};
use crate::system::{CommandLine, Credentials, Facts, LaunchSpec, Owner, ProcessId};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead};
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
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
use windows_sys::Win32::System::JobObjects::{
    CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, SetInformationJobObject,
};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW, CREATE_SUSPENDED, CREATE_UNICODE_ENVIRONMENT, CreateProcessW,
    DeleteProcThreadAttributeList, EXTENDED_STARTUPINFO_PRESENT, GetExitCodeProcess, GetProcessTimes,
    InitializeProcThreadAttributeList, OpenProcess, OpenProcessToken, PROC_THREAD_ATTRIBUTE_HANDLE_LIST,
    PROC_THREAD_ATTRIBUTE_JOB_LIST, PROCESS_INFORMATION, PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE,
    PROCESS_TERMINATE, ResumeThread, STARTF_USESTDHANDLES, STARTUPINFOEXW, TerminateProcess, UpdateProcThreadAttribute,
    WaitForSingleObject,
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
pub fn stands_in(_pid: u32, _folder: &Facts) -> bool {
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

/// Starts that this process makes.
#[derive(Debug)]
pub struct OwnChildren;

impl Starter for OwnChildren {
    /// Errors, too: another user is asked for.
    fn hold(&self, spec: &LaunchSpec) -> io::Result<Held> {
        Ok(Box::new(suspended(spec)?))
    }
}

/// A server that is created and does not run yet. Dropped, or when we die, it ends.
#[derive(Debug)]
struct Suspended {
    id: ProcessId,
    process: OwnedHandle,
    thread: OwnedHandle,
    /// The last handle of its job: closing it ends the server until the release.
    job: OwnedHandle,
}

/// The attributes of a start; freed when dropped.
struct Attributes(Vec<u64>);

impl Attributes {
    fn new(count: u32) -> io::Result<Self> {
        let mut size = 0;
        // SAFETY: null asks for the size.
        unsafe { InitializeProcThreadAttributeList(std::ptr::null_mut(), count, 0, &mut size) };
        let mut room = vec![0u64; size.div_ceil(8)];
        // SAFETY: `room` has the size that was asked for.
        check(unsafe { InitializeProcThreadAttributeList(room.as_mut_ptr().cast(), count, 0, &mut size) })?;
        Ok(Self(room))
    }

    fn set(&mut self, what: u32, handles: &[HANDLE]) -> io::Result<()> {
        let (list, at, size) = (self.0.as_mut_ptr().cast(), handles.as_ptr().cast(), size_of_val(handles));
        let (none, unasked) = (std::ptr::null_mut(), std::ptr::null());
        // SAFETY: the list is initialized; every caller keeps `handles` until the start is done.
        check(unsafe { UpdateProcThreadAttribute(list, 0, what as usize, at, size, none, unasked) })
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialized in `new`, freed once.
        unsafe { DeleteProcThreadAttributeList(self.0.as_mut_ptr().cast()) };
    }
}

fn limit_job(job: &OwnedHandle, flags: u32) -> io::Result<()> {
    let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
    limits.BasicLimitInformation.LimitFlags = flags;
    let (at, size) = ((&raw const limits).cast(), size_of_val(&limits) as u32);
    // SAFETY: the job is open; `at` points to `size` bytes of the type that the class wants.
    check(unsafe { SetInformationJobObject(job.as_raw_handle(), JobObjectExtendedLimitInformation, at, size) })
}

/// Prepares a server up to the last step. Errors: no such program, folder or output file; another user.
fn suspended(spec: &LaunchSpec) -> io::Result<Suspended> {
    let Some(name) = spec.argv.first() else { return Err(io::Error::other("the command is empty")) };
    if let Some(wanted) = &spec.credentials
        && !wanted.user.is_empty()
        && !wanted.user.eq_ignore_ascii_case(&own_credentials()?.user)
    {
        let text = format!("cannot start a server as the user {} without their password", wanted.user);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let program = find_program(name, spec)?;
    let log = |path: &Path| OpenOptions::new().append(true).create(true).open(spec.cwd.join(path));
    let files: [File; 3] = [File::open("NUL")?, log(&spec.stdout)?, log(&spec.stderr)?];
    let handles = files.each_ref().map(|file| file.as_raw_handle());
    for handle in handles {
        // SAFETY: the file is open. Only these three are inherited: the list below says so.
        check(unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT) })?;
    }
    // SAFETY: null means no name and our own rights.
    let job = owned(unsafe { CreateJobObjectW(std::ptr::null(), std::ptr::null()) })?;
    limit_job(&job, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)?;
    let jobs = [job.as_raw_handle()];
    let mut attributes = Attributes::new(2)?;
    attributes.set(PROC_THREAD_ATTRIBUTE_HANDLE_LIST, &handles)?;
    // In the job from its first moment, so that our death at any instant ends it.
    attributes.set(PROC_THREAD_ATTRIBUTE_JOB_LIST, &jobs)?;

    let mut start = STARTUPINFOEXW { lpAttributeList: attributes.0.as_mut_ptr().cast(), ..Default::default() };
    start.StartupInfo.cb = size_of::<STARTUPINFOEXW>() as u32;
    start.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
    [start.StartupInfo.hStdInput, start.StartupInfo.hStdOutput, start.StartupInfo.hStdError] = handles;
    let (program, cwd) = (wide(program.as_os_str())?, wide(spec.cwd.as_os_str())?);
    let (mut line, environment) = (wide(OsStr::new(&command_line(&spec.argv)))?, environment(&spec.env)?);
    let flags = CREATE_SUSPENDED
        | CREATE_NEW_PROCESS_GROUP
        | CREATE_NO_WINDOW
        | CREATE_UNICODE_ENVIRONMENT
        | EXTENDED_STARTUPINFO_PRESENT;
    let mut made = PROCESS_INFORMATION::default();
    // SAFETY: all texts end with 0 and live over the call, the environment with two; the start info says its size
    // and its attributes, whose handles are open.
    check(unsafe {
        CreateProcessW(
            program.as_ptr(),
            line.as_mut_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            1,
            flags,
            environment.as_ptr().cast(),
            cwd.as_ptr(),
            (&raw const start).cast(),
            &mut made,
        )
    })?;
    let (process, thread) = (owned(made.hProcess)?, owned(made.hThread)?);
    let id = ProcessId { pid: made.dwProcessId, start: created(process.as_raw_handle())? };
    Ok(Suspended { id, process, thread, job })
}

/// The file of the program: a name with a separator is a path (from the working folder), another is looked up in
/// the PATH of the server's own environment.
fn find_program(name: &str, spec: &LaunchSpec) -> io::Result<PathBuf> {
    let as_file = |path: PathBuf| {
        let exe = PathBuf::from(format!("{}.exe", path.display()));
        [path, exe].into_iter().find(|path| path.is_file())
    };
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such program"));
    if name.contains(['/', '\\']) {
        return as_file(spec.cwd.join(name)).ok_or_else(missing);
    }
    let path = spec.env.iter().find(|(key, _)| key.eq_ignore_ascii_case("PATH")).map_or("", |(_, path)| path);
    let places = path.split(';').filter(|place| !place.is_empty()).map(|place| spec.cwd.join(place));
    places.map(|place| place.join(name)).find_map(as_file).ok_or_else(missing)
}

/// Quotes so that the C runtime and CommandLineToArgvW read the same arguments again.
fn command_line(argv: &[String]) -> String {
    let quote = |arg: &String| {
        if !arg.is_empty() && !arg.contains([' ', '\t', '"', '\n', '\u{b}']) {
            return arg.clone();
        }
        let (mut text, mut slashes) = (String::from("\""), 0);
        for c in arg.chars() {
            match c {
                '\\' => slashes += 1,
                // A quote needs its own backslash, and those before it doubled.
                '"' => text.push_str(&"\\".repeat(slashes + 1)),
                _ => {}
            }
            slashes = if c == '\\' { slashes } else { 0 };
            text.push(c);
        }
        text.push_str(&"\\".repeat(slashes));
        text.push('"');
        text
    };
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn environment(pairs: &[(String, String)]) -> io::Result<Vec<u16>> {
    let mut block = Vec::new();
    for (key, value) in pairs {
        block.extend(wide(OsStr::new(&format!("{key}={value}")))?);
    }
    if block.is_empty() {
        block.push(0);
    }
    block.push(0);
    Ok(block)
}

impl SuspendedStart for Suspended {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn release(self: Box<Self>) -> io::Result<Running> {
        limit_job(&self.job, 0)?;
        // SAFETY: the handle of the first thread is open.
        if unsafe { ResumeThread(self.thread.as_raw_handle()) } == u32::MAX {
            let error = io::Error::last_os_error();
            limit_job(&self.job, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)?;
            return Err(error);
        }
        Ok(Box::new(Started { id: self.id, process: self.process }))
    }
}

/// A server that we started. Dropping this leaves it running.
#[derive(Debug)]
struct Started {
    id: ProcessId,
    process: OwnedHandle,
}

impl StartedProcess for Started {
    fn id(&self) -> ProcessId {
        self.id
    }

    fn exited(&mut self) -> io::Result<Option<String>> {
        if !has_ended(&self.process, 0)? {
            return Ok(None);
        }
        let mut code = 0;
        // SAFETY: the handle is open; the pointer is to a local.
        check(unsafe { GetExitCodeProcess(self.process.as_raw_handle(), &mut code) })?;
        Ok(Some(format!("exit code {}", code as i32)))
    }
}

/// Reads a LaunchSpec from stdin, starts it, waits for its end and ends with the same code. `hold` does not need
/// this here; it stands for the hidden command, which exists on every system.
pub fn run_held() -> io::Result<Infallible> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let suspended = suspended(&serde_json::from_str(&line)?)?;
    let process = suspended.process.try_clone()?;
    Box::new(suspended).release()?;
    has_ended(&process, u32::MAX)?;
    let mut code = 0;
    // SAFETY: the handle is open; the pointer is to a local.
    check(unsafe { GetExitCodeProcess(process.as_raw_handle(), &mut code) })?;
    std::process::exit(code as i32)
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
