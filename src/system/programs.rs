//! Programs that are known by name wherever they run.
//! Refuses to know applications: those are `app`'s.

/// Programs that stand in a folder because a person does.
const SHELLS: [&str; 14] =
    ["sh", "bash", "dash", "zsh", "fish", "ksh", "cmd", "powershell", "pwsh", "login", "su", "sudo", "screen", "sshd"];

/// More of them, matched by how the name starts (`tmux: server`, `sshd-session`).
const SHELL_STARTS: [&str; 4] = ["tmux", "screen", "sshd", "systemd"];

/// True for the bare name (no folder, no `.exe`) of a program that stands in a folder because a person does.
pub fn is_shell(name: &str) -> bool {
    SHELLS.contains(&name) || SHELL_STARTS.iter().any(|start| name.starts_with(start))
}
