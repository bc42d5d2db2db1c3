//! What the operator sees of a session.

use std::net::IpAddr;
use std::time::Instant;

use bgp::bfd;
use bgp::session::State;
use serde::Serialize;

/// `bosun net peers`, one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    pub name: String,
    pub address: IpAddr,
    pub as_number: u32,
    pub state: State,
    /// Seconds in this state.
    pub uptime: u64,
    pub received: usize,
    pub accepted: usize,
    pub sent: usize,
    /// Why the last session ended or did not come about, and how many seconds ago that was.
    pub last_error: Option<String>,
    pub last_error_ago: Option<u64>,
    /// Where BFD was asked for.
    pub bfd: Option<bfd::State>,
    /// Routes of before the peer's restart are in use, for so many seconds yet.
    pub stale_for: Option<u64>,
}

/// What a peer's task says of itself.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub state: State,
    pub since: Instant,
    pub last_error: Option<(String, Instant)>,
    pub bfd: Option<bfd::State>,
    pub stale_until: Option<Instant>,
}

impl Report {
    pub(super) fn fresh() -> Self {
        Self { state: State::Idle, since: Instant::now(), last_error: None, bfd: None, stale_until: None }
    }
}
