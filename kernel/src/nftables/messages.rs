//! What is asked of the kernel often, as messages: elements of sets and maps that go and come, and whether a chain is there.
//! nft reads all chains and sets of the machine before it does either, and takes milliseconds to start.
//!
//! Source: linux/netfilter/nf_tables.h (`NFT_MSG_NEWSETELEM`) and nfnetlink.h (batches).

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::IpAddr;

use super::Error;
use crate::netlink::attributes::Body;
use crate::netlink::socket::{Message, Socket};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEW: u16 = SUBSYSTEM << 8 | 12;
const DELETE: u16 = SUBSYSTEM << 8 | 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ip,
    Ip6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// One part of a key, or of what a map leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Address(IpAddr),
    /// `inet_proto`
    Protocol(u8),
    /// `inet_service`
    Port(u16),
    /// What `numgen` draws.
    Number(u32),
}

impl Part {
    /// As it lies in a register: each part begins at one of its own.
    fn put(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Address(IpAddr::V4(ip)) => bytes.extend(ip.octets()),
            Self::Address(IpAddr::V6(ip)) => bytes.extend(ip.octets()),
            Self::Protocol(number) => bytes.push(number),
            Self::Port(port) => bytes.extend(port.to_be_bytes()),
            Self::Number(number) => bytes.extend(number.to_ne_bytes()),
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(132) => f.write_str("sctp"),
            Self::Protocol(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A concatenation of parts.
pub type Key = Box<[Part]>;

/// What a map has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Parts(Key),
    Goto(Box<str>),
    Accept,
    Drop,
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parts(parts) => joined(parts, f),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

/// An element; those of sets have no value.
pub type Element = (Key, Option<Value>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Delete,
}

/// Elements of one set or map that come or go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elements<'a> {
    pub verb: Verb,
    pub family: Family,
    pub table: &'a str,
    pub set: &'a str,
    pub elements: Vec<Element>,
}

fn joined(parts: &[Part], f: &mut Formatter<'_>) -> fmt::Result {
    for (at, part) in parts.iter().enumerate() {
        write!(f, "{}{part}", if at > 0 { " . " } else { "" })?;
    }
    Ok(())
}

impl Display for Elements<'_> {
    /// A line of nft's language.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verb = if self.verb == Verb::Add { "add" } else { "delete" };
        write!(f, "{verb} element {} {} {} {{ ", self.family, self.table, self.set)?;
        for (at, (key, value)) in self.elements.iter().enumerate() {
            f.write_str(if at > 0 { ", " } else { "" })?;
            joined(key, f)?;
            if let Some(value) = value.as_ref().filter(|_| self.verb == Verb::Add) {
                write!(f, " : {value}")?;
            }
        }
        f.write_str(" }\n")
    }
}

impl Elements<'_> {
    fn message(&self) -> Message<Body> {
        let mut body = Body::new(&[self.family.number(), 0, 0, 0]);
        body.put_text(1, self.table);
        body.put_text(2, self.set);
        body.nest(3, |list| {
            for (key, value) in &self.elements {
                list.nest(1, |element| {
                    element.nest(1, |data| put_parts(data, key));
                    if let Some(value) = value.as_ref().filter(|_| self.verb == Verb::Add) {
                        element.nest(2, |data| put_value(data, value));
                    }
                });
            }
        });
        /// Create what is not there.
        const CREATE: u16 = 0x400;
        match self.verb {
            Verb::Add => Message { kind: NEW, flags: CREATE, body },
            Verb::Delete => Message { kind: DELETE, flags: 0, body },
        }
    }
}

fn put_parts(data: &mut Body, parts: &[Part]) {
    let mut bytes = Vec::new();
    match parts {
        // A key of one part is as long as that.
        [Part::Protocol(number)] => bytes.push(*number),
        [Part::Port(port)] => bytes.extend(port.to_be_bytes()),
        parts => parts.iter().for_each(|part| part.put(&mut bytes)),
    }
    data.put(1, &bytes);
}

fn put_value(data: &mut Body, value: &Value) {
    const GOTO: i32 = -4;
    let (code, chain) = match value {
        Value::Parts(parts) => return put_parts(data, parts),
        Value::Goto(chain) => (GOTO, Some(chain)),
        Value::Accept => (1, None),
        Value::Drop => (0, None),
    };
    data.nest(2, |verdict| {
        verdict.put(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict.put_text(2, chain);
        }
    });
}

