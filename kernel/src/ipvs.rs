//! IPVS, the kernel's load balancer: virtual servers and their destinations, by generic netlink.
//!
//! Sources: linux/ip_vs.h (commands and attributes), linux/genetlink.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{Emitable, NlasIterator};

use crate::netlink::socket::Socket;

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;
const GET_CONFIG: u8 = 13;
const IN_SERVICE: u16 = 1;
const IN_DEST: u16 = 2;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;

/// Attributes of a service.
mod service {
    pub const FAMILY: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const PORT: u16 = 4;
    pub const SCHEDULER: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
}

/// Attributes of a destination.
mod dest {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FORWARD: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER: u16 = 5;
    pub const LOWER: u16 = 6;
    pub const ACTIVE: u16 = 7;
    pub const INACTIVE: u16 = 8;
    pub const FAMILY: u16 = 11;
}

/// `IP_VS_SVC_F_PERSISTENT`: a client keeps its destination.
const PERSISTENT: u32 = 1;
/// `nlattr` flag of attributes that hold others.
const NESTED: u16 = 0x8000;

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} IPVS {object}: {source}")]
pub struct Error {
    pub verb: &'static str,
    pub object: String,
    pub source: io::Error,
}

impl Error {
    /// Whether this kernel has no IPVS at all.
    pub fn is_absent(&self) -> bool {
        self.verb == "find"
    }

    fn is_missing(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
    }

    fn is_exists(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EEXIST)
    }
}

/// What clients connect to. Protocol is IP's number: 6, 17, 132.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    pub protocol: u8,
    pub address: SocketAddr,
}

/// How a server chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manner {
    /// The kernel's name: rr, wrr, lc, sh, ...
    pub scheduler: String,
    /// A client keeps its destination for so many seconds.
    pub persistence: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    pub address: SocketAddr,
    /// 0 gets nothing new.
    pub weight: u32,
    /// Open and closing connections; not written.
    pub connections: u32,
}

/// After how many seconds without a packet a connection is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    pub tcp: u32,
    /// Of TCP that is closing.
    pub tcp_fin: u32,
    pub udp: u32,
}

/// The servers of one network namespace.
pub trait Ipvs: Send {
    /// # Errors
    /// The kernel's, as with all of these.
    fn servers(&mut self) -> Result<Vec<(Server, Manner)>, Error>;
    fn destinations(&mut self, server: &Server) -> Result<Vec<Destination>, Error>;
    /// Adds the server or makes it choose so.
    fn set_server(&mut self, server: &Server, manner: &Manner) -> Result<(), Error>;
    /// `false` where it was gone.
    fn delete_server(&mut self, server: &Server) -> Result<bool, Error>;
    /// Adds the destination, masqueraded, or gives it that weight.
    fn set_destination(&mut self, server: &Server, address: SocketAddr, weight: u32) -> Result<(), Error>;
    /// `false` where it was gone.
    fn delete_destination(&mut self, server: &Server, address: SocketAddr) -> Result<bool, Error>;
    fn timeouts(&mut self) -> Result<Timeouts, Error>;
    /// Zero leaves one as it is.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), Error>;
}

#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    family: u16,
}

impl Kernel {
    /// # Errors
    /// Where the kernel has no IPVS, see [`Error::is_absent`].
    pub fn open() -> Result<Self, Error> {
        let absent = |source| Error { verb: "find", object: "in this kernel".into(), source };
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_GENERIC).map_err(absent)?;
        let mut name = Attributes::default();
        name.put(FAMILY_NAME, b"IPVS\0");
        let answer = socket.get(CONTROLLER, &Message { command: GET_FAMILY, attributes: name.0 }).map_err(absent)?;
        let answer = answer.unwrap_or_default();
        let id = value(&answer[4.min(answer.len())..], FAMILY_ID).and_then(half);
        let family = id.ok_or_else(|| absent(io::ErrorKind::InvalidData.into()))?;
        Ok(Self { socket, family })
    }

    fn act(&mut self, command: u8, attributes: Attributes, what: (&'static str, String)) -> Result<(), Error> {
        let done = self.socket.act(self.family, 0, &Message { command, attributes: attributes.0 });
        done.map_err(|source| Error { verb: what.0, object: what.1, source })
    }

    fn dump(&mut self, command: u8, attributes: Attributes, object: String) -> Result<Vec<Vec<u8>>, Error> {
        let parts = self.socket.dump(self.family, &Message { command, attributes: attributes.0 });
        parts.map_err(|source| Error { verb: "list", object, source })
    }
}

