//! The BGP speaker: sessions on TCP around the state machines of crate `bgp`.
//!
//! One task a peer ([`peer`]) owns its state machine, timers and connections; one listens ([`listen`]); one does BFD
//! ([`bfd`]); all share the table of routes. Sockets close without a word when the speaker is dropped or killed, so that
//! peers keep the routes (RFC 4724); [`Handle::shut_down`] ends sessions for good. [`mesh`] says who peers with whom.

mod bfd;
mod config;
mod connection;
mod duration;
mod listen;
pub mod mesh;
mod peer;
mod status;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bgp::message::Notification;
use bgp::message::notification::{ADMINISTRATIVE_SHUTDOWN, CONFIGURATION_CHANGE, DECONFIGURED};
use bgp::rib::{Change, LOCAL, PeerId, Rib, Selection};
use bgp::session::State;
use bgp::{Family, Prefix};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

pub use bgp::rib::Origination;
pub use config::{Bfd, Config, DEFAULT_AS, DEFAULT_PORT, Password, Peer, RESTART_TIME};
pub use status::PeerStatus;

use peer::Order;
use status::Report;

/// How long routes of before a restart are awaited (RFC 4724's selection deferral timer).
const DEFERRAL: Duration = Duration::from_secs(30);
/// Changes handed on at once.
const CHANGES: usize = 4096;

/// What the daemon is to do with the kernel's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Changes(Vec<Change>),
    /// All peers have told what they know, or took too long: routes of before, which no change has named, are stale.
    Synchronised,
    /// With whom there is a session. After a restart, not before `Synchronised`.
    Established(BTreeSet<IpAddr>),
}

/// Why a speaker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen for BGP on {address} port {port}: {source}")]
    Listen { address: IpAddr, port: u16, source: io::Error },
    #[error("peer {peer}: {source}")]
    Filter { peer: String, source: bgp::filter::Invalid },
    #[error("peers {one} and {other} have the same address {address}")]
    SameAddress { one: String, other: String, address: IpAddr },
}

/// What all tasks share. Who needs several at once locks them in this order.
struct Shared {
    rib: Mutex<Rib>,
    reports: Mutex<BTreeMap<PeerId, Report>>,
    peers: Mutex<HashMap<IpAddr, Member>>,
    /// The kernel is to hear of something, or waiting is over.
    changed: Notify,
    bfd: bfd::Sessions,
}

/// A peer that has a task.
struct Member {
    id: PeerId,
    config: Peer,
    orders: mpsc::UnboundedSender<Order>,
    wake: Arc<Notify>,
    task: AbortHandle,
}

/// A lock that a panicked task left is as good as any: what it guards is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Wakes those who have something to tell.
    fn wake(&self) {
        let rib = lock(&self.rib);
        for member in lock(&self.peers).values().filter(|member| rib.has_updates(member.id)) {
            member.wake.notify_one();
        }
        if rib.has_changes() {
            self.changed.notify_one();
        }
    }

    fn established(&self) -> BTreeSet<IpAddr> {
        let reports = lock(&self.reports);
        let stands = |member: &&Member| reports.get(&member.id).is_some_and(|r| r.state == State::Established);
        lock(&self.peers).values().filter(stands).map(|member| member.config.peer_ip).collect()
    }

    /// Says to all that routes of before the restart are not awaited any more.
    fn wake_all(&self) {
        lock(&self.peers).values().for_each(|member| member.wake.notify_one());
        self.changed.notify_one();
    }
}

/// A speaker that runs until dropped.
pub struct Handle {
    shared: Arc<Shared>,
    config: Config,
    last_id: PeerId,
    listeners: listen::Listeners,
    tasks: JoinSet<()>,
}

/// What the kernel still has routes of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Predecessor {
    /// There was none, or it left nothing.
    None,
    /// One that had sessions with these peers; with all, where it is not known. Peers are told of the restart, and nothing
    /// is told to them or to the kernel before these have told their routes, or half a minute.
    With(Option<BTreeSet<IpAddr>>),
}

/// Starts a speaker.
///
/// # Errors
/// Where the port cannot be had, or a peer's configuration cannot be meant.
pub async fn start(config: Config, predecessor: Predecessor) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
    check(&config)?;
    let restarting = predecessor != Predecessor::None;
    let listeners = listen::Listeners::open(&config)?;
    let shared = Arc::new(Shared {
        rib: Mutex::new(Rib::new(config.identity(), restarting)),
        peers: Mutex::default(),
        reports: Mutex::default(),
        changed: Notify::new(),
        bfd: bfd::Sessions::default(),
    });
    let (events, receiver) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(hand_on(Arc::clone(&shared), events));
    let mut handle =
        Handle { shared, config: Config { peers: Vec::new(), ..config.clone() }, last_id: LOCAL, listeners, tasks };
    handle.listeners.serve(&handle.shared, &mut handle.tasks);
    let awaits = |peer: &Peer| match &predecessor {
        Predecessor::None => false,
        Predecessor::With(known) => known.as_ref().is_none_or(|known| known.contains(&peer.peer_ip)),
    };
    let awaited = config.peers.iter().any(awaits);
    for peer in config.peers {
        let awaits = awaits(&peer);
        handle.add(peer, awaits);
    }
    if restarting {
        let shared = Arc::clone(&handle.shared);
        handle.tasks.spawn(async move {
            tokio::time::sleep(if awaited { DEFERRAL } else { Duration::ZERO }).await;
            lock(&shared.rib).stop_waiting();
            shared.wake_all();
        });
    }
    Ok((handle, receiver))
}

