//! The health baseline: how a server answered before its stop, which its successor is measured by.

use crate::base::net::Protocol;
use serde::{Deserialize, Serialize};

/// How the server answered before the stop: what its successor is measured by.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct HealthBaseline {
    pub running: bool,
    /// Every port that must be owned again.
    pub ports: Vec<u16>,
    /// The one that is asked.
    pub asked_port: Option<u16>,
    /// None: it answered over none, and afterwards either will do.
    pub protocol: Option<Protocol>,
    pub path: String,
    /// None: no answer; then 2xx or 3xx is needed afterwards.
    pub status: Option<u16>,
}
