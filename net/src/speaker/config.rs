//! What a speaker is told: who it is and whom to speak with. Field names are Calico's where it has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bgp::Family;
use bgp::filter::{Filter, Links, Rules};
use bgp::rib::{Identity, NextHopMode, Policy};
use bgp::session::Settings;
use serde::Deserialize;

/// Calico's and BIRD's.
pub const DEFAULT_AS: u32 = 64512;
pub const DEFAULT_PORT: u16 = 179;
/// How long a peer keeps our routes while we restart, where nobody says (BIRD's and Calico's).
pub const RESTART_TIME: Duration = Duration::from_secs(120);
const HOLD_TIME: u16 = 90;
/// Between attempts to connect.
const CONNECT_RETRY: Duration = Duration::from_secs(5);
/// As many equal next hops as Linux and BIRD use by default.
const MAXIMUM_PATHS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    pub as_number: u32,
    pub router_id: Ipv4Addr,
    #[serde(default = "default_port")]
    pub listen_port: u16,
    /// Where it reflects routes between its clients.
    #[serde(default, rename = "routeReflectorClusterID")]
    pub route_reflector_cluster_id: Option<Ipv4Addr>,
    /// This node's addresses of both families, as next hops.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// This node's links, where filters ask for interfaces.
    #[serde(default)]
    pub links: Links,
    #[serde(default)]
    pub peers: Vec<Peer>,
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

/// A neighbour. Its address names it: two peers of one address are not told apart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// For the operator: the node's or the BGPPeer's.
    pub name: String,
    #[serde(rename = "peerIP")]
    pub peer_ip: IpAddr,
    #[serde(default = "default_port")]
    pub port: u16,
    pub as_number: u32,
    /// What this side calls itself to this peer, where not the speaker's AS.
    #[serde(default, rename = "localASNumber")]
    pub local_as_number: Option<u32>,
    #[serde(default = "both")]
    pub families: Vec<Family>,
    #[serde(default)]
    pub source_address: Option<IpAddr>,
    #[serde(default)]
    pub password: Option<Password>,
    #[serde(default)]
    pub next_hop_mode: NextHopMode,
    #[serde(default = "default_restart_time", with = "super::duration")]
    pub max_restart_time: Duration,
    #[serde(default, with = "super::duration::optional")]
    pub keepalive_time: Option<Duration>,
    /// Seconds.
    #[serde(default = "default_hold_time")]
    pub hold_time: u16,
    #[serde(default, rename = "numAllowedLocalASNumbers")]
    pub num_allowed_local_as_numbers: u8,
    /// GTSM: the peer is at most so many hops away (RFC 5082).
    #[serde(default)]
    pub ttl_security: Option<u8>,
    #[serde(default)]
    pub filters: Vec<Filter>,
    #[serde(default)]
    pub route_reflector_client: bool,
    /// How many prefixes of a family it may tell.
    #[serde(default)]
    pub max_prefixes: Option<u32>,
    /// Waits for the peer to connect.
    #[serde(default)]
    pub passive: bool,
    #[serde(default)]
    pub bfd: Option<Bfd>,
}

fn both() -> Vec<Family> {
    Family::ALL.to_vec()
}

fn default_restart_time() -> Duration {
    RESTART_TIME
}

fn default_hold_time() -> u16 {
    HOLD_TIME
}

/// BFD where it is asked for, with BIRD's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bfd {
    #[serde(rename = "minTxInterval", with = "super::duration")]
    pub transmit: Duration,
    #[serde(rename = "minRxInterval", with = "super::duration")]
    pub receive: Duration,
    pub multiplier: u8,
}

impl Default for Bfd {
    /// As often as a node's processes can promise under load.
    fn default() -> Self {
        let interval = Duration::from_millis(300);
        Self { transmit: interval, receive: interval, multiplier: 3 }
    }
}

/// A key of TCP MD5 signatures. It is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(...)")
    }
}

impl Config {
    pub(super) fn identity(&self) -> Identity {
        Identity {
            asn: self.as_number,
            identifier: self.router_id,
            cluster_id: self.route_reflector_cluster_id,
            maximum_paths: MAXIMUM_PATHS,
            addresses: self.addresses.clone(),
            links: Arc::new(self.links.clone()),
        }
    }

    /// Whether a filter speaks of interfaces.
    pub fn asks_for_links(&self) -> bool {
        let all = self.peers.iter().flat_map(|peer| &peer.filters);
        all.flat_map(|filter| [&filter.export_v4, &filter.import_v4, &filter.export_v6, &filter.import_v6])
            .flatten()
            .any(|rule| rule.interface.is_some())
    }

    /// Whether sessions of the one can go on under the other.
    pub(super) fn same_speaker(&self, other: &Self) -> bool {
        self.as_number == other.as_number && self.router_id == other.router_id
    }
}

impl Peer {
    /// A peer of which nothing special is asked.
    pub fn new(name: &str, peer_ip: IpAddr, as_number: u32) -> Self {
        Self {
            name: name.to_owned(),
            peer_ip,
            port: DEFAULT_PORT,
            as_number,
            local_as_number: None,
            families: both(),
            source_address: None,
            password: None,
            next_hop_mode: NextHopMode::Auto,
            max_restart_time: RESTART_TIME,
            keepalive_time: None,
            hold_time: HOLD_TIME,
            num_allowed_local_as_numbers: 0,
            ttl_security: None,
            filters: Vec::new(),
            route_reflector_client: false,
            max_prefixes: None,
            passive: false,
            bfd: None,
        }
    }

    pub(super) fn settings(&self, speaker: &Config) -> Settings {
        Settings {
            local_as: self.local_as_number.unwrap_or(speaker.as_number),
            identifier: speaker.router_id,
            peer_as: self.as_number,
            hold_time: self.hold_time,
            keepalive: self.keepalive_time,
            connect_retry: CONNECT_RETRY,
            passive: self.passive,
            families: self.families.clone(),
            extended_next_hop: true,
            restart_time: Some(u16::try_from(self.max_restart_time.as_secs()).unwrap_or(u16::MAX).min(4095)),
        }
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            rules: Arc::new(Rules::new(&self.filters)),
            next_hop_mode: self.next_hop_mode,
            allowed_local_as: self.num_allowed_local_as_numbers.into(),
            reflector_client: self.route_reflector_client,
            local_as: self.local_as_number,
            max_prefixes: self.max_prefixes,
        }
    }

    /// Whether only what is decided about routes differs, so that the session goes on.
    pub(super) fn same_session(&self, other: &Self) -> bool {
        let bare = |peer: &Self| Self {
            next_hop_mode: NextHopMode::Auto,
            num_allowed_local_as_numbers: 0,
            filters: Vec::new(),
            route_reflector_client: false,
            max_prefixes: None,
            ..peer.clone()
        };
        bare(self) == bare(other)
    }
}
