//! One peer's task: the state machine's inputs are gathered here, and its outputs carried out.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bgp::Family;
use bgp::message::{Dialect, Message, Notification, Update};
use bgp::rib::{Live, PeerId};
use bgp::session::{Down, Input, Negotiated, Output, Session, Side, State, Timer};
use tokio::io::Ready;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep_until;
use tokio_util::task::AbortOnDropHandle;

use super::config::{Config, Peer};
use super::connection::{Connection, connect};
use super::status::Report;
use super::{Shared, bfd, lock};

/// More is not encoded while so many bytes wait for the peer.
const BACKLOG: usize = 256 * 1024;
/// Prefixes encoded at once.
const PREFIXES: usize = 16 * 1024;
/// The least time for a peer that restarted to tell its routes, once its session stands.
const RETELL: Duration = Duration::from_secs(120);

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection on its way; given up with this value.
type Attempt = AbortOnDropHandle<Result<TcpStream, String>>;

/// What others ask of a peer's task.
pub(super) enum Order {
    /// The peer has connected.
    Accepted(TcpStream),
    /// The peer is to tell its routes again.
    AskAnew,
    /// How many prefixes the peer may tell has changed.
    Limit,
    /// End BFD; the sender is told when it has ended.
    EndBfd(oneshot::Sender<()>),
    /// End the session, saying this; the sender is told when it has ended.
    Stop(Notification, oneshot::Sender<()>),
}

pub(super) struct Task {
    id: PeerId,
    config: Peer,
    shared: Arc<Shared>,
    wake: Arc<Notify>,
    session: Session,
    connections: [Option<Connection>; 2],
    offered: Option<TcpStream>,
    connecting: Option<Attempt>,
    timers: BTreeMap<Timer, Instant>,
    established: Option<(Side, Box<Negotiated>)>,
    stale_until: Option<Instant>,
    /// What was read and is not yet in the table.
    updates: Vec<Update>,
    report: Report,
    bfd: Option<bfd::Watch>,
    was_waiting: bool,
}

/// What happened.
enum Happened {
    Ordered(Option<Order>),
    Expired,
    Ready(Side, io::Result<Ready>),
    Connected(Result<TcpStream, String>),
    Bfd(bfd::News),
    Woken,
}

