//! Prefixes and the paths to them, small: a million routes of one peer take 24 bytes each, and equal attributes one copy.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::HashSet;
use foldhash::fast::RandomState;

use super::select::Selection;
use crate::attributes::Attributes;
use crate::prefix::{Family, Key, Net4, Net6, Prefix};

/// Which peer; [`LOCAL`] is this speaker.
pub type PeerId = u16;
pub const LOCAL: PeerId = 0;

/// One way to a prefix, as a peer told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub attributes: Arc<Attributes>,
    pub priority: Option<std::num::NonZeroU32>,
    pub peer: PeerId,
    /// The import rules say no; kept for the count of what was received.
    pub rejected: bool,
    /// Of before the peer's restart (RFC 4724 section 4.2).
    pub stale: bool,
}

impl Path {
    /// Whether it is the same to everybody who looks at it.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.attributes, &other.attributes) && self.peer == other.peer && self.priority == other.priority
    }
}

#[expect(clippy::box_collection, reason = "a Vec or a boxed slice would double the size of every entry")]
enum Paths {
    One(Path),
    Many(Box<Vec<Path>>),
}

impl Paths {
    fn as_slice(&self) -> &[Path] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Path] {
        match self {
            Self::One(path) => std::slice::from_mut(path),
            Self::Many(paths) => paths,
        }
    }

    fn put(&mut self, path: Path) -> Option<Path> {
        let replaced = match self {
            Self::One(old) if old.peer == path.peer => return Some(std::mem::replace(old, path)),
            Self::Many(paths) => match paths.iter_mut().find(|old| old.peer == path.peer) {
                Some(old) => return Some(std::mem::replace(old, path)),
                None => {
                    paths.push(path);
                    return None;
                }
            },
            Self::One(old) => old.clone(),
        };
        *self = Self::Many(Box::new(vec![replaced, path]));
        None
    }

    /// Takes a peer's path out where there are others too.
    fn take(&mut self, id: PeerId) -> Option<Path> {
        let Self::Many(paths) = self else { return None };
        let taken = paths.iter().position(|path| path.peer == id).map(|at| paths.remove(at));
        if paths.len() == 1 {
            *self = Self::One(paths.remove(0));
        }
        taken
    }
}

/// Hashes prefixes so that sixteen neighbours, which one UPDATE often tells together, lie side by side in memory.
#[derive(Clone, Default)]
struct Near(RandomState);

struct NearHasher {
    common: <RandomState as BuildHasher>::Hasher,
    which: u8,
}

impl BuildHasher for Near {
    type Hasher = NearHasher;

    fn build_hasher(&self) -> NearHasher {
        NearHasher { common: self.0.build_hasher(), which: 0 }
    }
}

impl Hasher for NearHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.common.write(bytes);
    }

    fn write_u64(&mut self, common: u64) {
        self.common.write_u64(common);
    }

    fn write_u8(&mut self, which: u8) {
        self.which = which;
    }

    /// The low bits say where the search begins, the high ones tell neighbours apart.
    fn finish(&self) -> u64 {
        let which = u64::from(self.which);
        (self.common.finish() & !15 | which) ^ which << 57
    }
}