/// `genlmsghdr` and attributes.
struct Message {
    command: u8,
    attributes: Vec<u8>,
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        4 + self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&[self.command, 1, 0, 0]);
        buffer[4..4 + self.attributes.len()].copy_from_slice(&self.attributes);
    }
}

#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

fn family(ip: IpAddr) -> u16 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u16
}

/// `union nf_inet_addr`.
fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn add_server(attributes: &mut Attributes, server: &Server, manner: Option<&Manner>) {
    let ip = server.address.ip();
    let mut inner = Attributes::default();
    inner.put(service::FAMILY, &family(ip).to_ne_bytes());
    inner.put(service::PROTOCOL, &u16::from(server.protocol).to_ne_bytes());
    inner.put(service::ADDRESS, &address(ip));
    inner.put(service::PORT, &server.address.port().to_be_bytes());
    if let Some(manner) = manner {
        inner.put(service::SCHEDULER, format!("{}\0", manner.scheduler).as_bytes());
        let flags = if manner.persistence.is_some() { PERSISTENT } else { 0 };
        inner.put(service::FLAGS, &[flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat());
        inner.put(service::TIMEOUT, &manner.persistence.unwrap_or(0).to_ne_bytes());
        // Of IPv4 a mask, of IPv6 a length: each client is one.
        inner.put(service::NETMASK, &if ip.is_ipv4() { u32::MAX } else { 128 }.to_ne_bytes());
    }
    attributes.put(IN_SERVICE | NESTED, &inner.0);
}

fn add_destination(attributes: &mut Attributes, to: SocketAddr, weight: Option<u32>) {
    let mut inner = Attributes::default();
    inner.put(dest::ADDRESS, &address(to.ip()));
    inner.put(dest::PORT, &to.port().to_be_bytes());
    inner.put(dest::FAMILY, &family(to.ip()).to_ne_bytes());
    if let Some(weight) = weight {
        // 0 is to masquerade; no thresholds.
        for (kind, value) in [(dest::FORWARD, 0), (dest::WEIGHT, weight), (dest::UPPER, 0), (dest::LOWER, 0)] {
            inner.put(kind, &u32::to_ne_bytes(value));
        }
    }
    attributes.put(IN_DEST | NESTED, &inner.0);
}

fn name(server: &Server) -> String {
    format!("server {} (protocol {})", server.address, server.protocol)
}

impl Ipvs for Kernel {
    fn servers(&mut self) -> Result<Vec<(Server, Manner)>, Error> {
        let parts = self.dump(GET_SERVICE, Attributes::default(), "servers".into())?;
        Ok(parts.iter().filter_map(|part| read_server(part)).collect())
    }

    fn destinations(&mut self, server: &Server) -> Result<Vec<Destination>, Error> {
        let mut attributes = Attributes::default();
        add_server(&mut attributes, server, None);
        let parts = self.dump(GET_DEST, attributes, format!("destinations of {}", name(server)))?;
        Ok(parts.iter().filter_map(|part| read_destination(part, server.address.is_ipv4())).collect())
    }

    fn set_server(&mut self, server: &Server, manner: &Manner) -> Result<(), Error> {
        let attributes = || {
            let mut attributes = Attributes::default();
            add_server(&mut attributes, server, Some(manner));
            attributes
        };
        match self.act(NEW_SERVICE, attributes(), ("add", name(server))) {
            Err(error) if error.is_exists() => self.act(SET_SERVICE, attributes(), ("change", name(server))),
            done => done,
        }
    }

    fn delete_server(&mut self, server: &Server) -> Result<bool, Error> {
        let mut attributes = Attributes::default();
        add_server(&mut attributes, server, None);
        gone(self.act(DEL_SERVICE, attributes, ("delete", name(server))))
    }

    fn set_destination(&mut self, server: &Server, to: SocketAddr, weight: u32) -> Result<(), Error> {
        let attributes = || {
            let mut attributes = Attributes::default();
            add_server(&mut attributes, server, None);
            add_destination(&mut attributes, to, Some(weight));
            attributes
        };
        let what = || format!("destination {to} of {}", name(server));
        match self.act(NEW_DEST, attributes(), ("add", what())) {
            Err(error) if error.is_exists() => self.act(SET_DEST, attributes(), ("change", what())),
            done => done,
        }
    }

    fn delete_destination(&mut self, server: &Server, to: SocketAddr) -> Result<bool, Error> {
        let mut attributes = Attributes::default();
        add_server(&mut attributes, server, None);
        add_destination(&mut attributes, to, None);
        gone(self.act(DEL_DEST, attributes, ("delete", format!("destination {to} of {}", name(server)))))
    }

    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let answer = self.socket.get(self.family, &Message { command: GET_CONFIG, attributes: Vec::new() });
        let answer = answer.map_err(|source| Error { verb: "read", object: "timeouts".into(), source })?;
        let answer = answer.unwrap_or_default();
        let seconds = |kind| value(&answer[4.min(answer.len())..], kind).and_then(word).unwrap_or(0);
        Ok(Timeouts { tcp: seconds(TIMEOUT_TCP), tcp_fin: seconds(TIMEOUT_TCP_FIN), udp: seconds(TIMEOUT_UDP) })
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), Error> {
        let mut attributes = Attributes::default();
        for (kind, seconds) in
            [(TIMEOUT_TCP, timeouts.tcp), (TIMEOUT_TCP_FIN, timeouts.tcp_fin), (TIMEOUT_UDP, timeouts.udp)]
        {
            if seconds > 0 {
                attributes.put(kind, &seconds.to_ne_bytes());
            }
        }
        if attributes.0.is_empty() {
            return Ok(());
        }
        self.act(SET_CONFIG, attributes, ("set", "timeouts".into()))
    }
}

