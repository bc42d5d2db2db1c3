//! The routes: what each peer told (Adj-RIB-In), which are used (Loc-RIB), and what each peer is still to be told
//! (Adj-RIB-Out), as one table.
//!
//! What a peer was told is not kept: it follows from the best path and the export rules, so that only prefixes whose best
//! path changed are remembered, until they are sent. The same holds for what the kernel is to know.
//!
//! Source: RFC 4271 section 9, 4456 (reflection), 4724 (restart).

mod change;
mod export;
mod select;
mod table;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::attributes::{AsPath, Attributes, Community, NextHop};
use crate::filter::{self, Links, PeerType, Rules, Subject, Verdict};
use crate::message::Update;
use crate::prefix::{Family, Prefix};
use crate::session::Negotiated;

use export::Exporter;
pub use export::News;
use select::Origin;
pub use select::Selection;
use table::{Interner, Pending, Tables};
pub use table::{LOCAL, Path, PeerId};

/// What this speaker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub asn: u32,
    pub identifier: Ipv4Addr,
    /// Its cluster, where it reflects routes (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// How many equal paths are used together.
    pub maximum_paths: usize,
    /// This node's addresses, as next hops where a session's own address is of the other family.
    pub addresses: Vec<IpAddr>,
    /// By which filters know a route's interface.
    pub links: Arc<Links>,
}

/// Which next hop a peer is told, with Calico's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum NextHopMode {
    /// This node for what is told to or came from another AS, else the path's.
    #[default]
    Auto,
    /// This node.
    #[serde(rename = "Self")]
    Itself,
    /// The path's.
    Keep,
}

/// How routes of and to a peer are dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    pub rules: Arc<Rules>,
    pub next_hop_mode: NextHopMode,
    /// How often this AS may be in a path from the peer.
    pub allowed_local_as: usize,
    /// Routes from it and to it are reflected.
    pub reflector_client: bool,
    /// What this side calls itself to the peer, where not by the speaker's AS.
    pub local_as: Option<u32>,
    /// How many prefixes of a family it may tell.
    pub max_prefixes: Option<u32>,
}

const NOBODY: Origin =
    Origin { external: false, identifier: Ipv4Addr::UNSPECIFIED, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };

/// A session that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    pub negotiated: Negotiated,
    pub peer_address: IpAddr,
    pub local_address: IpAddr,
}

/// How many prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub received: usize,
    pub accepted: usize,
    /// Those on their way included.
    pub sent: usize,
}

impl Counts {
    /// One route in place of another; whether each was rejected.
    fn change(&mut self, old: Option<bool>, new: Option<bool>) {
        self.received = self.received + usize::from(new.is_some()) - usize::from(old.is_some());
        self.accepted = self.accepted + usize::from(new == Some(false)) - usize::from(old == Some(false));
    }
}

struct Peer {
    policy: Policy,
    origin: Origin,
    live: Option<Live>,
    /// Families whose End-of-RIB is still to be sent.
    owed: BTreeSet<Family>,
    /// Families of which the peer's End-of-RIB has not come.
    unheard: BTreeSet<Family>,
    /// By family.
    counts: [Counts; 2],
}

/// A route of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origination {
    pub prefix: Prefix,
    /// This node where it is not given.
    pub next_hop: Option<IpAddr>,
    pub communities: Vec<Community>,
}

/// What the kernel is to know of a prefix: no next hops where it is gone or this node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub prefix: Prefix,
    /// Shared by prefixes of the same path.
    pub next_hops: Arc<[NextHop]>,
    /// The metric that an import rule has set.
    pub priority: Option<u32>,
}

pub struct Rib {
    identity: Identity,
    tables: Tables,
    interner: Interner,
    peers: BTreeMap<PeerId, Peer>,
    /// What each peer with a session is to be told.
    pending: BTreeMap<PeerId, Pending>,
    changed: Pending,
    /// Peers whose routes are awaited after a restart before anything is told (RFC 4724 section 4.1).
    awaited: Option<BTreeSet<PeerId>>,
}