struct Table<K>(HashMap<K, Paths, Near>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

/// What became of a prefix.
pub struct Replaced {
    /// Nobody had told it.
    pub fresh: bool,
    /// What the peer had told before.
    pub old: Option<Path>,
    pub before: Selection,
    pub after: Selection,
}

impl<K: Key> Table<K> {
    /// In one look at the prefix: most of the time goes into finding it.
    fn replace(&mut self, key: K, id: PeerId, path: Option<Path>, choose: impl Fn(&[Path]) -> Selection) -> Replaced {
        match (self.0.entry(key), path) {
            (Entry::Vacant(_), None) => {
                Replaced { fresh: true, old: None, before: Selection::default(), after: Selection::default() }
            }
            (Entry::Vacant(entry), Some(path)) => {
                let after = choose(std::slice::from_ref(&path));
                entry.insert(Paths::One(path));
                Replaced { fresh: true, old: None, before: Selection::default(), after }
            }
            (Entry::Occupied(mut entry), Some(path)) => {
                let before = choose(entry.get().as_slice());
                let old = entry.get_mut().put(path);
                Replaced { fresh: false, old, before, after: choose(entry.get().as_slice()) }
            }
            (Entry::Occupied(mut entry), None) => {
                let before = choose(entry.get().as_slice());
                if entry.get().as_slice().iter().all(|path| path.peer == id) {
                    let old = entry.remove().as_slice().first().cloned();
                    self.give_back();
                    return Replaced { fresh: false, old, before, after: Selection::default() };
                }
                let old = entry.get_mut().take(id);
                Replaced { fresh: false, old, before, after: choose(entry.get().as_slice()) }
            }
        }
    }

    /// After a peer with many routes is gone, the room that they had is given back.
    fn give_back(&mut self) {
        if self.0.capacity() > 4096 && self.0.len() * 8 < self.0.capacity() {
            self.0.shrink_to(self.0.len() * 2);
        }
    }
}

/// The paths of both families.
#[derive(Default)]
pub struct Tables {
    v4: Table<Net4>,
    v6: Table<Net6>,
}

impl Tables {
    pub fn get(&self, prefix: Prefix) -> &[Path] {
        let paths = match prefix {
            Prefix::V4(net) => self.v4.0.get(&net),
            Prefix::V6(net) => self.v6.0.get(&net),
        };
        paths.map_or(&[], Paths::as_slice)
    }

    /// Puts a peer's path in place of what it told before, or takes that away.
    pub fn replace(
        &mut self,
        prefix: Prefix,
        id: PeerId,
        path: Option<Path>,
        choose: impl Fn(&[Path]) -> Selection,
    ) -> Replaced {
        match prefix {
            Prefix::V4(net) => self.v4.replace(net, id, path, choose),
            Prefix::V6(net) => self.v6.replace(net, id, path, choose),
        }
    }

    /// Calls `change` with every path of a family.
    pub fn for_each_mut(&mut self, family: Family, change: impl FnMut(&mut Path)) {
        match family {
            Family::Ipv4 => self.v4.0.values_mut().flat_map(Paths::as_mut_slice).for_each(change),
            Family::Ipv6 => self.v6.0.values_mut().flat_map(Paths::as_mut_slice).for_each(change),
        }
    }

    pub fn iter(&self, family: Family) -> Box<dyn Iterator<Item = (Prefix, &[Path])> + '_> {
        match family {
            Family::Ipv4 => Box::new(self.v4.0.iter().map(|(net, paths)| (net.prefix(), paths.as_slice()))),
            Family::Ipv6 => Box::new(self.v6.0.iter().map(|(net, paths)| (net.prefix(), paths.as_slice()))),
        }
    }

    pub fn len(&self, family: Family) -> usize {
        match family {
            Family::Ipv4 => self.v4.0.len(),
            Family::Ipv6 => self.v6.0.len(),
        }
    }
}

/// One copy of each set of attributes.
#[derive(Default)]
pub struct Interner {
    sets: HashSet<Arc<Attributes>>,
    sweep_at: usize,
}

impl Interner {
    pub fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.sets.get(&attributes) {
            return Arc::clone(known);
        }
        if self.sets.len() >= self.sweep_at.max(1024) {
            self.sweep();
        }
        let fresh = Arc::new(attributes);
        self.sets.insert(Arc::clone(&fresh));
        fresh
    }

    /// Forgets what no path has any more. Done when the sets have doubled, so that it costs little for each.
    pub fn sweep(&mut self) {
        self.sets.retain(|set| Arc::strong_count(set) > 1);
        self.sets.shrink_to(self.sets.len() * 2);
        self.sweep_at = self.sets.len() * 2;
    }

    pub fn len(&self) -> usize {
        self.sets.len()
    }
}

/// Prefixes to look at, and whether they had been told. They keep the order in which they came, because routes that share
/// attributes come together, and go together into one UPDATE.
///
/// A prefix that changed again may be there more than once: to look at it again does no harm, and to find out each time
/// would cost more than the rest. [`Pending::tidy`] bounds that.
#[derive(Default)]
pub struct Pending {
    v4: Queue<Net4>,
    v6: Queue<Net6>,
}

struct Queue<K> {
    order: VecDeque<(K, bool)>,
    /// Whether any of them may be there twice.
    repeats: bool,
    /// How long it may become before repetitions are looked for.
    bound: usize,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { order: VecDeque::new(), repeats: false, bound: 0 }
    }
}

/// Where a queue is so short that nobody looks for repetitions.
const SHORT: usize = 4096;