fn gone(done: Result<(), Error>) -> Result<bool, Error> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The value of an attribute among those that `bytes` hold.
fn value(bytes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut attributes = NlasIterator::new(bytes).filter_map(Result::ok);
    attributes.find(|attribute| attribute.kind() & !NESTED == kind).map(|attribute| attribute.value().to_vec())
}

fn half(bytes: Vec<u8>) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.first_chunk().copied()?))
}

fn word(bytes: Vec<u8>) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.first_chunk().copied()?))
}

fn read_address(bytes: &[u8], v4: bool) -> Option<IpAddr> {
    Some(match v4 {
        true => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        false => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
    })
}

fn read_port(bytes: Vec<u8>) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.first_chunk().copied()?))
}

/// A part of a dump of servers. `None` for what goes by a mark instead of an address.
pub fn read_server(part: &[u8]) -> Option<(Server, Manner)> {
    let inner = value(part.get(4..)?, IN_SERVICE)?;
    let get = |kind| value(&inner, kind);
    let v4 = get(service::FAMILY).and_then(half)? == libc::AF_INET as u16;
    let ip = read_address(&get(service::ADDRESS)?, v4)?;
    let port = get(service::PORT).and_then(read_port)?;
    let protocol = u8::try_from(get(service::PROTOCOL).and_then(half)?).ok()?;
    let scheduler = get(service::SCHEDULER)?;
    let scheduler = String::from_utf8_lossy(scheduler.split(|byte| *byte == 0).next()?).into_owned();
    let persistent = get(service::FLAGS).and_then(word)? & PERSISTENT != 0;
    let persistence = get(service::TIMEOUT).and_then(word).filter(|_| persistent);
    Some((Server { protocol, address: SocketAddr::new(ip, port) }, Manner { scheduler, persistence }))
}

