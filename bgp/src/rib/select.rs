//! Which of several paths is best (RFC 4271 section 9.1.2.2, 4456 section 9), and which are as good (ECMP).

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr};

use super::table::{LOCAL, Path, PeerId};

/// What the decision needs to know of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub external: bool,
    pub identifier: Ipv4Addr,
    pub address: IpAddr,
}

/// The best path and those as good, the best first. Empty where no path may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    pub best: Option<Path>,
    pub others: Vec<Path>,
}

impl Selection {
    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        self.best.iter().chain(&self.others)
    }

    pub fn into_paths(self) -> Vec<Path> {
        self.best.into_iter().chain(self.others).collect()
    }

    /// Whether both lead the same way.
    pub fn same(&self, other: &Self) -> bool {
        self.others.len() == other.others.len()
            && self.iter().zip(other.iter()).all(|(a, b)| a.same(b))
            && self.best.is_some() == other.best.is_some()
    }
}

/// Chooses among `paths`; at most `most` are used together.
pub fn select(paths: &[Path], most: usize, origin: impl Fn(PeerId) -> Origin) -> Selection {
    if let [path] = paths {
        return Selection { best: (!path.rejected).then(|| path.clone()), others: Vec::new() };
    }
    let mut left: Vec<&Path> = paths.iter().filter(|path| !path.rejected).collect();
    if let Some(local) = left.iter().find(|path| path.peer == LOCAL) {
        return Selection { best: Some((*local).clone()), others: Vec::new() };
    }
    keep_least(&mut left, |path| Reverse(path.attributes.local_pref.unwrap_or(100)));
    keep_least(&mut left, |path| path.attributes.as_path.hops());
    keep_least(&mut left, |path| path.attributes.origin);
    let all = left.clone();
    left.retain(|path| !all.iter().any(|other| beats_by_med(other, path)));
    keep_least(&mut left, |path| !origin(path.peer).external);
    // What is left is equally good: of two next hops one packet is as near as the other.
    left.sort_by_key(|path| {
        let origin = origin(path.peer);
        let identifier = path.attributes.originator_id.unwrap_or(origin.identifier);
        (identifier, path.attributes.cluster_list.len(), origin.address)
    });
    let mut chosen = Selection::default();
    for path in left {
        let new_hop = chosen.iter().all(|known| known.attributes.next_hop != path.attributes.next_hop);
        match &chosen.best {
            None => chosen.best = Some(path.clone()),
            Some(_) if new_hop && chosen.others.len() + 1 < most => chosen.others.push(path.clone()),
            Some(_) => {}
        }
    }
    chosen
}

fn keep_least<T: Ord>(paths: &mut Vec<&Path>, key: impl Fn(&Path) -> T) {
    if let Some(least) = paths.iter().map(|path| key(path)).min() {
        paths.retain(|path| key(path) == least);
    }
}

/// MED compares only what the same neighbouring AS says.
fn beats_by_med(one: &Path, other: &Path) -> bool {
    let (a, b) = (&one.attributes, &other.attributes);
    a.as_path.neighbour() == b.as_path.neighbour() && a.med.unwrap_or(0) < b.med.unwrap_or(0)
}