fn check(config: &Config) -> Result<(), Error> {
    let mut names: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for peer in &config.peers {
        for filter in &peer.filters {
            filter.check().map_err(|source| Error::Filter { peer: peer.name.clone(), source })?;
        }
        if let Some(one) = names.insert(peer.peer_ip, &peer.name) {
            return Err(Error::SameAddress { one: one.into(), other: peer.name.clone(), address: peer.peer_ip });
        }
    }
    Ok(())
}

/// The next number after `last` that no peer has. A speaker that lives long, with peers that come and go, uses up all.
fn free_id(last: PeerId, used: impl Fn(PeerId) -> bool) -> PeerId {
    let mut id = last;
    loop {
        id = id.wrapping_add(1);
        if id != LOCAL && !used(id) {
            return id;
        }
    }
}

/// Tells the daemon what changed, and once that the table is complete.
async fn hand_on(shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let (mut synchronised, mut known) = (false, BTreeSet::new());
    loop {
        let (changes, waiting) = {
            let mut rib = lock(&shared.rib);
            (rib.take_changes(CHANGES), rib.is_waiting())
        };
        let established = if waiting { known.clone() } else { shared.established() };
        let event = if !changes.is_empty() {
            Event::Changes(changes)
        } else if !waiting && !synchronised {
            synchronised = true;
            Event::Synchronised
        } else if established != known {
            known.clone_from(&established);
            Event::Established(established)
        } else {
            shared.changed.notified().await;
            continue;
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

impl Handle {
    /// Changes peers and settings. Sessions of peers that stay the same are not touched; where only filters and the like
    /// differ, the session stays too.
    ///
    /// # Errors
    /// Where a peer's configuration cannot be meant, or a new port cannot be had. Nothing is changed then.
    pub async fn configure(&mut self, config: Config) -> Result<(), Error> {
        check(&config)?;
        if config.listen_port != self.config.listen_port {
            self.listeners = listen::Listeners::open(&config)?;
            self.listeners.serve(&self.shared, &mut self.tasks);
            lock(&self.shared.peers).values().for_each(|member| self.expect(&member.config));
        }
        let same_speaker = self.config.same_speaker(&config);
        let same_links = self.config.links == config.links;
        lock(&self.shared.rib).set_identity(config.identity());
        self.config = Config { peers: Vec::new(), ..config.clone() };
        let known: Vec<(IpAddr, Peer)> =
            lock(&self.shared.peers).iter().map(|(address, member)| (*address, member.config.clone())).collect();
        for (address, old) in known {
            match config.peers.iter().find(|peer| peer.peer_ip == address) {
                Some(new) if same_speaker && old.same_session(new) => {
                    self.change(&old, new);
                    if !same_links && new.policy().rules.import_by_interface() {
                        self.ask_anew(address);
                    }
                }
                Some(new) => {
                    self.remove(address, Notification::new(CONFIGURATION_CHANGE)).await;
                    self.add(new.clone(), false);
                }
                None => self.remove(address, Notification::new(DECONFIGURED)).await,
            }
        }
        for peer in config.peers {
            if !lock(&self.shared.peers).contains_key(&peer.peer_ip) {
                self.add(peer, false);
            }
        }
        self.shared.wake();
        Ok(())
    }

    /// `awaited`: its routes are waited for, as it had a session before the restart.
    fn add(&mut self, config: Peer, awaited: bool) {
        // What is left of the tasks of peers that were removed.
        while self.tasks.try_join_next().is_some() {}
        let id = free_id(self.last_id, |id| lock(&self.shared.peers).values().any(|member| member.id == id));
        self.last_id = id;
        let mut rib = lock(&self.shared.rib);
        rib.add_peer(id, config.policy());
        if awaited {
            rib.await_peer(id);
        }
        drop(rib);
        self.expect(&config);
        let (orders, inbox) = mpsc::unbounded_channel();
        let wake = Arc::new(Notify::new());
        let task = peer::Task::new(id, &config, &self.config, Arc::clone(&self.shared), Arc::clone(&wake));
        let task = self.tasks.spawn(task.run(inbox));
        let member = Member { id, orders, wake, task, config };
        lock(&self.shared.peers).insert(member.config.peer_ip, member);
    }

    /// Its connections are taken from now on, signed where it has a password.
    fn expect(&self, config: &Peer) {
        if let Err(error) = self.listeners.expect(config) {
            tracing::warn!("peer {}: cannot set the password of the listening socket: {error}", config.name);
        }
    }

    fn change(&self, old: &Peer, new: &Peer) {
        if old == new {
            return;
        }
        let (id, orders) = {
            let mut peers = lock(&self.shared.peers);
            let Some(member) = peers.get_mut(&new.peer_ip) else { return };
            member.config = new.clone();
            (member.id, member.orders.clone())
        };
        let (before, after) = (old.policy(), new.policy());
        let import = !before.rules.same_import(&after.rules) || before.allowed_local_as != after.allowed_local_as;
        let limit = before.max_prefixes != after.max_prefixes;
        lock(&self.shared.rib).set_policy(id, after);
        // The task may be gone where it panicked.
        if import {
            let _ = orders.send(Order::AskAnew);
        }
        if limit {
            let _ = orders.send(Order::Limit);
        }
    }

    fn ask_anew(&self, address: IpAddr) {
        if let Some(member) = lock(&self.shared.peers).get(&address) {
            // The task may be gone where it panicked.
            let _ = member.orders.send(Order::AskAnew);
        }
    }

    async fn remove(&mut self, address: IpAddr, told: Notification) {
        let Some(member) = lock(&self.shared.peers).remove(&address) else { return };
        let (done, waits) = tokio::sync::oneshot::channel();
        let _ = member.orders.send(Order::Stop(told, done));
        if tokio::time::timeout(Duration::from_secs(2), waits).await.is_err() {
            tracing::warn!("peer {}: its task does not end", member.config.name);
        }
        member.task.abort();
        self.listeners.forget(&member.config);
        lock(&self.shared.rib).remove_peer(member.id);
        lock(&self.shared.reports).remove(&member.id);
        self.shared.wake_all();
    }

    /// Makes these the routes of this node, in place of all of before.
    pub fn originate(&self, routes: &[Origination]) {
        lock(&self.shared.rib).originate(routes);
        self.shared.wake();
    }

    /// Ends BFD, before this process ends, so that no peer takes that for a failure. Sessions are left to close without a
    /// word.
    pub async fn end_bfd(&self) {
        let members: Vec<_> = lock(&self.shared.peers).values().map(|member| member.orders.clone()).collect();
        for orders in members {
            let (done, waits) = tokio::sync::oneshot::channel();
            let _ = orders.send(Order::EndBfd(done));
            let _ = tokio::time::timeout(Duration::from_secs(1), waits).await;
        }
    }

    /// Ends all sessions for good, saying why: peers drop this node's routes at once.
    pub async fn shut_down(mut self, why: &str) {
        let addresses: Vec<IpAddr> = lock(&self.shared.peers).keys().copied().collect();
        for address in addresses {
            self.remove(address, Notification::saying(ADMINISTRATIVE_SHUTDOWN, why)).await;
        }
    }

    /// All peers, by name and address.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let now = Instant::now();
        let rib = lock(&self.shared.rib);
        let reports = lock(&self.shared.reports);
        let mut peers: Vec<PeerStatus> = lock(&self.shared.peers)
            .values()
            .map(|member| {
                let report = reports.get(&member.id).cloned().unwrap_or_else(Report::fresh);
                let counts = rib.counts(member.id);
                PeerStatus {
                    name: member.config.name.clone(),
                    address: member.config.peer_ip,
                    as_number: member.config.as_number,
                    state: report.state,
                    uptime: now.duration_since(report.since).as_secs(),
                    received: counts.received,
                    accepted: counts.accepted,
                    sent: counts.sent,
                    last_error_ago: report
                        .last_error
                        .as_ref()
                        .map(|(_, at)| now.saturating_duration_since(*at).as_secs()),
                    last_error: report.last_error.map(|(words, _)| words),
                    bfd: report.bfd,
                    stale_for: report.stale_until.map(|until| until.duration_since(now).as_secs()),
                }
            })
            .collect();
        peers.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
        peers
    }

    /// The routes in use of a family, up to `most`, in order.
    pub fn routes(&self, family: Family, most: usize) -> Vec<(Prefix, Selection)> {
        let rib = lock(&self.shared.rib);
        let mut routes: Vec<_> = rib.routes(family).filter(|(_, selection)| selection.best.is_some()).collect();
        routes.sort_by_key(|(prefix, _)| *prefix);
        routes.truncate(most);
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_used_again_when_its_peer_is_gone_and_never_that_of_this_node() {
        assert_eq!(free_id(LOCAL, |_| false), 1);
        assert_eq!(free_id(PeerId::MAX, |id| id < 3), 3);
    }
}
