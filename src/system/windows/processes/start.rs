//! A start on Windows that is suspended until its identity is on record: the server is created suspended inside a job that
//! ends it when the last handle of the job closes (our death); the release clears that limit and lets it run.
//! Refuses to start a server as another user, whose password nobody has.

use super::super::files::{check, wide};
use super::{created, has_ended, own_credentials, owned};
use crate::system::starts::Exit;
use crate::system::starts::{Running, StartedProcess, Starter, SuspendedServer, SuspendedStart};
use crate::system::{LaunchSpec, ProcessId};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead};
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use windows_sys::Win32::Foundation::{HANDLE, HANDLE_FLAG_INHERIT, SetHandleInformation};
use windows_sys::Win32::System::JobObjects::{
    CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, SetInformationJobObject,
};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW, CREATE_SUSPENDED, CREATE_UNICODE_ENVIRONMENT, CreateProcessW,
    DeleteProcThreadAttributeList, EXTENDED_STARTUPINFO_PRESENT, GetExitCodeProcess, InitializeProcThreadAttributeList,
    PROC_THREAD_ATTRIBUTE_HANDLE_LIST, PROC_THREAD_ATTRIBUTE_JOB_LIST, PROCESS_INFORMATION, ResumeThread,
    STARTF_USESTDHANDLES, STARTUPINFOEXW, UpdateProcThreadAttribute,
};

/// Starts that this process makes.
#[derive(Debug)]
pub struct OwnChildren;

impl Starter for OwnChildren {
    /// Errors, too: another user is asked for.
    fn start_suspended(&self, spec: &LaunchSpec) -> io::Result<SuspendedServer> {
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

    fn exited(&mut self) -> io::Result<Option<Exit>> {
        if !has_ended(&self.process, 0)? {
            return Ok(None);
        }
        let mut code = 0;
        // SAFETY: the handle is open; the pointer is to a local.
        check(unsafe { GetExitCodeProcess(self.process.as_raw_handle(), &mut code) })?;
        Ok(Some(Exit::Code(code as i32)))
    }
}

/// Reads a LaunchSpec from stdin, starts it, waits for its end and ends with the same code. `start_suspended` does not need
/// this here; it stands for the hidden command, which exists on every system.
pub fn exec_when_released() -> io::Result<Infallible> {
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
