//! Which ports are said to be those of the install's server: whoever listens there and stands in the folder is taken for
//! it, whatever user he is.
//! Refuses to look at processes.

use crate::app::carry;
use crate::base::fsx;
use crate::state::journal::{Found, Journal};
use crate::state::receipt;
use crate::state::root::InstallRoot;
use std::collections::BTreeSet;

/// By the operator, by the interrupted and the last update, and by what the install's own files say. What cannot be
/// read claims nothing.
pub(super) fn ports(root: &InstallRoot) -> BTreeSet<u16> {
    let mut all: BTreeSet<u16> = root.claimed_port().into_iter().collect();
    all.extend(written(root).into_iter().filter_map(|(port, _)| port));
    all.extend(receipt::load(root.state()).ok().flatten().into_iter().flat_map(|receipt| receipt.ports));
    if let Ok(Found::Open(journal)) = Journal::find(root.state()) {
        let measures = [&journal.begin.before.old, &journal.begin.before.new];
        all.extend(measures.into_iter().flatten().flat_map(|baseline| &baseline.ports));
    }
    all
}

/// The port by the settings of the server's own, and where each stands.
pub fn written(root: &InstallRoot) -> [(Option<u16>, &'static str); 2] {
    let text = |name: &str| fsx::read_at_most(&root.path().join(name), carry::MAX_SIZE).ok().flatten();
    let of_program = |bytes: Vec<u8>| carry::assignment(&bytes, "PORT")?.trim().parse().ok();
    [(text(".env").and_then(|bytes| port_of_env(&bytes)), ".env"), (text("run.py").and_then(of_program), "run.py")]
}

/// The last `PORT=` of a `.env` file.
fn port_of_env(bytes: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(bytes);
    let mut pairs = text.lines().filter_map(|line| line.trim().trim_start_matches("export ").split_once('='));
    let (_, value) = pairs.rfind(|(name, _)| name.trim() == "PORT")?;
    value.trim().trim_matches(['"', '\'']).parse().ok()
}
