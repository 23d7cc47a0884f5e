//! Which service a process belongs to, by the service manager's own list.
//! Refuses to change any service: their stop and start is not built yet, and `refusal` says so before an update.

use super::files::check;
use crate::system::service::{Job, ServiceManager};
use crate::system::{ProcessId, Unit};
use std::io;
use windows_sys::Win32::Foundation::ERROR_MORE_DATA;
use windows_sys::Win32::System::Services::{
    CloseServiceHandle, ENUM_SERVICE_STATUS_PROCESSW, EnumServicesStatusExW, OpenSCManagerW, SC_ENUM_PROCESS_INFO,
    SC_MANAGER_CONNECT, SC_MANAGER_ENUMERATE_SERVICE, SERVICE_ACTIVE, SERVICE_WIN32,
};

/// The service control manager.
#[derive(Debug)]
pub struct WindowsServices;

const NOT_BUILT: &str = "this program cannot control Windows services yet";

fn not_built<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, NOT_BUILT))
}

impl ServiceManager for WindowsServices {
    /// The service that runs in this process.
    fn unit_of(&self, pid: u32) -> io::Result<Option<Unit>> {
        let rights = SC_MANAGER_CONNECT | SC_MANAGER_ENUMERATE_SERVICE;
        // SAFETY: null names mean this computer and its active database.
        let manager = unsafe { OpenSCManagerW(std::ptr::null(), std::ptr::null(), rights) };
        if manager.is_null() {
            return Err(io::Error::last_os_error());
        }
        let found = search(manager, pid);
        // SAFETY: opened above and not used after this.
        unsafe { CloseServiceHandle(manager) };
        Ok(found?.map(|name| Unit::system(&name)))
    }

    fn named(&self, name: &str) -> Unit {
        Unit::system(name)
    }

    /// No others are known here.
    fn members_of(&self, _pid: u32) -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn obstacle(&self, _unit: &Unit) -> io::Result<Option<String>> {
        Ok(Some(NOT_BUILT.to_string()))
    }

    fn denial(&self, _unit: &Unit) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Nobody is told apart here.
    fn runs_as(&self, _unit: &Unit, _uid: u32) -> io::Result<Result<(), String>> {
        Ok(Ok(()))
    }

    fn stop(&self, _unit: &Unit) -> io::Result<Job> {
        not_built()
    }

    fn kill(&self, _unit: &Unit) -> io::Result<Job> {
        not_built()
    }

    fn start(&self, _unit: &Unit) -> io::Result<Job> {
        not_built()
    }

    fn main_process(&self, _unit: &Unit) -> io::Result<Option<ProcessId>> {
        not_built()
    }

    fn has_failed(&self, _unit: &Unit) -> io::Result<bool> {
        not_built()
    }

    /// There is no such journal here.
    fn recent_output(&self, _unit: &Unit, _since: i64, _count: usize) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Not asked here.
    fn is_shutting_down(&self) -> bool {
        false
    }
}

fn search(manager: windows_sys::Win32::System::Services::SC_HANDLE, pid: u32) -> io::Result<Option<String>> {
    // 64 KiB a call, the most that the function takes up to 256 KiB; u64 keeps the entries aligned.
    let mut buffer = vec![0u64; 8192];
    let mut resume = 0;
    loop {
        let (mut needed, mut count) = (0, 0);
        let (at, size) = (buffer.as_mut_ptr().cast::<u8>(), (buffer.len() * 8) as u32);
        // SAFETY: `at` points to `size` writable bytes; the other pointers are to locals; no group is named.
        let done = check(unsafe {
            EnumServicesStatusExW(
                manager,
                SC_ENUM_PROCESS_INFO,
                SERVICE_WIN32,
                SERVICE_ACTIVE,
                at,
                size,
                &mut needed,
                &mut count,
                &mut resume,
                std::ptr::null(),
            )
        });
        let more = match done {
            Ok(()) => false,
            Err(error) if super::files::is_one_of(&error, &[ERROR_MORE_DATA]) && count > 0 => true,
            Err(error) => return Err(error),
        };
        let entries = buffer.as_ptr().cast::<ENUM_SERVICE_STATUS_PROCESSW>();
        // SAFETY: the call filled `count` entries at the start of the buffer, which is aligned for them.
        let entries = unsafe { std::slice::from_raw_parts(entries, count as usize) };
        if let Some(entry) = entries.iter().find(|entry| entry.ServiceStatusProcess.dwProcessId == pid) {
            // SAFETY: the name is a text in the buffer that ends with 0.
            return Ok(Some(unsafe { text_at(entry.lpServiceName) }));
        }
        if !more {
            return Ok(None);
        }
    }
}

/// # Safety
/// `at` must point to a UTF-16 text that ends with 0.
unsafe fn text_at(at: *const u16) -> String {
    let mut units = Vec::new();
    let mut next = at;
    loop {
        // SAFETY: the text ends with 0, and this stops there.
        let unit = unsafe { *next };
        if unit == 0 {
            return String::from_utf16_lossy(&units);
        }
        units.push(unit);
        // SAFETY: not at the end yet, so the next unit belongs to the text.
        next = unsafe { next.add(1) };
    }
}
