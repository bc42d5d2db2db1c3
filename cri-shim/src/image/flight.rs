//! Work that several ask for at once and that is done once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::OwnedMutexGuard;

/// Who asks for a key while the work for it is under way, gets the same outcome. The work goes on as long as one of
/// those who asked waits for it, and is dropped with the last.
pub struct Flights<K, V: Clone>(Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>);

impl<K, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, V: Clone> Flights<K, V> {
    /// Joins the work for `key`, or starts `work`.
    pub fn join(&self, key: K, work: impl Future<Output = V> + Send + 'static) -> Shared<BoxFuture<'static, V>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.upgrade().is_some_and(|flight| flight.peek().is_none()));
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let flight = work.boxed().shared();
        // None only after it has ended, which it has not: nobody polled it.
        flights.extend(flight.downgrade().map(|weak| (key, weak)));
        flight
    }
}

/// Locks by name.
#[derive(Clone, Default)]
pub struct Locks(Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>);

impl Locks {
    /// Waits until nobody else holds `name`.
    pub async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match locks.get(name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    locks.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::default();
                    locks.insert(name.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_for_a_key_is_done_once_at_a_time() {
        let flights = Flights::<&str, usize>::default();
        let count = Arc::new(AtomicUsize::new(0));
        let (release, released) = oneshot::channel::<()>();
        let slow = {
            let count = count.clone();
            async move {
                let _ = released.await;
                count.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let quick = |count: &Arc<AtomicUsize>| {
            let count = count.clone();
            async move { count.fetch_add(1, Ordering::Relaxed) + 1 }
        };
        let first = flights.join("a", slow);
        let second = flights.join("a", quick(&count));
        assert_eq!(flights.join("b", quick(&count)).await, 1);
        release.send(()).unwrap();
        assert_eq!(futures::join!(first, second), (2, 2));
        assert_eq!(flights.join("a", quick(&count)).await, 3);
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_dropped() {
        let flights = Flights::<&str, ()>::default();
        let (held, gone) = oneshot::channel::<()>();
        let endless = async move {
            let _held = held;
            std::future::pending::<()>().await;
        };
        let mut first = flights.join("a", endless);
        let second = first.clone();
        assert!(futures::poll!(&mut first).is_pending());
        drop(first);
        drop(second);
        assert!(gone.await.is_err());
        flights.join("a", async {}).await;
    }

    #[tokio::test]
    async fn a_name_is_held_by_one() {
        let locks = Locks::default();
        let held = locks.lock("a").await;
        let mut waiting = Box::pin(locks.lock("a"));
        assert!(futures::poll!(&mut waiting).is_pending());
        locks.lock("b").await;
        drop(held);
        waiting.await;
        assert_eq!(locks.0.lock().unwrap().len(), 2);
        locks.lock("c").await;
        assert_eq!(locks.0.lock().unwrap().len(), 1);
    }
}
