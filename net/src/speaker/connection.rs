//! A TCP connection with a peer: bytes that wait to be sent, bytes that are not yet a message.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use bgp::message::{Dialect, frame};
use bgp::{Message, Notification};
use kernel::socket;
use tokio::io::{AsyncWriteExt, Interest, Ready};
use tokio::net::{TcpSocket, TcpStream};

use super::config::Peer;

/// Read at once. A message may be longer; it is then put together from several.
const CHUNK: usize = 64 * 1024;
/// How long what was said last may take to be delivered.
const LINGER: Duration = Duration::from_secs(2);

pub(super) struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

/// What guards a connection: signatures and hop limit.
///
/// # Errors
/// Where the kernel lacks what was asked for.
pub(super) fn guard(stream: impl AsFd, peer: &Peer) -> io::Result<()> {
    if let Some(hops) = peer.ttl_security {
        socket::set_ttl(stream.as_fd(), peer.peer_ip, 255)?;
        socket::set_least_ttl(stream.as_fd(), peer.peer_ip, 255 - hops.saturating_sub(1))?;
    }
    Ok(())
}

/// Connects to a peer.
///
/// # Errors
/// In words for the operator.
pub(super) async fn connect(peer: Peer, patience: Duration) -> Result<TcpStream, String> {
    let address = SocketAddr::new(peer.peer_ip, peer.port);
    let attempt = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(password) = &peer.password {
            socket::set_md5(socket.as_fd(), peer.peer_ip, password.0.as_bytes())?;
        }
        guard(&socket, &peer)?;
        if let Some(source) = peer.source_address {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(address).await
    };
    match tokio::time::timeout(patience, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("cannot connect to {address}: {error}")),
        Err(_) => Err(format!("cannot connect to {address}: no answer in {} s", patience.as_secs())),
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Messages are whole when they are written. Without it they wait for others, no more.
        let _ = stream.set_nodelay(true);
        Self { stream, input: Vec::new(), output: Vec::new(), sent: 0 }
    }

    pub(super) fn local_address(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|address| address.ip().to_canonical())
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Bytes that wait to be sent.
    pub(super) fn backlog(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Waits until it can be read, or written where something waits.
    pub(super) async fn ready(&self) -> io::Result<Ready> {
        let interest = if self.backlog() > 0 { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.stream.ready(interest).await
    }

    /// Writes what the socket takes.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while self.backlog() > 0 {
            match self.stream.try_write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.output.shrink_to(CHUNK);
        self.sent = 0;
        Ok(())
    }

    /// Reads what is there, once; whether the peer is still there.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        let start = self.input.len();
        self.input.resize(start + CHUNK, 0);
        let met = self.stream.try_read(&mut self.input[start..]);
        self.input.truncate(start + met.as_ref().copied().unwrap_or(0));
        match met {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The next message from `at` on, and where it ends.
    pub(super) fn message(&self, at: usize, dialect: &Dialect) -> Option<(usize, Result<Message, Notification>)> {
        let rest = &self.input[at..];
        match frame(rest, dialect) {
            Ok(Some(length)) if rest.len() >= length => Some((at + length, Message::decode(&rest[..length], dialect))),
            Ok(_) => None,
            Err(told) => Some((self.input.len(), Err(told))),
        }
    }

    /// What was read up to `at` is dealt with.
    pub(super) fn consume(&mut self, at: usize) {
        self.input.drain(..at);
        self.input.shrink_to(CHUNK);
    }

    /// Delivers what waits, then closes. The peer may take its time: nobody waits for it.
    pub(super) fn close(mut self) {
        if self.write().is_ok() && self.backlog() == 0 {
            return;
        }
        tokio::spawn(async move {
            let rest = self.output.split_off(self.sent);
            // A peer that does not read it will see the end of the connection.
            let _ = tokio::time::timeout(LINGER, self.stream.write_all(&rest)).await;
        });
    }
}