impl Task {
    pub(super) fn new(id: PeerId, config: &Peer, speaker: &Config, shared: Arc<Shared>, wake: Arc<Notify>) -> Self {
        let was_waiting = lock(&shared.rib).is_waiting();
        Self {
            id,
            config: config.clone(),
            session: Session::new(config.settings(speaker), was_waiting),
            shared,
            wake,
            connections: [None, None],
            offered: None,
            connecting: None,
            timers: BTreeMap::new(),
            established: None,
            stale_until: None,
            updates: Vec::new(),
            report: Report::fresh(),
            bfd: None,
            was_waiting,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        if let Some(asked) = self.config.bfd {
            self.bfd = Some(self.shared.bfd.watch(self.config.peer_ip, self.config.source_address, asked));
        }
        self.handle(Input::Start);
        loop {
            self.tell();
            self.report();
            match self.next(&mut inbox).await {
                Happened::Ordered(None) => return,
                Happened::Ordered(Some(Order::Stop(told, done))) => {
                    self.handle(Input::Stop(told));
                    self.end_bfd().await;
                    // Nobody may wait for it any more.
                    let _ = done.send(());
                    return;
                }
                Happened::Ordered(Some(Order::Accepted(stream))) => self.offer(Side::Incoming, stream),
                Happened::Ordered(Some(Order::AskAnew)) => self.ask_anew(),
                Happened::Ordered(Some(Order::Limit)) => self.limit(),
                Happened::Ordered(Some(Order::EndBfd(done))) => {
                    self.end_bfd().await;
                    // Nobody may wait for it any more.
                    let _ = done.send(());
                }
                Happened::Expired => self.expired(),
                Happened::Ready(side, ready) => self.ready(side, ready),
                Happened::Connected(Ok(stream)) => self.offer(Side::Outgoing, stream),
                Happened::Connected(Err(words)) => self.handle(Input::ConnectFailed(words)),
                Happened::Bfd(news) => self.bfd_news(news),
                Happened::Woken => self.waiting_over(),
            }
        }
    }

    async fn end_bfd(&mut self) {
        if let Some(bfd) = self.bfd.take() {
            bfd.end().await;
        }
    }

    async fn next(&mut self, inbox: &mut mpsc::UnboundedReceiver<Order>) -> Happened {
        let first = self.timers.values().copied().chain(self.stale_until).min();
        let [outgoing, incoming] = &self.connections;
        tokio::select! {
            order = inbox.recv() => Happened::Ordered(order),
            () = async { match first { Some(at) => sleep_until(at.into()).await, None => pending().await } } => Happened::Expired,
            ready = readiness(outgoing.as_ref()) => Happened::Ready(Side::Outgoing, ready),
            ready = readiness(incoming.as_ref()) => Happened::Ready(Side::Incoming, ready),
            result = finished(&mut self.connecting) => Happened::Connected(result),
            news = watched(&mut self.bfd) => Happened::Bfd(news),
            () = self.wake.notified() => Happened::Woken,
        }
    }

    fn handle(&mut self, input: Input) {
        let outputs = self.session.handle(input);
        outputs.into_iter().for_each(|output| self.carry_out(output));
    }

    fn carry_out(&mut self, output: Output) {
        if !matches!(output, Output::Update(_) | Output::Start(..)) {
            self.update();
        }
        match output {
            Output::Connect => {
                let attempt = connect(self.config.clone(), CONNECT);
                self.connecting = Some(AbortOnDropHandle::new(tokio::spawn(attempt)));
            }
            Output::Accept(side) => self.connections[side as usize] = self.offered.take().map(Connection::new),
            Output::Refuse(told) => {
                if let Some(mut connection) = self.offered.take().map(Connection::new) {
                    connection.push(&Message::Notification(told).encode(&Dialect::BEFORE));
                    connection.close();
                }
            }
            Output::Send(side, message) => self.send(side, &message),
            Output::Close(side) => {
                if let Some(connection) = self.connections[side as usize].take() {
                    connection.close();
                }
            }
            Output::Start(timer, after) => drop(self.timers.insert(timer, Instant::now() + jittered(timer, after))),
            Output::Cancel(timer) => drop(self.timers.remove(&timer)),
            Output::Up(side, negotiated) => self.up(side, negotiated),
            Output::Update(update) => {
                if let Some(fault) = update.faults.first() {
                    tracing::warn!("peer {}: {fault}", self.config.name);
                    self.report.last_error = Some((fault.to_string(), Instant::now()));
                }
                self.updates.push(update);
            }
            Output::Refresh(family) => lock(&self.shared.rib).refresh(self.id, family),
            Output::Down(down) => self.down(&down),
        }
    }

    /// Takes in what the peer told: all that was read together, since the table is shared.
    fn update(&mut self) {
        if self.updates.is_empty() {
            return;
        }
        let mut rib = lock(&self.shared.rib);
        for update in std::mem::take(&mut self.updates) {
            let ended = update.end_of_rib.is_some();
            rib.update(self.id, update);
            if ended && rib.has_told_all(self.id) {
                self.stale_until = None;
            }
        }
        let excess = rib.excess(self.id);
        drop(rib);
        self.end_by(excess);
    }

    fn send(&mut self, side: Side, message: &Message) {
        let dialect = self.session.dialect(side);
        if let Some(connection) = &mut self.connections[side as usize] {
            connection.push(&message.encode(&dialect));
            // What fails here fails again when it is read.
            let _ = connection.write();
        }
    }

    fn offer(&mut self, side: Side, stream: TcpStream) {
        self.offered = Some(stream);
        self.handle(Input::Connected(side));
        self.offered = None;
    }

    fn up(&mut self, side: Side, negotiated: Box<Negotiated>) {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let local_address =
            self.connections[side as usize].as_ref().and_then(Connection::local_address).unwrap_or(nowhere);
        tracing::info!("peer {}: session established", self.config.name);
        let live = Live { negotiated: (*negotiated).clone(), peer_address: self.config.peer_ip, local_address };
        lock(&self.shared.rib).up(self.id, live);
        if self.stale_until.is_some() {
            let time = negotiated.restart.as_ref().map_or(0, |restart| restart.time);
            self.stale_until = Some(Instant::now() + Duration::from_secs(time.into()).max(RETELL));
        }
        self.established = Some((side, negotiated));
        if !self.was_waiting {
            // Whatever becomes of this session, packets go on by its routes until a next one says otherwise.
            self.session.restarted();
        }
        self.shared.wake_all();
    }

    fn down(&mut self, down: &Down) {
        tracing::warn!("peer {}: session ended: {}", self.config.name, down.reason);
        let restart = self.established.take().and_then(|(_, negotiated)| negotiated.restart);
        let restart = restart.filter(|restart| down.graceful && !restart.families.is_empty());
        let kept: Vec<_> =
            restart.iter().flat_map(|restart| restart.families.iter().map(|(family, _)| *family)).collect();
        lock(&self.shared.rib).down(self.id, &kept);
        self.stale_until = restart.map(|restart| Instant::now() + Duration::from_secs(restart.time.into()));
        self.shared.wake_all();
    }

    fn expired(&mut self) {
        let now = Instant::now();
        if self.stale_until.is_some_and(|until| until <= now) {
            self.stale_until = None;
            lock(&self.shared.rib).expire(self.id);
            self.shared.wake();
        }
        let due: Vec<Timer> = self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            if let Timer::Hold(side) = timer {
                // What the peer said in time counts, also where this process could not look.
                self.ready(side, Ok(Ready::READABLE));
            }
            // What was cancelled or begun anew meanwhile is not due any more.
            if self.timers.get(&timer).is_some_and(|at| *at <= now) {
                self.timers.remove(&timer);
                self.handle(Input::Expired(timer));
            }
        }
    }

