//! Links, addresses, routes and neighbours of one network namespace.
//!
//! [`Network`] is what a part asks for; [`Route`] and the others are plain values in its terms. [`Kernel`] is the
//! real one, bound to the namespace in which it was opened; [`fake::Fake`] holds the same state in memory.

mod answers;
pub(crate) mod attributes;
mod detection;
pub mod fake;
mod fib;
mod kinds;
mod ports;
mod queueing;
mod real;
mod rules;
pub(crate) mod socket;
mod statistics;
mod vxlan;
mod watch;

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

pub use answers::read_any;
pub use detection::Detection;
pub use fib::{FibRoute, Hop};
pub use ipnetwork::IpNetwork;
pub use kinds::{Details, IpvlanMode, Kind, MacvlanMode, NewLink};
pub use ports::PortVlan;
pub use queueing::TokenBucket;
pub use real::Kernel;
pub use rules::Rule;
pub use statistics::LinkStatistics;
pub use vxlan::{ForwardingEntry, Vxlan};
pub use watch::{Change, Watch, decode};

/// What failed, on which object, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object}: {source}")]
pub struct Error {
    pub verb: &'static str,
    pub object: String,
    pub source: io::Error,
}

impl Error {
    /// Whether the kernel refused because the object is there already.
    pub fn is_exists(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EEXIST)
    }

    /// Whether the kernel refused because there is no such object.
    pub fn is_missing(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidMac> {
        let bytes: Option<Vec<u8>> = text
            .split([':', '-'])
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        let mac = bytes.and_then(|bytes| bytes.try_into().ok());
        mac.map(Self).ok_or_else(|| InvalidMac(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a hardware address of six octets")]
pub struct InvalidMac(String);

/// A network interface as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, ...; empty for hardware and the loopback.
    pub kind: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    pub promiscuous: bool,
    /// Index of the bridge that this link is a port of.
    pub master: Option<u32>,
    /// Index of a veth's other end, in that end's namespace.
    pub peer: Option<u32>,
    /// `ip link set alias`: where bosun writes whose a link is.
    pub alias: String,
    /// Whether the bridge port may send back where a frame came from.
    pub hairpin: bool,
}

/// One end of a veth pair that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VethEnd<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// Index of the bridge to join at once; for the near end only.
    pub master: Option<u32>,
}

/// What [`Network::change_link`] shall change; `None` leaves as is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkChange<'a> {
    pub up: Option<bool>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    /// `Some(0)` leaves the bridge.
    pub master: Option<u32>,
    pub promiscuous: Option<bool>,
    pub name: Option<&'a str>,
    pub alias: Option<&'a str>,
}

/// An address on a link. The prefix makes its connected route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub link: u32,
    pub net: IpNetwork,
}

/// A unicast route. `None` for `gateway` is a route to what is on the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` or `::/0` is the default route.
    pub destination: IpNetwork,
    pub gateway: Option<IpAddr>,
    pub link: Option<u32>,
    /// Source address for what the node itself sends.
    pub source: Option<IpAddr>,
    pub metric: Option<u32>,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    /// Routing table; 254 is main.
    pub table: u32,
    /// Whether the gateway counts as reachable though no address covers it.
    pub onlink: bool,
    /// Who made the route (`rtm_protocol`); 4 is static.
    pub protocol: u8,
    /// 0 everywhere, 253 on the link, 254 on this host; `None` lets gateway and link decide.
    pub scope: Option<u8>,
}

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;
/// `RTPROT_STATIC`: made by an administrator's tool.
pub const PROTOCOL_STATIC: u8 = 4;

impl Route {
    /// A static route in the main table.
    pub fn new(destination: IpNetwork, gateway: Option<IpAddr>, link: u32) -> Self {
        Self {
            destination,
            gateway,
            link: Some(link),
            source: None,
            metric: None,
            mtu: None,
            advmss: None,
            table: TABLE_MAIN,
            onlink: false,
            protocol: PROTOCOL_STATIC,
            scope: None,
        }
    }
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub link: u32,
    pub address: IpAddr,
    pub mac: Mac,
}

/// The network of one namespace.
///
/// Adding what is there fails with [`Error::is_exists`]; deleting what is not there returns `false`.
pub trait Network {
    fn links(&mut self) -> Result<Vec<Link>>;
    /// `None` where no link has that name.
    fn link(&mut self, name: &str) -> Result<Option<Link>>;
    fn add_bridge(&mut self, name: &str, mtu: Option<u32>) -> Result<()>;
    /// A link that leads nowhere and can hold addresses.
    fn add_dummy(&mut self, name: &str) -> Result<()>;
    /// Makes both ends at once, down and without alias (the kernel takes neither here), `peer` straight in the namespace that `peer_netns` is open on (or in this one).
    fn add_veth(
        &mut self,
        end: VethEnd<'_>,
        peer: VethEnd<'_>,
        peer_netns: Option<BorrowedFd<'_>>,
        mtu: Option<u32>,
    ) -> Result<()>;
    /// Removes a link, and with a veth its peer. `false` where it was gone.
    fn delete_link(&mut self, index: u32) -> Result<bool>;
    fn change_link(&mut self, index: u32, change: LinkChange<'_>) -> Result<()>;
    /// Lets a bridge send frames back out of the port they came in by.
    fn set_hairpin(&mut self, port: u32, on: bool) -> Result<()>;

    fn addresses(&mut self) -> Result<Vec<Address>>;
    fn add_address(&mut self, address: Address) -> Result<()>;
    fn delete_address(&mut self, address: Address) -> Result<bool>;

    /// Unicast routes of all tables but `local`.
    fn routes(&mut self) -> Result<Vec<Route>>;
    fn add_route(&mut self, route: &Route) -> Result<()>;
    fn delete_route(&mut self, route: &Route) -> Result<bool>;

    fn neighbours(&mut self) -> Result<Vec<Neighbour>>;
    fn add_neighbour(&mut self, neighbour: Neighbour) -> Result<()>;
    fn delete_neighbour(&mut self, neighbour: Neighbour) -> Result<bool>;
}
