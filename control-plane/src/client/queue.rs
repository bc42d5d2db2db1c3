//! A work queue of keys: a key waits once however often it is added, and is worked on by one worker at a time;
//! what is added during its work is worked on afterwards. Failures come back with an exponential delay.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The first delay after a failure, as client-go's.
const BASE: Duration = Duration::from_millis(5);
/// The longest delay after failures.
const MAX: Duration = Duration::from_secs(60);

/// What came of one piece of work.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Done {
    /// Nothing to do until the next event.
    Settled,
    /// To be looked at again after this time, come what may.
    Again(Duration),
}

/// A queue shared by those who add and the one who works.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// All in `ready`, and those to be put there when their present work ends.
    dirty: HashSet<K>,
    working: HashSet<K>,
    delayed: BTreeSet<(Instant, u64)>,
    /// The key of each delayed entry; the number keeps entries of one instant apart.
    delayed_keys: HashMap<u64, K>,
    next: u64,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + std::fmt::Debug + Send> Queue<K> {
    pub fn new() -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeSet::new(),
            delayed_keys: HashMap::new(),
            next: 0,
            failures: HashMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), wake: Notify::new() })
    }

    /// Adds a key, to be worked on as soon as a worker is free.
    pub fn add(&self, key: K) {
        self.state().add(key);
        self.wake.notify_one();
    }

    /// Adds the key, if there is one.
    pub fn add_some(&self, key: Option<K>) {
        if let Some(key) = key {
            self.add(key);
        }
    }

    /// Adds a key after `delay`; several delays of one key are all kept, as each may stand for another deadline.
    pub fn add_after(&self, key: K, delay: Duration) {
        let mut state = self.state();
        let (number, at) = (state.next, Instant::now() + delay);
        state.next += 1;
        state.delayed.insert((at, number));
        state.delayed_keys.insert(number, key);
        drop(state);
        self.wake.notify_one();
    }

    /// Works for ever on what is added, on at most `limit` keys at once.
    pub async fn work<F, Fut>(&self, limit: usize, mut worker: F)
    where
        F: FnMut(K) -> Fut,
        Fut: Future<Output = anyhow::Result<Done>>,
    {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < limit {
                let Some(key) = self.state().take(Instant::now()) else { break };
                let work = worker(key.clone());
                running.push(async move { (key, work.await) });
            }
            let next = self.state().delayed.first().map(|(at, _)| *at);
            tokio::select! {
                Some((key, result)) = running.next() => self.finish(key, result),
                () = self.wake.notified(), if running.len() < limit => {}
                () = sleep_until(next), if running.len() < limit => {}
            }
        }
    }

    fn finish(&self, key: K, result: anyhow::Result<Done>) {
        let delay = {
            let mut state = self.state();
            state.working.remove(&key);
            if state.dirty.contains(&key) {
                state.ready.push_back(key.clone());
            }
            match result {
                Ok(done) => {
                    state.failures.remove(&key);
                    match done {
                        Done::Settled => None,
                        Done::Again(delay) => Some(delay),
                    }
                }
                Err(error) => {
                    let failures = state.failures.entry(key.clone()).or_default();
                    let delay = (BASE * 2u32.saturating_pow(*failures)).min(MAX);
                    *failures += 1;
                    if *failures > 5 {
                        tracing::warn!(?key, ?delay, "{error:#}");
                    } else {
                        tracing::debug!(?key, ?delay, "{error:#}");
                    }
                    Some(delay)
                }
            }
        };
        if let Some(delay) = delay {
            self.add_after(key, delay);
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn take(&mut self, now: Instant) -> Option<K> {
        while let Some(&(at, number)) = self.delayed.first().filter(|(at, _)| *at <= now) {
            self.delayed.remove(&(at, number));
            if let Some(key) = self.delayed_keys.remove(&number) {
                self.add(key);
            }
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_worker_for_a_key_and_what_came_meanwhile_comes_after() {
        let queue = Queue::new();
        let log = Mutex::new(Vec::new());
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let work = queue.work(4, async |key| {
            log.lock().unwrap().push(format!("start {key}"));
            if key == "a" && log.lock().unwrap().len() < 4 {
                queue.add("a");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            log.lock().unwrap().push(format!("end {key}"));
            Ok(Done::Settled)
        });
        let _ = tokio::time::timeout(Duration::from_millis(200), work).await;
        let log = log.into_inner().unwrap();
        assert_eq!(log, ["start a", "start b", "end a", "end b", "start a", "end a"]);
    }

    #[tokio::test]
    async fn failures_come_back_later_and_later() {
        let queue = Queue::new();
        let times = Mutex::new(Vec::new());
        let begin = Instant::now();
        queue.add(());
        let work = queue.work(1, async |()| {
            times.lock().unwrap().push(begin.elapsed().as_millis());
            anyhow::bail!("no")
        });
        let _ = tokio::time::timeout(Duration::from_millis(500), work).await;
        let times = times.into_inner().unwrap();
        for (attempt, at_least) in [0, 5, 15, 35, 75].into_iter().enumerate() {
            assert!(times[attempt] >= at_least, "attempt {attempt} came at {times:?} ms");
        }
        assert!(times.len() <= 7, "{times:?}");
    }
}