impl Rib {
    /// `restarting`: nothing is told before the peers of [`Rib::await_peer`] have told their routes, or
    /// [`Rib::stop_waiting`].
    pub fn new(identity: Identity, restarting: bool) -> Self {
        Self {
            identity,
            tables: Tables::default(),
            interner: Interner::default(),
            peers: BTreeMap::new(),
            pending: BTreeMap::new(),
            changed: Pending::default(),
            awaited: restarting.then(BTreeSet::new),
        }
    }

    pub fn add_peer(&mut self, id: PeerId, policy: Policy) {
        let peer = Peer {
            policy,
            origin: NOBODY,
            live: None,
            owed: BTreeSet::new(),
            unheard: BTreeSet::new(),
            counts: Default::default(),
        };
        self.peers.insert(id, peer);
    }

    /// A peer's session stood before the restart: nothing is told before it has told its routes.
    pub fn await_peer(&mut self, id: PeerId) {
        if let Some(awaited) = &mut self.awaited {
            awaited.insert(id);
        }
    }

    /// A peer will not come back soon.
    pub fn stop_waiting_for(&mut self, id: PeerId) {
        self.heard(id);
    }

    /// Forgets a peer and its routes.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.down(id, &[]);
        self.peers.remove(&id);
        self.heard(id);
    }

    /// Changes how a peer's routes are dealt with from now on. Routes that it told already are asked for anew by whoever
    /// calls, where the import rules differ.
    pub fn set_policy(&mut self, id: PeerId, policy: Policy) {
        let Some(peer) = self.peers.get(&id) else { return };
        // Of a client the others hear more, too.
        let others = peer.policy.reflector_client != policy.reflector_client;
        let concerned = self.peers.keys().copied().filter(|other| *other == id || others);
        let told: Vec<(PeerId, Vec<Prefix>)> = concerned.map(|id| (id, self.told(id))).collect();
        self.peers.entry(id).and_modify(|peer| peer.policy = policy);
        told.into_iter().for_each(|(id, told)| self.tell_again(id, told));
    }

    /// What a peer knows, or will when all that is pending is sent.
    fn told(&self, id: PeerId) -> Vec<Prefix> {
        let live = self.peers.get(&id).and_then(|peer| peer.live.as_ref());
        let families = live.map(|live| &live.negotiated.families[..]).unwrap_or_default();
        families.iter().flat_map(|family| self.exported(id, *family)).collect()
    }

    fn tell_again(&mut self, id: PeerId, told: Vec<Prefix>) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        told.into_iter().for_each(|prefix| pending.add(prefix, true, false));
        self.tell_all(id);
        self.tidy();
    }

    /// A session stands: everything is to be told, and what the peer does not keep over its restart is gone.
    pub fn up(&mut self, id: PeerId, live: Live) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.origin = Origin {
            external: live.negotiated.dialect.external,
            identifier: live.negotiated.identifier,
            address: live.peer_address,
        };
        self.pending.insert(id, Pending::default());
        peer.counts.iter_mut().for_each(|counts| counts.sent = 0);
        peer.owed = live.negotiated.families.iter().copied().collect();
        peer.unheard = peer.owed.clone();
        let restart = live.negotiated.restart.clone();
        peer.live = Some(live);
        // RFC 4724 section 4.1: who has just restarted too, or never says that it is done, is not waited for. One that only
        // helps others to restart names no families, and does say so.
        if restart.as_ref().is_none_or(|restart| restart.restarting) {
            self.heard(id);
        }
        for family in Family::ALL {
            let kept = restart.as_ref().is_some_and(|restart| restart.families.contains(&(family, true)));
            if !kept {
                self.remove(id, family, |path| path.stale);
            }
        }
        self.tell_all(id);
    }

    /// A session ended. The peer's routes of the families in `kept` become stale and stay for now.
    pub fn down(&mut self, id: PeerId, kept: &[Family]) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.live = None;
        self.pending.remove(&id);
        peer.counts.iter_mut().for_each(|counts| counts.sent = 0);
        for family in Family::ALL {
            if kept.contains(&family) {
                // Those of before an earlier restart that were never told again.
                self.remove(id, family, |path| path.stale);
                self.mark_stale(id, family);
            } else {
                self.remove(id, family, |_| true);
            }
        }
    }

    /// The time for a peer's restart is over: what is stale goes.
    pub fn expire(&mut self, id: PeerId) {
        Family::ALL.into_iter().for_each(|family| self.remove(id, family, |path| path.stale));
    }

    /// Takes what a peer told.
    pub fn update(&mut self, id: PeerId, update: Update) {
        let mut changes = Vec::new();
        for prefix in update.withdrawn {
            changes.extend(self.replace(prefix, id, None));
        }
        self.tell(&changes);
        for announced in update.announced {
            let live = self.peers.get(&id).and_then(|peer| peer.live.as_ref());
            let families = live.map_or(&[][..], |live| &live.negotiated.families);
            if announced.prefixes.first().is_some_and(|prefix| families.contains(&prefix.family())) {
                self.announced(id, announced.attributes, &announced.prefixes);
            }
        }
        if let Some(family) = update.end_of_rib {
            self.end_of_rib(id, family);
        }
        self.tidy();
    }

    /// Keeps what is to be told in bounds, however often it changes and is asked for.
    fn tidy(&mut self) {
        let lengths = Family::ALL.map(|family| self.tables.len(family));
        self.pending.values_mut().chain([&mut self.changed]).for_each(|pending| pending.tidy(lengths));
    }

    fn end_of_rib(&mut self, id: PeerId, family: Family) {
        self.remove(id, family, |path| path.stale);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.unheard.remove(&family);
        if peer.unheard.is_empty() {
            self.heard(id);
        }
    }

    /// Whether a peer has told all it knows since its session stands (End-of-RIB).
    pub fn has_told_all(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.live.is_some() && peer.unheard.is_empty())
    }

    fn announced(&mut self, id: PeerId, attributes: Attributes, prefixes: &[Prefix]) {
        let Some(peer) = self.peers.get(&id) else { return };
        let looped = self.is_looped(peer, &attributes);
        let kind = peer_type(peer.origin.external);
        let (rules, links) = (Arc::clone(&peer.policy.rules), Arc::clone(&self.identity.links));
        let raw = self.interner.intern(attributes);
        // Of one UPDATE, prefixes that meet the same rule share their attributes.
        let mut changed: BTreeMap<usize, (Arc<Attributes>, Option<u32>)> = BTreeMap::new();
        let mut changes = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            let rules = rules.import(prefix.family());
            let subject =
                Subject { prefix: *prefix, attributes: &raw, priority: None, remote: true, peer: kind, links: &links };
            let verdict = if looped { Verdict::Reject } else { filter::judge(rules, &subject) };
            let (attributes, priority) = match verdict {
                Verdict::Change(index) => changed
                    .entry(index)
                    .or_insert_with(|| {
                        let (mut attributes, mut priority) = ((*raw).clone(), None);
                        rules[index].apply(&mut attributes, &mut priority);
                        (self.interner.intern(attributes), priority)
                    })
                    .clone(),
                Verdict::Accept | Verdict::Reject => (raw.clone(), None),
            };
            let rejected = verdict == Verdict::Reject;
            let priority = priority.and_then(std::num::NonZeroU32::new);
            let path = Path { attributes, priority, peer: id, rejected, stale: false };
            changes.extend(self.replace(*prefix, id, Some(path)));
        }
        self.tell(&changes);
    }

    /// Whether a route has been here before (RFC 4271 section 9.1.2, 4456 section 8), or leads to this speaker itself.
    fn is_looped(&self, peer: &Peer, attributes: &Attributes) -> bool {
        let names = [Some(self.identity.asn), peer.policy.local_as];
        let own = attributes.as_path.numbers().filter(|asn| names.contains(&Some(*asn))).count();
        own > peer.policy.allowed_local_as
            || attributes.originator_id == Some(self.identity.identifier)
            || self.identity.cluster_id.is_some_and(|cluster| attributes.cluster_list.contains(&cluster))
            || peer.live.as_ref().is_some_and(|live| live.local_address == attributes.next_hop.address)
            || self.identity.addresses.contains(&attributes.next_hop.address)
    }

    /// Makes these the routes of this node. Those of before that are not among them are withdrawn.
    pub fn originate(&mut self, routes: &[Origination]) {
        let kept: BTreeSet<Prefix> = routes.iter().map(|route| route.prefix).collect();
        for family in Family::ALL {
            let gone: Vec<Prefix> =
                self.of_peer(LOCAL, family, |_| true).filter(|prefix| !kept.contains(prefix)).collect();
            self.replace_all(gone, LOCAL);
        }
        for route in routes {
            let unspecified = match route.prefix.family() {
                Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::Ipv6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            };
            let mut attributes = Attributes::new(NextHop::of(route.next_hop.unwrap_or(unspecified)));
            attributes.as_path = AsPath::default();
            route.communities.iter().for_each(|community| attributes.add(*community));
            let attributes = self.interner.intern(attributes);
            let path = Path { attributes, priority: None, peer: LOCAL, rejected: false, stale: false };
            let change = self.replace(route.prefix, LOCAL, Some(path));
            self.tell(change.as_slice());
        }
    }

    /// Changes the cluster that this speaker reflects for, or its addresses. AS and identifier need new sessions.
    pub fn set_identity(&mut self, identity: Identity) {
        if self.identity == identity {
            return;
        }
        let ids = self.peers.keys().copied();
        let told: Vec<(PeerId, Vec<Prefix>)> = ids.map(|id| (id, self.told(id))).collect();
        self.identity = identity;
        told.into_iter().for_each(|(id, told)| self.tell_again(id, told));
    }

    /// All of it is told to a peer again, which asked for it (RFC 2918).
    pub fn refresh(&mut self, id: PeerId, family: Family) {
        let prefixes = self.exported(id, family);
        let Some(pending) = self.pending.get_mut(&id) else { return };
        prefixes.into_iter().for_each(|prefix| pending.add(prefix, true, false));
        self.tidy();
    }

    /// Everything that a peer may know is to be told to it.
    fn tell_all(&mut self, id: PeerId) {
        let Some(live) = self.peers.get(&id).and_then(|peer| peer.live.as_ref()) else { return };
        for family in live.negotiated.families.clone() {
            let prefixes = self.exported(id, family);
            let (Some(pending), Some(peer)) = (self.pending.get_mut(&id), self.peers.get_mut(&id)) else { return };
            peer.counts[family as usize].sent = prefixes.len();
            prefixes.into_iter().for_each(|prefix| pending.add(prefix, false, true));
        }
    }

    /// What a peer is told of a family, those with the same attributes together.
    fn exported(&self, id: PeerId, family: Family) -> Vec<Prefix> {
        let mut exporter = Exporter::new(self, id);
        let exported = |(prefix, paths)| {
            let best = self.choose(paths).best?;
            exporter.verdict(prefix, &best).map(|_| (Arc::as_ptr(&best.attributes) as usize, prefix))
        };
        let mut found: Vec<(usize, Prefix)> = self.tables.iter(family).filter_map(exported).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, prefix)| prefix).collect()
    }

    fn choose(&self, paths: &[Path]) -> Selection {
        select::select(paths, self.identity.maximum_paths, |id| origin(&self.peers, id))
    }

    fn of_peer(&self, id: PeerId, family: Family, which: fn(&Path) -> bool) -> impl Iterator<Item = Prefix> + '_ {
        let has = move |path: &Path| path.peer == id && which(path);
        self.tables.iter(family).filter(move |(_, paths)| paths.iter().any(has)).map(|(prefix, _)| prefix)
    }

    fn remove(&mut self, id: PeerId, family: Family, which: fn(&Path) -> bool) {
        if self.peers.get(&id).is_some_and(|peer| peer.counts[family as usize].received == 0) {
            return;
        }
        let gone: Vec<Prefix> = self.of_peer(id, family, which).collect();
        let many = gone.len() > 1024;
        self.replace_all(gone, id);
        if many {
            self.interner.sweep();
        }
    }

    fn mark_stale(&mut self, id: PeerId, family: Family) {
        self.tables.for_each_mut(family, |path| path.stale |= path.peer == id);
    }

    fn heard(&mut self, id: PeerId) {
        let last = self.awaited.as_mut().is_some_and(|awaited| awaited.remove(&id) && awaited.is_empty());
        if last {
            self.awaited = None;
        }
    }

    /// Whether routes of before the restart are still awaited.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// The time to wait after a restart is over.
    pub fn stop_waiting(&mut self) {
        self.awaited = None;
    }

    /// What the kernel is to be told next, up to `most` prefixes. Nothing while waiting.
    pub fn take_changes(&mut self, most: usize) -> Vec<Change> {
        if self.is_waiting() {
            return Vec::new();
        }
        let taken = self.changed.take(most);
        let mut last: Option<Change> = None;
        let change = |(prefix, _)| {
            let change = self.change(prefix, last.as_ref());
            last = Some(change.clone());
            change
        };
        taken.into_iter().map(change).collect()
    }

    pub fn has_changes(&self) -> bool {
        !self.is_waiting() && !self.changed.is_empty()
    }

    /// `last` may have the same next hops.
    fn change(&self, prefix: Prefix, last: Option<&Change>) -> Change {
        let used = self.used(prefix);
        let hops = used.iter().filter(|path| path.peer != LOCAL).map(|path| path.attributes.next_hop);
        let next_hops = match last {
            Some(last) if hops.clone().eq(last.next_hops.iter().copied()) => Arc::clone(&last.next_hops),
            _ => hops.collect(),
        };
        Change { prefix, next_hops, priority: used.first().and_then(|path| path.priority).map(u32::from) }
    }

    /// The paths in use, the best first.
    fn used(&self, prefix: Prefix) -> Cow<'_, [Path]> {
        match self.tables.get(prefix) {
            [path] if path.rejected => Cow::Borrowed(&[]),
            paths @ [_] => Cow::Borrowed(paths),
            paths => Cow::Owned(self.choose(paths).into_paths()),
        }
    }

    /// All routes in use, for the operator, and the peers that told them.
    pub fn routes(&self, family: Family) -> impl Iterator<Item = (Prefix, Selection)> + '_ {
        self.tables.iter(family).map(|(prefix, paths)| (prefix, self.choose(paths)))
    }

    pub fn counts(&self, id: PeerId) -> Counts {
        let [four, six] = self.peers.get(&id).map(|peer| peer.counts).unwrap_or_default();
        Counts {
            received: four.received + six.received,
            accepted: four.accepted + six.accepted,
            sent: four.sent + six.sent,
        }
    }

    /// Of which family a peer told more prefixes than it may, and how many it may.
    pub fn excess(&self, id: PeerId) -> Option<(Family, u32)> {
        let peer = self.peers.get(&id)?;
        let bound = peer.policy.max_prefixes?;
        let over = |family: &Family| peer.counts[*family as usize].received > bound as usize;
        Family::ALL.into_iter().find(over).map(|family| (family, bound))
    }

    /// Prefixes of a family that any peer told.
    pub fn len(&self, family: Family) -> usize {
        self.tables.len(family)
    }

    /// How many distinct sets of attributes the routes have.
    pub fn attribute_sets(&self) -> usize {
        self.interner.len()
    }
}

/// What the decision knows of a peer; of one that was never heard of, nothing.
fn origin(peers: &BTreeMap<PeerId, Peer>, id: PeerId) -> Origin {
    peers.get(&id).map_or(NOBODY, |peer| peer.origin)
}

fn peer_type(external: bool) -> PeerType {
    if external { PeerType::External } else { PeerType::Internal }
}

#[cfg(test)]
mod tests;
