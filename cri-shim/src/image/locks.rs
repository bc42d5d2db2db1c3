//! Locks by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Locks that are there while somebody holds them or waits for them.
#[derive(Clone, Default)]
pub struct Locks(Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>);

impl Locks {
    /// Waits until nobody else holds `name`.
    pub async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        self.of(name).lock_owned().await
    }

    /// `None` while somebody else holds `name`.
    pub fn try_lock(&self, name: &str) -> Option<OwnedMutexGuard<()>> {
        self.of(name).try_lock_owned().ok()
    }

    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_held_by_one() {
        let locks = Locks::default();
        let held = locks.lock("a").await;
        let mut waiting = Box::pin(locks.lock("a"));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(locks.try_lock("a").is_none());
        locks.lock("b").await;
        drop(held);
        waiting.await;
        assert_eq!(locks.0.lock().unwrap().len(), 2);
        locks.lock("c").await;
        assert_eq!(locks.0.lock().unwrap().len(), 1);
    }
}
