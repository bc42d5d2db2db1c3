//! What a peer is told of a route (RFC 4271 section 9.1.3 and 9.2, 4456 section 8), and the UPDATEs that say it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::table::{LOCAL, Path, PeerId};
use super::{Live, NextHopMode, Peer, Rib, peer_type};
use crate::attributes::{Attributes, Community, NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED, NextHop};
use crate::filter::{self, Subject, Verdict};
use crate::message::Dialect;
use crate::message::update::{announce, end_of_rib, withdraw};
use crate::prefix::{Family, Prefix};

/// The bit of an extended community that keeps it inside one AS.
const NOT_TRANSITIVE: u64 = 1 << 62;

/// Prefixes that are told the same: their attributes, by address, who told them, and the export rule they met.
type Group = (usize, PeerId, Verdict);

/// Asks for one peer, of one prefix after the other: those that share a path share the answer, where no rule looks at
/// prefixes.
pub(super) struct Exporter<'a> {
    rib: &'a Rib,
    id: PeerId,
    last: Option<(Family, Path, Option<Verdict>)>,
}

impl<'a> Exporter<'a> {
    pub(super) fn new(rib: &'a Rib, id: PeerId) -> Self {
        Self { rib, id, last: None }
    }

    /// Whether and how the peer is told of a path.
    pub(super) fn verdict(&mut self, prefix: Prefix, path: &Path) -> Option<Verdict> {
        let family = prefix.family();
        if let Some((_, _, verdict)) = self.last.as_ref().filter(|(f, known, _)| *f == family && known.same(path)) {
            return *verdict;
        }
        let verdict = self.rib.export(self.id, prefix, path);
        let peer = self.rib.peers.get(&self.id);
        if peer.is_none_or(|peer| peer.policy.rules.export(family).is_empty()) {
            self.last = Some((family, path.clone(), verdict));
        }
        verdict
    }
}

impl Rib {
    /// Whether and how a peer is told of a path.
    fn export(&self, id: PeerId, prefix: Prefix, path: &Path) -> Option<Verdict> {
        let peer = self.peers.get(&id)?;
        let live = peer.live.as_ref()?;
        let family = prefix.family();
        if path.peer == id || !live.negotiated.families.contains(&family) || !self.may_pass(peer, live, path) {
            return None;
        }
        self.next_hop(peer, live, family, path)?;
        let subject = Subject {
            prefix,
            attributes: &path.attributes,
            priority: path.priority.map(u32::from),
            remote: path.peer != LOCAL,
            peer: peer_type(live.negotiated.dialect.external),
            links: &self.identity.links,
        };
        Some(filter::judge(peer.policy.rules.export(family), &subject)).filter(|verdict| *verdict != Verdict::Reject)
    }

    fn may_pass(&self, peer: &Peer, live: &Live, path: &Path) -> bool {
        let external = live.negotiated.dialect.external;
        let has = |community| path.attributes.has(Community::Standard(community));
        if has(NO_ADVERTISE) || external && (has(NO_EXPORT) || has(NO_EXPORT_SUBCONFED)) {
            return false;
        }
        external || !self.is_internal(path) || self.reflects(peer, path)
    }

    /// Whether a peer of our own AS told it.
    fn is_internal(&self, path: &Path) -> bool {
        path.peer != LOCAL && self.peers.get(&path.peer).is_some_and(|source| !source.origin.external)
    }

    /// RFC 4456 section 6: from clients to all, from others to clients.
    fn reflects(&self, peer: &Peer, path: &Path) -> bool {
        let from_client = self.peers.get(&path.peer).is_some_and(|source| source.policy.reflector_client);
        self.identity.cluster_id.is_some() && (from_client || peer.policy.reflector_client)
    }

    fn next_hop(&self, peer: &Peer, live: &Live, family: Family, path: &Path) -> Option<NextHop> {
        let given = path.attributes.next_hop;
        let usable = |address: IpAddr| {
            Family::of(address) == family || family == Family::Ipv4 && live.negotiated.dialect.extended_next_hop
        };
        let kept = match peer.policy.next_hop_mode {
            NextHopMode::Auto => self.is_internal(path) && !live.negotiated.dialect.external || path.peer == LOCAL,
            NextHopMode::Keep => true,
            NextHopMode::Itself => path.peer == LOCAL,
        };
        if kept && !given.address.is_unspecified() {
            return usable(given.address).then_some(given);
        }
        let own = [live.local_address].into_iter().chain(self.identity.addresses.iter().copied());
        let of_family = own.clone().find(|address| Family::of(*address) == family);
        of_family.or_else(|| own.clone().find(|address| usable(*address))).map(NextHop::of)
    }

    /// What a peer is told: the path's attributes as this speaker hands them on.
    fn handed_on(&self, peer: &Peer, live: &Live, family: Family, path: &Path, verdict: Verdict) -> Option<Attributes> {
        let mut attributes = (*path.attributes).clone();
        attributes.next_hop = self.next_hop(peer, live, family, path)?;
        if live.negotiated.dialect.external {
            attributes.as_path = attributes.as_path.prepended(&[peer.policy.local_as.unwrap_or(self.identity.asn)]);
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list = Box::default();
            // RFC 4360 section 6.
            let transitive = |community: &&u64| **community & NOT_TRANSITIVE == 0;
            attributes.extended_communities =
                attributes.extended_communities.iter().filter(transitive).copied().collect();
            if path.peer != LOCAL {
                attributes.med = None;
            }
        } else {
            attributes.local_pref.get_or_insert(100);
            if let (true, Some(cluster)) = (self.is_internal(path), self.identity.cluster_id) {
                let source = self.peers.get(&path.peer).map(|source| source.origin.identifier);
                attributes.originator_id = attributes.originator_id.or(source);
                attributes.cluster_list =
                    [cluster].into_iter().chain(attributes.cluster_list.iter().copied()).collect();
            }
        }
        if let Verdict::Change(index) = verdict {
            peer.policy.rules.export(family)[index].apply(&mut attributes, &mut None);
        }
        Some(attributes)
    }

