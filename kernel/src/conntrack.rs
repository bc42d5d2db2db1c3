//! The connection tracking table: what flows there are, and deleting one.
//!
//! A deleted entry makes the flow's next packet a new one, which then meets the present rules. Source:
//! linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{DefaultNla, Emitable, Nla, NlaBuffer, NlasIterator, Parseable};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, IPTuple, ProtoTuple, Protocol, Tuple};

use crate::netlink::socket::Socket;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `nfgenmsg`: family, version, resource id.
const HEADER: usize = 4;

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} connection tracking entries: {source}")]
pub struct Error {
    pub verb: &'static str,
    pub source: io::Error,
}

/// One direction of a flow. As in the kernel, what has no ports has other numbers in their place: ICMP its identifier, and
/// type and code; all else 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Direction {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// As its first packet was sent; the destination is what the client asked for.
    pub original: Direction,
    /// As answers come; the source is where the flow was sent to.
    pub reply: Direction,
}

/// The table of the namespace it was opened in.
pub trait Conntrack: Send {
    /// All flows.
    ///
    /// # Errors
    /// Where the kernel has no connection tracking, or refuses.
    fn all(&mut self) -> Result<Vec<Flow>, Error>;

    /// Flows of one IP protocol.
    ///
    /// # Errors
    /// Where the kernel has no connection tracking, or refuses.
    fn flows(&mut self, protocol: u8) -> Result<Vec<Flow>, Error> {
        let mut flows = self.all()?;
        flows.retain(|flow| flow.protocol == protocol);
        Ok(flows)
    }

    /// Forgets a flow. `false` where it was gone.
    ///
    /// # Errors
    /// Where the kernel refuses.
    fn delete(&mut self, flow: &Flow) -> Result<bool, Error>;
}

#[derive(Debug)]
pub struct Kernel(Socket);

impl Kernel {
    /// # Errors
    /// Where the kernel gives no netfilter socket.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(netlink_sys::protocols::NETLINK_NETFILTER);
        socket.map(Self).map_err(|source| Error { verb: "open", source })
    }
}

struct Request {
    family: u8,
    attributes: Vec<ConntrackAttribute>,
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.family, 0, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[HEADER..]);
    }
}

impl Conntrack for Kernel {
    fn all(&mut self) -> Result<Vec<Flow>, Error> {
        let all = Request { family: libc::AF_UNSPEC as u8, attributes: Vec::new() };
        let parts = self.0.dump(GET, &all).map_err(|source| Error { verb: "list", source })?;
        Ok(parts.iter().filter_map(|part| read_flow(part)).collect())
    }

    fn delete(&mut self, flow: &Flow) -> Result<bool, Error> {
        let family = if flow.original.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let attributes = vec![ConntrackAttribute::CtaTupleOrig(tuple(flow))];
        match self.0.act(DELETE, 0, &Request { family, attributes }) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(Error { verb: "delete", source }),
        }
    }
}

fn tuple(flow: &Flow) -> Vec<Tuple> {
    let way = flow.original;
    let mut proto = vec![ProtoTuple::Protocol(Protocol::from(flow.protocol))];
    match icmp(flow.protocol) {
        Some(base) => {
            let [kind, code] = way.destination_port.to_be_bytes();
            let id = way.source_port.to_be_bytes().to_vec();
            let parts = [id, vec![kind], vec![code]].into_iter().zip(base..);
            proto.extend(parts.map(|(bytes, attribute)| ProtoTuple::Other(DefaultNla::new(attribute, bytes))));
        }
        None => {
            proto.extend([ProtoTuple::SourcePort(way.source_port), ProtoTuple::DestinationPort(way.destination_port)])
        }
    }
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(way.source), IPTuple::DestinationAddress(way.destination)]),
        Tuple::Proto(proto),
    ]
}

/// Of ICMP and ICMPv6 the attribute of the identifier (CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID), which those of type and
/// code follow.
const fn icmp(protocol: u8) -> Option<u16> {
    match protocol {
        1 => Some(4),
        58 => Some(7),
        _ => None,
    }
}