    fn ready(&mut self, side: Side, ready: io::Result<Ready>) {
        let Some(connection) = &mut self.connections[side as usize] else { return };
        let done = ready.and_then(|ready| {
            if ready.is_writable() {
                connection.write()?;
            }
            if ready.is_readable() || ready.is_read_closed() { connection.read() } else { Ok(true) }
        });
        self.messages(side);
        if !matches!(done, Ok(true)) {
            self.handle(Input::Closed(side));
        }
    }

    /// Hands on every whole message that was read.
    fn messages(&mut self, side: Side) {
        let mut at = 0;
        while let Some(connection) = &self.connections[side as usize] {
            let Some((end, message)) = connection.message(at, &self.session.dialect(side)) else { break };
            at = end;
            self.handle(Input::Received(side, message));
        }
        self.update();
        if let Some(connection) = &mut self.connections[side as usize] {
            connection.consume(at);
        }
        if at > 0 {
            self.after_updates();
        }
    }

    fn after_updates(&mut self) {
        let over = self.was_waiting && !lock(&self.shared.rib).is_waiting();
        if over {
            self.shared.wake_all();
        } else {
            self.shared.wake();
        }
    }

    fn waiting_over(&mut self) {
        if self.was_waiting && !lock(&self.shared.rib).is_waiting() {
            self.was_waiting = false;
            self.session.restarted();
        }
    }

    /// Fills the connection with what the peer is to be told.
    fn tell(&mut self) {
        let Some((side, _)) = &self.established else { return };
        let Some(connection) = &mut self.connections[*side as usize] else { return };
        // What is left waits for the socket, which then wakes this task.
        while connection.backlog() < BACKLOG {
            let mut rib = lock(&self.shared.rib);
            if !rib.has_updates(self.id) {
                break;
            }
            let news = rib.take_news(self.id, PREFIXES);
            drop(rib);
            let (bytes, unsaid) = news.encode();
            if unsaid != [0; 2] {
                lock(&self.shared.rib).unsaid(self.id, unsaid);
            }
            connection.push(&bytes);
            // A connection that broke is found so when it is read.
            let _ = connection.write();
        }
    }

    /// Ends the session where the peer has told more than it may.
    fn end_by(&mut self, excess: Option<(Family, u32)>) {
        if let Some((family, bound)) = excess {
            self.handle(Input::TooManyPrefixes(family, bound));
        }
    }

    /// Who waits because it told too much need not under another limit.
    fn limit(&mut self) {
        if self.timers.remove(&Timer::IdleHold).is_some() {
            self.handle(Input::Expired(Timer::IdleHold));
        }
        let excess = lock(&self.shared.rib).excess(self.id);
        self.end_by(excess);
    }

    fn ask_anew(&mut self) {
        let Some((side, negotiated)) = self.established.clone() else { return };
        if !negotiated.route_refresh {
            tracing::warn!(
                "peer {}: cannot be asked for its routes anew; its next session has the filters",
                self.config.name
            );
            return;
        }
        negotiated.families.iter().for_each(|family| self.send(side, &Message::RouteRefresh(*family)));
    }

    fn bfd_news(&mut self, news: bfd::News) {
        self.report.bfd = Some(news.state);
        if let Some(lost) = news.lost {
            tracing::warn!("peer {}: BFD: {}", self.config.name, lost.diagnostic);
            self.handle(Input::BfdDown { independent: lost.independent });
        }
    }

    fn report(&mut self) {
        let state = self.session.state();
        let changed = state != self.report.state;
        if changed {
            self.report.state = state;
            self.report.since = Instant::now();
        }
        // While a session stands, what ends is a second connection that nobody needs.
        if let Some(reason) = self.session.take_error().filter(|_| state != State::Established) {
            self.report.last_error = Some((reason.to_string(), Instant::now()));
            if reason.is_refusal() {
                lock(&self.shared.rib).stop_waiting_for(self.id);
                self.after_updates();
            }
        }
        self.report.stale_until = self.stale_until;
        lock(&self.shared.reports).insert(self.id, self.report.clone());
        if changed {
            self.shared.changed.notify_one();
        }
    }
}

async fn readiness(connection: Option<&Connection>) -> io::Result<Ready> {
    match connection {
        Some(connection) => connection.ready().await,
        None => pending().await,
    }
}

async fn finished(connecting: &mut Option<Attempt>) -> Result<TcpStream, String> {
    let Some(handle) = connecting else { return pending().await };
    let result = handle.await;
    *connecting = None;
    result.unwrap_or_else(|error| Err(format!("the attempt to connect failed: {error}")))
}

async fn watched(watch: &mut Option<bfd::Watch>) -> bfd::News {
    match watch {
        Some(watch) => watch.news().await,
        None => pending().await,
    }
}

/// Up to a quarter less, so that peers do not fall into step (RFC 4271 section 10). The hold timer is exact.
fn jittered(timer: Timer, after: Duration) -> Duration {
    match timer {
        Timer::Hold(_) => after,
        _ => after.mul_f64(1.0 - 0.25 * super::bfd::chance()),
    }
}