    /// Whether a peer is to be told something.
    pub fn has_updates(&self, id: PeerId) -> bool {
        let ready = |peer: &&Peer| !self.is_waiting() && peer.live.is_some();
        let pending = self.pending.get(&id).is_some_and(|pending| !pending.is_empty());
        self.peers.get(&id).filter(ready).is_some_and(|peer| pending || !peer.owed.is_empty())
    }

    /// What a peer is to be told of the next prefixes, up to `most`, and End-of-RIB after the last. To make bytes of it
    /// takes as long again, and does not need the table.
    pub fn take_news(&mut self, id: PeerId, most: usize) -> News {
        let mut news = News::default();
        if !self.has_updates(id) {
            return news;
        }
        let taken = self.pending.get_mut(&id).map(|pending| pending.take(most)).unwrap_or_default();
        self.collect(id, &taken, &mut news);
        let (Some(peer), Some(pending)) = (self.peers.get_mut(&id), self.pending.get(&id)) else { return news };
        news.told_all = peer.owed.iter().copied().filter(|family| pending.is_empty_of(*family)).collect();
        peer.owed.retain(|family| !news.told_all.contains(family));
        news
    }

    /// The bytes of [`Rib::take_news`].
    pub fn take_updates(&mut self, id: PeerId, most: usize) -> Vec<u8> {
        let (bytes, unsaid) = self.take_news(id, most).encode();
        self.unsaid(id, unsaid);
        bytes
    }

    /// So many prefixes of each family were not told to a peer after all.
    pub fn unsaid(&mut self, id: PeerId, counts: [isize; 2]) {
        Family::ALL.into_iter().zip(counts).for_each(|(family, count)| self.count_sent(id, family, -count));
    }

    /// What there is to say of prefixes of one family.
    fn collect(&self, id: PeerId, prefixes: &[(Prefix, bool)], news: &mut News) {
        let Some(peer) = self.peers.get(&id) else { return };
        let (Some(live), Some((first, _))) = (&peer.live, prefixes.first()) else { return };
        let family = first.family();
        (news.family, news.dialect) = (family, live.negotiated.dialect);
        let mut exporter = Exporter::new(self, id);
        let mut index: BTreeMap<Group, usize> = BTreeMap::new();
        let mut groups: Vec<(Path, Verdict, Vec<Prefix>)> = Vec::new();
        let mut last = None;
        for (prefix, told) in prefixes {
            let used = self.used(*prefix);
            let exported = used.first().and_then(|path| Some((path, exporter.verdict(*prefix, path)?)));
            match exported {
                Some((path, verdict)) => {
                    let key = (Arc::as_ptr(&path.attributes) as usize, path.peer, verdict);
                    let at = match last {
                        Some((known, at)) if known == key => at,
                        _ => *index.entry(key).or_insert_with(|| {
                            groups.push((path.clone(), verdict, Vec::new()));
                            groups.len() - 1
                        }),
                    };
                    last = Some((key, at));
                    groups[at].2.push(*prefix);
                }
                None if *told => news.gone.push(*prefix),
                None => {}
            }
        }
        let groups = groups.into_iter();
        news.announced = groups
            .map(|(path, verdict, prefixes)| (self.handed_on(peer, live, family, &path, verdict), prefixes))
            .collect();
    }
}

/// What a peer is to be told, of one family.
pub struct News {
    family: Family,
    dialect: Dialect,
    gone: Vec<Prefix>,
    /// Prefixes with the same attributes; without, where there is no next hop to tell.
    announced: Vec<(Option<Attributes>, Vec<Prefix>)>,
    /// Families of which nothing more is to be told.
    told_all: Vec<Family>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            family: Family::Ipv4,
            dialect: Dialect::BEFORE,
            gone: Vec::new(),
            announced: Vec::new(),
            told_all: Vec::new(),
        }
    }
}

impl News {
    /// The UPDATEs, and how many prefixes of each family have attributes that fit into no message.
    pub fn encode(self) -> (Vec<u8>, [isize; 2]) {
        let (mut out, mut unsaid) = (Vec::new(), [0; 2]);
        withdraw(self.family, &self.gone, &self.dialect, &mut out);
        for (attributes, mut prefixes) in self.announced {
            prefixes.sort_unstable();
            if !attributes.is_some_and(|attributes| announce(&attributes, &prefixes, &self.dialect, &mut out)) {
                withdraw(self.family, &prefixes, &self.dialect, &mut out);
                unsaid[self.family as usize] += isize::try_from(prefixes.len()).unwrap_or(isize::MAX);
            }
        }
        self.told_all.into_iter().for_each(|family| end_of_rib(family, &mut out));
        (out, unsaid)
    }
}