/// A part of a dump of destinations of a server of that family.
pub fn read_destination(part: &[u8], v4: bool) -> Option<Destination> {
    let inner = value(part.get(4..)?, IN_DEST)?;
    let get = |kind| value(&inner, kind);
    let v4 = get(dest::FAMILY).and_then(half).map_or(v4, |family| family == libc::AF_INET as u16);
    let address = SocketAddr::new(read_address(&get(dest::ADDRESS)?, v4)?, get(dest::PORT).and_then(read_port)?);
    let count = |kind| get(kind).and_then(word).unwrap_or(0);
    let connections = count(dest::ACTIVE).saturating_add(count(dest::INACTIVE));
    Some(Destination { address, weight: count(dest::WEIGHT), connections })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{LinkChange, Network};

    fn server(text: &str) -> Server {
        Server { protocol: 6, address: text.parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for address in ["10.96.0.1:80", "[fd00::1]:443"] {
            let manner = Manner { scheduler: "rr".into(), persistence: Some(60) };
            let mut attributes = Attributes(vec![0; 4]);
            add_server(&mut attributes, &server(address), Some(&manner));
            assert_eq!(read_server(&attributes.0), Some((server(address), manner)));
            let mut attributes = Attributes(vec![0; 4]);
            add_destination(&mut attributes, address.parse().unwrap(), Some(3));
            let read = read_destination(&attributes.0, true).unwrap();
            assert_eq!((read.address.to_string().as_str(), read.weight), (address, 3));
        }
        assert_eq!(read_server(&[0; 3]), None);
        assert_eq!(read_server(&[0, 0, 0, 0, 200, 0, 1, 0]), None);
    }

    #[test]
    fn the_kernel_keeps_servers_and_destinations() {
        if !crate::test::root("IPVS") {
            return;
        }
        let netns = crate::netns::Netns::anonymous().unwrap();
        netns
            .run(|| {
                let mut ipvs = match Kernel::open() {
                    Err(error) if error.is_absent() => return println!("SKIPPED IPVS: {error}"),
                    opened => opened.unwrap(),
                };
                // Without a route of its own a namespace takes every address for a broadcast one, and refuses it.
                let mut network = crate::netlink::Kernel::open().unwrap();
                let lo = network.link("lo").unwrap().unwrap().index;
                network.change_link(lo, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
                let server = server("10.96.0.1:80");
                let manner = |persistence| Manner { scheduler: "rr".into(), persistence };
                ipvs.set_server(&server, &manner(None)).unwrap();
                ipvs.set_server(&server, &manner(Some(60))).unwrap();
                assert_eq!(ipvs.servers().unwrap(), [(server, manner(Some(60)))]);
                let to = "10.244.0.2:8080".parse().unwrap();
                ipvs.set_destination(&server, to, 1).unwrap();
                ipvs.set_destination(&server, to, 0).unwrap();
                let found = ipvs.destinations(&server).unwrap();
                assert_eq!(found, [Destination { address: to, weight: 0, connections: 0 }]);
                assert!(ipvs.delete_destination(&server, to).unwrap());
                assert!(!ipvs.delete_destination(&server, to).unwrap());
                assert!(ipvs.delete_server(&server).unwrap());
                assert!(!ipvs.delete_server(&server).unwrap());
                let before = ipvs.timeouts().unwrap();
                ipvs.set_timeouts(&Timeouts { tcp: 77, ..Timeouts::default() }).unwrap();
                assert_eq!(ipvs.timeouts().unwrap(), Timeouts { tcp: 77, ..before });
            })
            .unwrap();
    }
}
