//! Prefixes and the paths to them, small: a million routes of one peer take 24 bytes each, and equal attributes one copy.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

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
}

struct Table<K>(HashMap<K, Paths>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Key> Table<K> {
    fn put(&mut self, key: K, path: Path) -> Option<Path> {
        match self.0.entry(key) {
            std::collections::hash_map::Entry::Occupied(mut entry) => entry.get_mut().put(path),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Paths::One(path));
                None
            }
        }
    }

    fn take(&mut self, key: K, peer: PeerId) -> Option<Path> {
        let paths = self.0.get_mut(&key)?;
        if let Paths::Many(many) = paths {
            let taken = many.iter().position(|path| path.peer == peer).map(|at| many.remove(at));
            if let [_] = many[..] {
                *paths = Paths::One(many.remove(0));
            }
            return taken;
        }
        if paths.as_slice()[0].peer != peer {
            return None;
        }
        let taken = self.0.remove(&key).map(|paths| paths.as_slice()[0].clone());
        // After a peer with many routes is gone, the room that they had is given back.
        if self.0.capacity() > 4096 && self.0.len() * 8 < self.0.capacity() {
            self.0.shrink_to(self.0.len() * 2);
        }
        taken
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

    /// Puts a peer's path in place of what it told before, which is given back.
    pub fn put(&mut self, prefix: Prefix, path: Path) -> Option<Path> {
        match prefix {
            Prefix::V4(net) => self.v4.put(net, path),
            Prefix::V6(net) => self.v6.put(net, path),
        }
    }

    pub fn take(&mut self, prefix: Prefix, peer: PeerId) -> Option<Path> {
        match prefix {
            Prefix::V4(net) => self.v4.take(net, peer),
            Prefix::V6(net) => self.v6.take(net, peer),
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

/// Prefixes to look at, each once, and whether they had been told.
#[derive(Default)]
pub struct Pending {
    v4: HashMap<Net4, bool>,
    v6: HashMap<Net6, bool>,
}

impl Pending {
    /// The first word about a prefix counts.
    pub fn add(&mut self, prefix: Prefix, told: bool) {
        match prefix {
            Prefix::V4(net) => self.v4.entry(net).or_insert(told),
            Prefix::V6(net) => self.v6.entry(net).or_insert(told),
        };
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub fn is_empty_of(&self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.v4.is_empty(),
            Family::Ipv6 => self.v6.is_empty(),
        }
    }

    /// Takes up to `most` out, of one family.
    pub fn take(&mut self, most: usize) -> Vec<(Prefix, bool)> {
        if self.v4.is_empty() { take(&mut self.v6, most) } else { take(&mut self.v4, most) }
    }
}

fn take<K: Key>(map: &mut HashMap<K, bool>, most: usize) -> Vec<(Prefix, bool)> {
    if map.len() <= most {
        // A fresh map, so that the room of a whole table is given back.
        return std::mem::take(map).into_iter().map(|(key, told)| (key.prefix(), told)).collect();
    }
    let keys: Vec<(K, bool)> = map.iter().take(most).map(|(key, told)| (*key, *told)).collect();
    for (key, _) in &keys {
        map.remove(key);
    }
    keys.into_iter().map(|(key, told)| (key.prefix(), told)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_of_one_peer_is_small() {
        assert_eq!(size_of::<(Net4, Paths)>(), 24);
    }
}
