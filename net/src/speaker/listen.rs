//! The port at which peers connect, for IPv4 and IPv6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bgp::message::notification::REJECTED;
use bgp::message::{Dialect, Message, Notification};
use kernel::socket;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::config::{Config, Peer};
use super::connection::{Connection, guard};
use super::peer::Order;
use super::{Error, Shared, lock};

const BACKLOG: u32 = 128;

/// The listening sockets. They close with this value.
pub(super) struct Listeners {
    sockets: Vec<Arc<TcpListener>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Listeners {
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let mut sockets = Vec::new();
        for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            match open(SocketAddr::new(address, config.listen_port)) {
                Ok(listener) => sockets.push(Arc::new(listener)),
                // A host without IPv6 has no peers of it either.
                Err(error) if address.is_ipv6() => tracing::info!("BGP does not listen on IPv6: {error}"),
                Err(source) => return Err(Error::Listen { address, port: config.listen_port, source }),
            }
        }
        Ok(Self { sockets, tasks: Vec::new() })
    }

    pub(super) fn serve(&mut self, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
        for socket in &self.sockets {
            self.tasks.push(tasks.spawn(serve(Arc::clone(socket), Arc::clone(shared))));
        }
    }

    /// A peer's connections must be signed, where it has a password.
    pub(super) fn expect(&self, peer: &Peer) -> io::Result<()> {
        let Some(password) = &peer.password else { return Ok(()) };
        self.of_family(peer.peer_ip)
            .try_for_each(|one| socket::set_md5(one.as_fd(), peer.peer_ip, password.0.as_bytes()))
    }

    pub(super) fn forget(&self, peer: &Peer) {
        if peer.password.is_some() {
            for one in self.of_family(peer.peer_ip) {
                // It was set before; a key that stays would only shut out a peer that is none any more.
                let _ = socket::set_md5(one.as_fd(), peer.peer_ip, &[]);
            }
        }
    }

    fn of_family(&self, address: IpAddr) -> impl Iterator<Item = &TcpListener> {
        let of_family = move |one: &&TcpListener| one.local_addr().is_ok_and(|own| own.is_ipv4() == address.is_ipv4());
        self.sockets.iter().map(Arc::as_ref).filter(of_family)
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        socket::set_v6_only(socket.as_fd())?;
    }
    // A peer with GTSM drops what came from farther away, the answer to its first segment included.
    socket::set_ttl(socket.as_fd(), address.ip(), 255)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn serve(listener: Arc<TcpListener>, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => offer(stream, from.ip(), &shared),
            Err(error) => {
                tracing::warn!("cannot accept a BGP connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn offer(stream: TcpStream, from: IpAddr, shared: &Shared) {
    let peers = lock(&shared.peers);
    match peers.get(&from) {
        Some(member) => match guard(&stream, &member.config) {
            Ok(()) => drop(member.orders.send(Order::Accepted(stream))),
            Err(error) => tracing::warn!("peer {}: cannot guard its connection: {error}", member.config.name),
        },
        None => {
            tracing::debug!("a BGP connection from {from}, which is no peer");
            let mut connection = Connection::new(stream);
            connection.push(&Message::Notification(Notification::new(REJECTED)).encode(&Dialect::BEFORE));
            connection.close();
        }
    }
}