/// A flow as the kernel tells of it.
pub fn read_flow(part: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    for nla in NlasIterator::new(part.get(HEADER..)?) {
        match ConntrackAttribute::parse(&NlaBuffer::new(nla.ok()?.into_inner())).ok()? {
            ConntrackAttribute::CtaTupleOrig(tuples) => original = read_direction(&tuples),
            ConntrackAttribute::CtaTupleReply(tuples) => reply = read_direction(&tuples),
            _ => {}
        }
    }
    let (protocol, original) = original?;
    Some(Flow { protocol, original, reply: reply?.1 })
}

fn read_direction(tuples: &[Tuple]) -> Option<(u8, Direction)> {
    let (mut source, mut destination, mut ports) = (None, None, None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(ip) => source = Some(*ip),
                IPTuple::DestinationAddress(ip) => destination = Some(*ip),
                _ => {}
            }),
            Tuple::Proto(parts) => ports = read_ports(parts),
            _ => {}
        }
    }
    let (protocol, source_port, destination_port) = ports?;
    Some((protocol, Direction { source: source?, destination: destination?, source_port, destination_port }))
}

/// The protocol, and its two numbers as [`Direction`] has them.
fn read_ports(parts: &[ProtoTuple]) -> Option<(u8, u16, u16)> {
    let protocol = parts.iter().find_map(|part| match part {
        ProtoTuple::Protocol(number) => Some(u8::from(*number)),
        _ => None,
    })?;
    let (mut from, mut to) = (0, [0; 2]);
    for part in parts {
        match part {
            ProtoTuple::SourcePort(port) => from = *port,
            ProtoTuple::DestinationPort(port) => to = port.to_be_bytes(),
            ProtoTuple::Other(nla) => {
                let mut value = vec![0; nla.value_len()];
                nla.emit_value(&mut value);
                let place = icmp(protocol).and_then(|base| nla.kind().checked_sub(base));
                match (place, &value[..]) {
                    (Some(0), [high, low]) => from = u16::from_be_bytes([*high, *low]),
                    (Some(1), [kind]) => to[0] = *kind,
                    (Some(2), [code]) => to[1] = *code,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    Some((protocol, from, u16::from_be_bytes(to)))
}

/// A table in memory.
#[derive(Debug, Default)]
pub struct Fake {
    pub flows: Mutex<Vec<Flow>>,
    /// Whether every call fails.
    pub broken: bool,
}

impl Fake {
    fn check(&self, verb: &'static str) -> Result<(), Error> {
        match self.broken {
            true => Err(Error { verb, source: io::Error::from_raw_os_error(libc::EPERM) }),
            false => Ok(()),
        }
    }
}

impl Conntrack for Fake {
    fn all(&mut self) -> Result<Vec<Flow>, Error> {
        self.check("list")?;
        Ok(self.flows.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn delete(&mut self, flow: &Flow) -> Result<bool, Error> {
        self.check("delete")?;
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let before = flows.len();
        flows.retain(|other| other != flow);
        Ok(flows.len() < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{self, Network};
    use crate::nftables::{Nft, Nftables};

    #[test]
    fn a_tracked_flow_is_found_and_forgotten() {
        if !crate::test::root("conntrack") {
            return;
        }
        let netns = crate::netns::Netns::anonymous().unwrap();
        netns
            .run(|| {
                let mut network = netlink::Kernel::open().unwrap();
                let lo = network.link("lo").unwrap().unwrap();
                network.change_link(lo.index, netlink::LinkChange { up: Some(true), ..Default::default() }).unwrap();
                // Connection tracking starts with the first rule that asks for it.
                Nft.apply("add table ip t\nadd chain ip t c { type filter hook output priority 0; }\nadd rule ip t c ct state new accept")
                    .unwrap();
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                let port = socket.local_addr().unwrap().port();
                socket.send_to(b"x", "127.0.0.1:9").unwrap();
                let mut table = Kernel::open().unwrap();
                let flow = table.flows(17).unwrap().into_iter().find(|f| f.original.source_port == port).unwrap();
                assert_eq!((flow.original.destination_port, flow.reply.source_port), (9, 9));
                assert!(table.delete(&flow).unwrap());
                assert!(!table.delete(&flow).unwrap());
                assert!(!table.flows(17).unwrap().contains(&flow));
            })
            .unwrap();
    }
}
