//! The check: a connection or a datagram from the source pod's own network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kernel::netlink::{Kernel, Network};
use kernel::netns::{self, Netns};

use super::Path;
use crate::policy::model::Protocol;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// To each of the addresses that were tried, what came back.
    Answers(Vec<(SocketAddr, Answer)>),
    /// Why nothing was sent.
    NotSent(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Connected(Duration),
    /// A datagram was answered.
    Replied(Duration),
    /// The other end said that nobody listens: the packet came there.
    Refused(Duration),
    /// Nothing came back.
    Silence,
    Failed(String),
}

/// Sends to what the source connects to; where the endpoints of a Service differ, to each of them.
pub fn probe(path: &Path) -> Found {
    if path.protocol == Protocol::Sctp {
        return Found::NotSent("probes are TCP and UDP only".into());
    }
    let netns = match namespace_of(path) {
        Ok(Some(netns)) => netns,
        Ok(None) => {
            return Found::NotSent(format!("{} is not on this node; ask the daemon of node {}", path.from, path.node));
        }
        Err(error) => {
            return Found::NotSent(format!("cannot look for the network namespace of {}: {error}", path.from));
        }
    };
    let goals: Vec<SocketAddr> = match path.foretold() {
        super::Foretold::Some => path.legs.iter().map(|leg| leg.address).collect(),
        _ => path.goal().into_iter().collect(),
    };
    let send = |goal| match path.protocol {
        Protocol::Udp => datagram(goal),
        _ => connection(goal),
    };
    match netns.run(|| goals.iter().map(|goal| (*goal, send(*goal))).collect()) {
        Ok(answers) => Found::Answers(answers),
        Err(error) => Found::NotSent(error.to_string()),
    }
}

/// The namespace behind the path's link that has the source address.
fn namespace_of(path: &Path) -> io::Result<Option<Netns>> {
    let link = match &path.link {
        Some(link) => Kernel::open().and_then(|mut network| network.link(link)).map_err(io::Error::other)?,
        None => None,
    };
    let peer = link.and_then(|link| link.peer);
    let own = Netns::current().and_then(|own| own.identity()).map_err(io::Error::other)?;
    for netns in netns::all()? {
        if path.link.is_some() && netns.identity().ok() == Some(own) {
            continue;
        }
        let found = netns.run(|| has(path.source, peer));
        if matches!(found, Ok(Ok(true))) {
            return Ok(Some(netns));
        }
    }
    Ok(None)
}

fn has(ip: IpAddr, link: Option<u32>) -> kernel::netlink::Result<bool> {
    let addresses = Kernel::open()?.addresses()?;
    Ok(addresses.iter().any(|a| a.net.ip() == ip && link.is_none_or(|link| link == a.link)))
}

fn connection(goal: SocketAddr) -> Answer {
    let started = Instant::now();
    match TcpStream::connect_timeout(&goal, PATIENCE) {
        Ok(_) => Answer::Connected(started.elapsed()),
        Err(error) => refusal(&error, started),
    }
}

fn datagram(goal: SocketAddr) -> Answer {
    let started = Instant::now();
    let any = if goal.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let exchange = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(goal)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"bosun net trace")?;
        socket.recv(&mut [0; 16])
    };
    match exchange() {
        Ok(_) => Answer::Replied(started.elapsed()),
        Err(error) => refusal(&error, started),
    }
}

fn refusal(error: &io::Error, started: Instant) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Answer::Refused(started.elapsed()),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Answer::Silence,
        _ => Answer::Failed(error.to_string()),
    }
}
