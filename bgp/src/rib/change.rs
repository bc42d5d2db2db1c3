//! One path in place of another, and who is to hear of it.

use super::export::Exporter;
use super::table::{Path, PeerId, Replaced};
use super::{Rib, origin, select};
use crate::prefix::{Family, Prefix};

/// Another best path of a prefix, or none where there was one.
pub(super) struct BestChange {
    prefix: Prefix,
    fresh: bool,
    before: Option<Path>,
    after: Option<Path>,
}

impl Rib {
    /// Puts a peer's path in place, or takes it away, and says what peers are to hear of.
    pub(super) fn replace(&mut self, prefix: Prefix, id: PeerId, path: Option<Path>) -> Option<BestChange> {
        let rejected = path.as_ref().map(|path| path.rejected);
        let (peers, most) = (&self.peers, self.identity.maximum_paths);
        let Replaced { fresh, old, before, after } =
            self.tables.replace(prefix, id, path, |paths| select::select(paths, most, |id| origin(peers, id)));
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.counts[prefix.family() as usize].change(old.map(|path| path.rejected), rejected);
        }
        if before.same(&after) {
            return None;
        }
        self.changed.add(prefix, true, fresh);
        let same_best = match (&before.best, &after.best) {
            (Some(before), Some(after)) => before.same(after),
            (None, None) => true,
            _ => false,
        };
        (!same_best).then_some(BestChange { prefix, fresh, before: before.best, after: after.best })
    }

    /// Takes a peer's paths away.
    pub(super) fn replace_all(&mut self, gone: Vec<Prefix>, id: PeerId) {
        let changes: Vec<BestChange> = gone.into_iter().filter_map(|prefix| self.replace(prefix, id, None)).collect();
        self.tell(&changes);
    }

    /// Remembers which peers are to hear of it.
    pub(super) fn tell(&mut self, changes: &[BestChange]) {
        // Taken out for the while: whether a peer is told is asked of all the rest.
        let mut pending = std::mem::take(&mut self.pending);
        for (id, pending) in &mut pending {
            let mut exporter = Exporter::new(self, *id);
            let mut more = [0_isize; 2];
            for BestChange { prefix, fresh, before, after } in changes {
                let mut tells =
                    |path: &Option<Path>| path.as_ref().is_some_and(|path| exporter.verdict(*prefix, path).is_some());
                let (told, tells) = (tells(before), tells(after));
                if told || tells {
                    pending.add(*prefix, told, *fresh);
                    more[prefix.family() as usize] += isize::from(tells) - isize::from(told);
                }
            }
            for (family, more) in Family::ALL.into_iter().zip(more) {
                self.count_sent(*id, family, more);
            }
        }
        self.pending = pending;
    }

    pub(super) fn count_sent(&mut self, id: PeerId, family: Family, more: isize) {
        if let Some(peer) = self.peers.get_mut(&id) {
            let counts = &mut peer.counts[family as usize];
            counts.sent = counts.sent.saturating_add_signed(more);
        }
    }
}