/// Changes the elements in one transaction, in the order given.
pub(super) fn change(changes: &[Elements<'_>]) -> Result<(), Error> {
    let mark = |kind| Message { kind, flags: 0, body: Body::new(&[0, 0, 0, SUBSYSTEM as u8]) };
    let messages = changes.iter().map(Elements::message);
    let batch: Vec<_> = [mark(BATCH_BEGIN)].into_iter().chain(messages).chain([mark(BATCH_END)]).collect();
    let refused = |(at, error): (usize, io::Error)| {
        let text = match at.checked_sub(1).and_then(|at| changes.get(at)) {
            Some(change) => format!("{error}: {}", change.to_string().trim_end().chars().take(200).collect::<String>()),
            None => error.to_string(),
        };
        match error.raw_os_error() {
            Some(libc::ENOENT) => Error::Missing(text),
            Some(libc::EEXIST) => Error::Exists(text),
            _ => Error::Refused(text),
        }
    };
    let mut socket = Socket::open(netlink_sys::protocols::NETLINK_NETFILTER).map_err(Error::Pipe)?;
    socket.batch(&batch).map_err(refused)
}

/// Asks for one chain.
pub(super) fn has_chain(family: Family, table: &str, chain: &str) -> Result<bool, Error> {
    let mut body = Body::new(&[family.number(), 0, 0, 0]);
    body.put_text(1, table);
    body.put_text(3, chain);
    let asked =
        Socket::open(netlink_sys::protocols::NETLINK_NETFILTER).and_then(|mut socket| socket.get(GET_CHAIN, &body));
    match asked {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(Error::Pipe(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Nft, Nftables};
    use super::*;

    fn all(verb: Verb, families: &[(Family, &str)]) -> Vec<Elements<'static>> {
        let mut changes = Vec::new();
        for (family, ip) in families {
            let address = Part::Address(ip.parse().unwrap());
            let vip = |protocol, port| Key::from([address, Part::Protocol(protocol), Part::Port(port)]);
            let place = |number| Key::from([address, Part::Port(80), Part::Number(number)]);
            let target = Some(Value::Parts([address, Part::Port(8080)].into()));
            for (set, elements) in [
                ("ips", vec![(Key::from([address]), None)]),
                ("own", vec![(Key::from([address, address]), None)]),
                (
                    "services",
                    vec![
                        (vip(6, 80), Some(Value::Goto("deny".into()))),
                        (vip(17, 53), Some(Value::Accept)),
                        (vip(132, 9), Some(Value::Drop)),
                    ],
                ),
                ("ports", vec![(Key::from([Part::Protocol(6), Part::Port(30_080)]), Some(Value::Drop))]),
                ("endpoints", vec![(place(1), target.clone()), (place(65_536), target)]),
            ] {
                changes.push(Elements { verb, family: *family, table: "t", set, elements });
            }
        }
        changes
    }

    fn table(family: Family) -> String {
        let address = if family == Family::Ip { "ipv4_addr" } else { "ipv6_addr" };
        format!(
            "table {family} t {{
  chain deny {{ reject; }}
  set ips {{ type {address}; }}
  set own {{ type {address} . {address}; }}
  map services {{ type {address} . inet_proto . inet_service : verdict; }}
  map ports {{ type inet_proto . inet_service : verdict; }}
  map endpoints {{ typeof {family} daddr . tcp dport . numgen random mod 65536 : {family} daddr . tcp dport; }}
}}\n"
        )
    }

    #[test]
    fn messages_mean_what_the_text_says() {
        if !crate::test::root("elements") {
            return;
        }
        let families = [(Family::Ip, "10.0.0.1"), (Family::Ip6, "fd00::1")];
        let empty: String = families.iter().map(|(family, _)| table(*family)).collect();
        let listed = |apply: fn(&[Elements<'_>]) -> Result<(), Error>| {
            let work = || {
                Nft.apply(&empty).unwrap();
                apply(&all(Verb::Add, &families)).unwrap();
                let added = Nft.list("list ruleset").unwrap();
                apply(&all(Verb::Delete, &families)).unwrap();
                [added, Nft.list("list ruleset").unwrap()]
            };
            crate::netns::Netns::anonymous().unwrap().run(work).unwrap()
        };
        let by_text =
            |changes: &[Elements<'_>]| Nft.apply(&changes.iter().map(ToString::to_string).collect::<String>());
        let [by_text, by_message] = [listed(by_text), listed(change)];
        assert_eq!(by_message, by_text);
        assert!(by_message[0].contains("10.0.0.1 . 80 . 65536 : 10.0.0.1 . 8080"), "{}", by_message[0]);
        assert!(!by_message[1].contains("8080"), "{}", by_message[1]);
    }

    #[test]
    fn a_refused_change_changes_nothing_and_says_what() {
        if !crate::test::root("elements") {
            return;
        }
        let work = || {
            Nft.apply(&table(Family::Ip)).unwrap();
            assert!(has_chain(Family::Ip, "t", "deny").unwrap());
            for (family, chain) in [(Family::Ip, "other"), (Family::Ip6, "deny")] {
                assert!(!has_chain(family, "t", chain).unwrap());
            }
            let added = all(Verb::Add, &[(Family::Ip, "10.0.0.1")]);
            let (ips, endpoints) = (&added[0], &added[4]);
            let gone = Elements { verb: Verb::Delete, ..endpoints.clone() };
            let refused = change(&[ips.clone(), gone]).unwrap_err();
            assert!(matches!(&refused, Error::Missing(text) if text.contains("endpoints")), "{refused}");
            assert!(!Nft.list("list set ip t ips").unwrap().contains("10.0.0.1"));
            change(std::slice::from_ref(endpoints)).unwrap();
            let mut other = endpoints.clone();
            other.elements.iter_mut().for_each(|(_, value)| *value = Some(Value::Parts([Part::Port(1)].into())));
            assert!(change(&[other]).is_err(), "a value of another length");
        };
        crate::netns::Netns::anonymous().unwrap().run(work).unwrap();
    }
}
