//! Which revisions each key has: everything about the store that stays in memory. Values stay on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::Revision;

/// Where a value lies in the log: the revision, and the place among the changes of that revision.
pub(super) type Place = (Revision, u32);

/// One write of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub place: Place,
    /// The revision at which the key came to be; 0 marks a deletion.
    pub created: Revision,
    /// Seconds since 1970; 0 for never.
    pub expires: u64,
}

impl Version {
    pub fn is_deletion(&self) -> bool {
        self.created == 0
    }
}

/// The versions of all keys, oldest first.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Arc<str>, Vec<Version>>,
    expiring: BTreeSet<(u64, Arc<str>)>,
    pub revision: Revision,
    pub compacted: Revision,
}

impl Index {
    /// The live version of a key at a revision.
    pub fn get(&self, key: &str, at: Revision) -> Option<(&Arc<str>, Version)> {
        let (key, versions) = self.keys.get_key_value(key)?;
        live(versions, at).map(|version| (key, version))
    }

    /// The version that a key had just before `place`.
    pub fn before(&self, key: &str, place: Place) -> Option<Version> {
        let versions = self.keys.get(key)?;
        let last = versions.iter().rev().find(|v| v.place < place)?;
        (!last.is_deletion()).then_some(*last)
    }

    /// The live keys that begin with `prefix`, behind `after`, at a revision.
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        at: Revision,
    ) -> impl Iterator<Item = (&'a Arc<str>, Version)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.keys
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(key, versions)| live(versions, at).map(|version| (key, version)))
    }

    /// Takes up a write. Places come in ascending order.
    pub fn add(&mut self, key: &str, version: Version) -> Arc<str> {
        self.revision = self.revision.max(version.place.0);
        let key: Arc<str> = match self.keys.get_key_value(key) {
            Some((known, _)) => known.clone(),
            None => key.into(),
        };
        // Most keys have one version most of the time.
        let versions = self.keys.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
        if let Some(last) = versions.last().filter(|v| v.expires != 0) {
            self.expiring.remove(&(last.expires, key.clone()));
        }
        if version.expires != 0 {
            self.expiring.insert((version.expires, key.clone()));
        }
        versions.push(version);
        key
    }

    /// Keys whose time is over at `now`, at most `limit`.
    pub fn expired(&self, now: u64, limit: usize) -> Vec<Arc<str>> {
        self.expiring.iter().take_while(|(at, _)| *at <= now).take(limit).map(|(_, key)| key.clone()).collect()
    }

    /// Forgets what was overwritten or deleted at or before `revision`, and says which places are free now.
    pub fn compact(&mut self, revision: Revision) -> Vec<Place> {
        let mut freed = Vec::new();
        self.compacted = revision;
        self.keys.retain(|_, versions| {
            let old = versions.partition_point(|v| v.place.0 <= revision);
            let keep = match old.checked_sub(1) {
                None => return true,
                Some(last) if versions[last].is_deletion() => old,
                Some(last) => last,
            };
            freed.extend(versions.drain(..keep).map(|v| v.place));
            versions.shrink_to_fit();
            !versions.is_empty()
        });
        freed.sort_unstable();
        freed
    }
}

fn live(versions: &[Version], at: Revision) -> Option<Version> {
    let last = versions.iter().rev().find(|v| v.place.0 <= at)?;
    (!last.is_deletion()).then_some(*last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: Revision, created: Revision) -> Version {
        Version { place: (revision, 0), created, expires: 0 }
    }

    #[test]
    fn compaction_keeps_what_is_live_and_what_is_newer() {
        let mut index = Index::default();
        index.add("a", put(1, 1));
        index.add("b", put(2, 2));
        index.add("a", put(3, 1));
        index.add("b", put(4, 0));
        index.add("a", put(5, 1));
        assert_eq!(index.compact(4), [(1, 0), (2, 0), (4, 0)]);
        assert_eq!(index.get("a", 4).map(|(_, v)| v.place), Some((3, 0)));
        assert_eq!(index.get("b", 5), None);
        assert_eq!(index.before("a", (5, 0)), Some(put(3, 1)));
    }

    #[test]
    fn a_rewritten_key_expires_by_its_last_write() {
        let mut index = Index::default();
        index.add("e", Version { place: (1, 0), created: 1, expires: 10 });
        index.add("e", Version { place: (2, 0), created: 1, expires: 20 });
        assert!(index.expired(15, 9).is_empty());
        assert_eq!(index.expired(20, 9), ["e".into()]);
    }
}
