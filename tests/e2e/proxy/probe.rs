//! What a connection meets.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use kernel::netns::Netns;
use serde_json::Value;

/// Beyond this a packet counts as dropped.
const PATIENCE: Duration = Duration::from_millis(300);
/// The same in a machine in user mode.
const GUEST_PATIENCE: Duration = Duration::from_millis(900);
/// So many connections in a row must show no endpoint that was not seen before.
const QUIET: usize = 24;
/// A connection that is dropped costs its time, and counts for so many.
const DROPPED: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// The ends of many connections from this thread's namespace to one address: what answered and whom it saw, or `refused`, `dropped`.
pub type Fate = BTreeSet<String>;

pub fn fate(to: SocketAddr, protocol: Protocol) -> Fate {
    let ask = || match protocol {
        Protocol::Tcp => tcp(to),
        Protocol::Udp => udp(to),
    };
    let mut seen = Fate::new();
    let mut quiet = 0;
    let enough = if super::is_guest() { QUIET / 3 } else { QUIET };
    while quiet < enough {
        let answer = ask();
        quiet += if answer == "dropped" { DROPPED } else { 1 };
        if seen.insert(answer) && seen.len() > 1 {
            quiet = 0;
        }
    }
    seen
}

fn patience() -> Duration {
    if super::is_guest() { GUEST_PATIENCE } else { PATIENCE }
}

fn end(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => "refused".into(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "dropped".into(),
        _ => format!("{error}"),
    }
}

fn tcp(to: SocketAddr) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, patience())?;
        stream.set_read_timeout(Some(patience()))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().unwrap_or_else(|error| end(&error))
}

fn udp(to: SocketAddr) -> String {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    UdpSocket::bind((any, 0)).map_or_else(|error| end(&error), |socket| ask(&socket, to))
}

/// One question on a socket that may have asked before.
pub fn ask(socket: &UdpSocket, to: SocketAddr) -> String {
    let ask = || -> std::io::Result<String> {
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience()))?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let size = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..size]).into_owned())
    };
    ask().unwrap_or_else(|error| end(&error))
}

/// Status and body of a GET from inside a namespace.
pub fn http(from: &Netns, to: SocketAddr, path: &str) -> Option<(u16, String)> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, patience())?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = from.run(ask).ok()?.ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}

/// What a health check node port says, as far as it means something.
pub fn health(from: &Netns, to: SocketAddr) -> String {
    match http(from, to, "/") {
        None => "nothing".into(),
        Some((status, body)) => {
            let start = body.find('{').unwrap_or(0);
            let end = body.rfind('}').map_or(body.len(), |at| at + 1);
            let value: Value = serde_json::from_str(&body[start..end]).unwrap_or(Value::Null);
            format!("{status} {value}")
        }
    }
}