impl Pending {
    /// `fresh`: nobody had told it before, so that it is not in here yet, unless it came and went.
    pub fn add(&mut self, prefix: Prefix, told: bool, fresh: bool) {
        match prefix {
            Prefix::V4(net) => self.v4.add(net, told, fresh),
            Prefix::V6(net) => self.v6.add(net, told, fresh),
        }
    }

    /// Takes repetitions out where there are many. `lengths` are those of the tables of each family.
    pub fn tidy(&mut self, [v4, v6]: [usize; 2]) {
        self.v4.tidy(v4);
        self.v6.tidy(v6);
    }

    pub fn is_empty(&self) -> bool {
        self.v4.order.is_empty() && self.v6.order.is_empty()
    }

    pub fn is_empty_of(&self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.v4.order.is_empty(),
            Family::Ipv6 => self.v6.order.is_empty(),
        }
    }

    /// Takes up to `most` out, of one family.
    pub fn take(&mut self, most: usize) -> Vec<(Prefix, bool)> {
        if self.v4.order.is_empty() { self.v6.take(most) } else { self.v4.take(most) }
    }
}

impl<K: Key> Queue<K> {
    fn add(&mut self, key: K, told: bool, fresh: bool) {
        self.order.push_back((key, told));
        self.repeats |= !fresh;
    }

    /// More than twice as many as there are prefixes: some are there twice, or are gone.
    fn tidy(&mut self, length: usize) {
        if self.order.len() > self.bound.max(2 * length).max(SHORT) {
            self.order = without_repetitions(self.order.drain(..)).into();
            self.bound = 2 * self.order.len();
        }
    }

    fn take(&mut self, most: usize) -> Vec<(Prefix, bool)> {
        let count = most.min(self.order.len());
        let taken = self.order.drain(..count).map(|(key, told)| (key.prefix(), told));
        let taken = if self.repeats { without_repetitions(taken) } else { taken.collect() };
        if self.order.is_empty() {
            // The room of a whole table is given back.
            *self = Self::default();
        }
        taken
    }
}

/// A prefix had been told where any word says so: the first may be of before it was told from this very queue, and a
/// withdrawal too many does no harm.
fn without_repetitions<K: Copy + Eq + Hash>(all: impl Iterator<Item = (K, bool)>) -> Vec<(K, bool)> {
    let mut places = HashMap::<K, usize, RandomState>::default();
    let mut order: Vec<(K, bool)> = Vec::new();
    for (key, told) in all {
        match places.entry(key) {
            Entry::Occupied(place) => order[*place.get()].1 |= told,
            Entry::Vacant(place) => {
                place.insert(order.len());
                order.push((key, told));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn neighbours_are_looked_for_side_by_side_and_told_apart() {
        let near = Near::default();
        let hash = |text: &str| match prefix(text) {
            Prefix::V4(net) => near.hash_one(net),
            Prefix::V6(net) => near.hash_one(net),
        };
        for [one, next, far] in [
            ["10.0.32.0/24", "10.0.33.0/24", "10.0.48.0/24"],
            ["fd00:0:0:20::/64", "fd00:0:0:21::/64", "fd00:0:1:20::/64"],
        ] {
            let place = |text| hash(text) & 0xffff;
            assert_eq!(place(one) + 1, place(next), "{one}");
            assert_ne!(hash(one) >> 57, hash(next) >> 57, "{one}");
            assert_ne!(hash(one) & !15, hash(far) & !15, "{one}");
        }
        assert_ne!(hash("10.0.0.0/24") & !15, hash("10.0.0.0/16") & !15);
        assert_ne!(hash("0.0.0.0/0"), hash("0.0.0.0/1"));
    }

    #[test]
    fn what_changes_again_and_again_fills_no_queue() {
        let mut pending = Pending::default();
        let all: Vec<Prefix> = (0..1000).map(|n| prefix(&format!("10.{}.{}.0/24", n / 250, n % 250))).collect();
        for round in 0..20 {
            all.iter().for_each(|prefix| pending.add(*prefix, round > 0, round == 0));
            pending.tidy([all.len(), 0]);
        }
        assert!(pending.v4.order.len() <= SHORT + all.len(), "{}", pending.v4.order.len());
        let taken = pending.take(usize::MAX);
        assert_eq!(taken, all.iter().map(|prefix| (*prefix, true)).collect::<Vec<_>>(), "in order, told in between");
        assert!(pending.is_empty());
    }

    #[test]
    fn a_route_of_one_peer_is_small() {
        assert_eq!(size_of::<(Net4, Paths)>(), 24);
    }
}
