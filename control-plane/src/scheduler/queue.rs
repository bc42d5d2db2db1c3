//! The pods that wait for a node: those to be tried now, by priority and then by age; those that were tried and wait
//! a while; and those that nothing but a change in the cluster can help.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::model::Pending;

/// The delays after an attempt, doubling.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// What no event has helped is tried again after this time.
const FORGOTTEN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(u64),
    Waiting(Instant),
    Unschedulable(Instant),
    /// Taken out, to be bound.
    Taken,
}

struct Entry {
    pending: Pending,
    attempts: u32,
    /// Until when the delay after the last attempt runs.
    until: Instant,
    place: Place,
}

/// The queue. Time is an input.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    waiting: BTreeSet<(Instant, String)>,
    unschedulable: BTreeSet<(Instant, String)>,
    next: u64,
}

impl Queue {
    /// Adds a pod, or takes in its new state: a changed specification is a reason to try again.
    pub fn put(&mut self, pending: Pending, now: Instant) {
        let uid = pending.uid().to_owned();
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.entries.insert(uid.clone(), Entry { pending, attempts: 0, until: now, place: Place::Taken });
            self.activate(&uid, now);
            return;
        };
        let changed = entry.pending.pod.spec != pending.pod.spec;
        entry.pending = pending;
        if changed && matches!(entry.place, Place::Unschedulable(_)) {
            self.activate(&uid, now);
        }
    }

    pub fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.entries.remove(uid);
    }

    /// The next pod to try.
    pub fn take(&mut self, now: Instant) -> Option<Pending> {
        self.wake(now);
        let (_, _, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::Taken;
        entry.attempts += 1;
        let delay = (FIRST_DELAY * 2u32.saturating_pow(entry.attempts - 1)).min(LAST_DELAY);
        entry.until = now + delay;
        Some(entry.pending.clone())
    }

    /// A taken pod fits nowhere: it waits for a change.
    pub fn unschedulable(&mut self, uid: &str, now: Instant) {
        self.place(uid, Place::Unschedulable(now + FORGOTTEN));
    }

    /// A taken pod could not be bound: it is tried again after its delay.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        self.activate(uid, now);
    }

    /// Something changed that may help: all that wait for it are tried again, each after its delay.
    pub fn changed(&mut self, now: Instant) {
        for (_, uid) in std::mem::take(&mut self.unschedulable) {
            self.activate(&uid, now);
        }
    }

    /// When something is to be tried next that is not active now.
    pub fn next_wake(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, String)>| set.first().map(|(at, _)| *at);
        [first(&self.waiting), first(&self.unschedulable)].into_iter().flatten().min()
    }

    /// The UIDs of all that are in the queue.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    fn wake(&mut self, now: Instant) {
        while let Some((_, uid)) = self.waiting.first().filter(|(at, _)| *at <= now).cloned() {
            self.activate(&uid, now);
        }
        while let Some((_, uid)) = self.unschedulable.first().filter(|(at, _)| *at <= now).cloned() {
            self.activate(&uid, now);
        }
    }

    fn activate(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get(uid) else { return };
        let place = if entry.until > now {
            Place::Waiting(entry.until)
        } else {
            self.next += 1;
            Place::Active(self.next)
        };
        self.place(uid, place);
    }

    fn place(&mut self, uid: &str, place: Place) {
        self.leave(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.place = place;
        match place {
            Place::Active(number) => drop(self.active.insert((Reverse(entry.pending.priority()), number, uid.into()))),
            Place::Waiting(at) => drop(self.waiting.insert((at, uid.into()))),
            Place::Unschedulable(at) => drop(self.unschedulable.insert((at, uid.into()))),
            Place::Taken => {}
        }
    }

    fn leave(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match std::mem::replace(&mut entry.place, Place::Taken) {
            Place::Active(number) => drop(self.active.remove(&(Reverse(entry.pending.priority()), number, uid.into()))),
            Place::Waiting(at) => drop(self.waiting.remove(&(at, uid.into()))),
            Place::Unschedulable(at) => drop(self.unschedulable.remove(&(at, uid.into()))),
            Place::Taken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(uid: &str, priority: i32) -> Pending {
        let pod = json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [], "priority": priority}});
        Pending::new(Arc::new(serde_json::from_value::<Pod>(pod).unwrap()))
    }

    fn take(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.take(now).map(|pending| pending.uid().to_owned())
    }

    #[test]
    fn by_priority_then_by_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("old", 0), ("young", 0), ("high", 5)] {
            queue.put(pod(uid, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| take(&mut queue, now)).collect();
        assert_eq!(order, ["high", "old", "young"]);
    }

    #[test]
    fn what_fits_nowhere_waits_for_a_change_and_its_delay() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        queue.put(pod("a", 0), now);
        take(&mut queue, now);
        queue.unschedulable("a", now);
        queue.put(pod("a", 0), now);
        assert_eq!(take(&mut queue, after(20)), None, "its own status is no reason to try again");
        queue.changed(after(20));
        assert_eq!(take(&mut queue, after(20)), Some("a".into()));
        queue.unschedulable("a", after(20));
        queue.changed(after(20));
        assert_eq!(take(&mut queue, after(21)), None, "the second delay is 2 s");
        assert_eq!(queue.next_wake(), Some(after(22)));
        assert_eq!(take(&mut queue, after(22)), Some("a".into()));
        queue.unschedulable("a", after(22));
        assert_eq!(take(&mut queue, after(22 + 300)), Some("a".into()));
        queue.remove("a");
        assert_eq!(queue.uids().count(), 0);
    }
}
