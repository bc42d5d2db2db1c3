//! BFD sessions on UDP around the state machine of `bgp::bfd`, one task for each peer that asks.
//!
//! Source: RFC 5881: port 3784, source ports from 49152, TTL 255 both ways.

use std::collections::HashMap;
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bgp::bfd::{Diagnostic, Output, Packet, Session, Settings, State};
use kernel::socket;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::config::Bfd;

const PORT: u16 = 3784;
/// Where source ports begin.
const SOURCE_PORTS: u16 = 49152;
const TTL: u8 = 255;
/// A packet is 24 bytes; what is longer is authenticated, and dropped.
const PACKET: usize = 64;
/// Packets of a peer that wait; who sends faster loses some.
const WAITING: usize = 16;

/// What a peer's task hears of its BFD session.
pub(super) struct News {
    pub state: State,
    pub lost: Option<Lost>,
}

pub(super) struct Lost {
    pub diagnostic: Diagnostic,
    pub independent: bool,
}

/// A BFD session. It ends with this value: the peer then takes it for lost.
pub(super) struct Watch {
    news: mpsc::UnboundedReceiver<News>,
    stop: oneshot::Sender<()>,
    task: JoinSet<()>,
}

impl Watch {
    pub(super) async fn news(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            // It could not begin, which was said.
            None => pending().await,
        }
    }

    /// Ends it as the administrator's will, which the peer takes for no failure (RFC 5882 section 3.2).
    pub(super) async fn end(mut self) {
        // It may not have begun.
        let _ = self.stop.send(());
        while self.task.join_next().await.is_some() {}
    }
}

/// Who gets the packets of which peer.
type Routes = Arc<Mutex<HashMap<IpAddr, mpsc::Sender<Packet>>>>;

/// All sessions of a speaker. The port is opened with the first.
#[derive(Default)]
pub(super) struct Sessions {
    routes: Routes,
    receivers: Mutex<Option<JoinSet<()>>>,
}

impl Sessions {
    pub(super) fn watch(&self, peer: IpAddr, source: Option<IpAddr>, asked: Bfd) -> Watch {
        let (sender, packets) = mpsc::channel(WAITING);
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, sender);
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| receivers(&self.routes));
        let (news, heard) = mpsc::unbounded_channel();
        let settings = Settings {
            discriminator: (random() as u32).max(1),
            transmit: asked.transmit,
            receive: asked.receive,
            multiplier: asked.multiplier.max(1),
        };
        let (stop, stopped) = oneshot::channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            match sender_socket(peer, source) {
                Ok(socket) => {
                    let to = SocketAddr::new(peer, PORT);
                    let session = Session::new(settings);
                    Task { session, socket, to, transmit: None, detect: None, told: None, news }
                        .run(packets, stopped)
                        .await;
                }
                Err(error) => tracing::warn!("no BFD with {peer}: cannot open a socket: {error}"),
            }
        });
        Watch { news: heard, stop, task }
    }
}

fn receivers(routes: &Routes) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        match receiver_socket(address) {
            Ok(socket) => drop(tasks.spawn(receive(socket, Arc::clone(routes)))),
            Err(error) => tracing::warn!("BFD does not listen on {address} port {PORT}: {error}"),
        }
    }
    tasks
}

fn receiver_socket(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = socket::udp(SocketAddr::new(address, PORT))?;
    socket::ask_for_ttl(socket.as_fd(), address.is_ipv6())?;
    UdpSocket::from_std(socket)
}

/// A socket from the first free of the ports that the RFC allows. It is not connected: ICMP from a peer that is not there
/// yet would break it.
fn sender_socket(peer: IpAddr, source: Option<IpAddr>) -> io::Result<UdpSocket> {
    let any = if peer.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    let first = SOURCE_PORTS + (random() % 8192) as u16;
    for port in first..first + 64 {
        match socket::udp(SocketAddr::new(source.unwrap_or(any), port)) {
            Ok(socket) => {
                socket::set_ttl(socket.as_fd(), peer, TTL)?;
                return UdpSocket::from_std(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn receive(socket: UdpSocket, routes: Routes) {
    loop {
        let mut buffer = [0; PACKET];
        let met = socket.async_io(Interest::READABLE, || socket::receive(socket.as_fd(), &mut buffer)).await;
        let Ok((length, from, ttl)) = met else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Only who is on the link can send it (RFC 5881 section 5).
        if ttl != Some(TTL) {
            continue;
        }
        if let Ok(packet) = Packet::decode(&buffer[..length])
            && let Some(session) = routes.lock().unwrap_or_else(PoisonError::into_inner).get(&from.ip())
        {
            // Its session may just have ended, or be flooded.
            let _ = session.try_send(packet);
        }
    }
}

struct Task {
    session: Session,
    socket: UdpSocket,
    to: SocketAddr,
    transmit: Option<Instant>,
    detect: Option<Instant>,
    /// The state that the peer's task knows.
    told: Option<State>,
    news: mpsc::UnboundedSender<News>,
}

impl Task {
    async fn run(mut self, mut packets: mpsc::Receiver<Packet>, mut stopped: oneshot::Receiver<()>) {
        let outputs = self.session.start();
        self.carry_out(outputs);
        loop {
            let outputs = tokio::select! {
                packet = packets.recv() => match packet {
                    Some(packet) => self.session.receive(&packet),
                    None => return,
                },
                stop = &mut stopped => {
                    if stop.is_ok() {
                        let outputs = self.session.stop();
                        self.carry_out(outputs);
                    }
                    return;
                }
                () = at(self.transmit) => self.session.transmit(),
                () = at(self.detect) => {
                    self.detect = None;
                    self.session.detect()
                }
            };
            self.carry_out(outputs);
        }
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        let mut lost = None;
        for output in outputs {
            match output {
                // What cannot be sent is as good as lost.
                Output::Send(packet) => drop(self.socket.try_send_to(&packet.encode(), self.to)),
                Output::Transmit(after) => self.transmit = Some(Instant::now() + after.mul_f64(1.0 - 0.25 * chance())),
                Output::Pause => self.transmit = None,
                Output::Detect(after) => self.detect = Some(Instant::now() + after),
                Output::Up => {}
                Output::Down { diagnostic, independent } => lost = Some(Lost { diagnostic, independent }),
            }
        }
        let state = self.session.state();
        let changed = self.told.replace(state) != Some(state);
        if changed || lost.is_some() {
            // The peer's task may just end.
            let _ = self.news.send(News { state, lost });
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => pending().await,
    }
}

/// From 0 to 1.
pub(super) fn chance() -> f64 {
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The standard library keys its hash maps at random; there is no need of more for jitter and names of sessions.
fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}
