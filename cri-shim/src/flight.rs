//! Work in flight, by key: whoever asks for the same again joins what is under way and gets its outcome.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tonic::Status;

use crate::trace::Stages;

/// Work of one kind by key, each under way at most once at a time.
pub struct Flights<K, V: Clone>(Mutex<HashMap<K, Aloft<V>>>);

/// Work that is under way as long as somebody waits for it.
struct Aloft<V: Clone> {
    answer: WeakShared<BoxFuture<'static, V>>,
    stages: Stages,
}

/// Work that is under way, as one of those sees it who wait for it.
#[derive(Clone)]
pub struct Flight<V: Clone> {
    answer: Shared<BoxFuture<'static, V>>,
    pub stages: Stages,
}

impl<K, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, V: Clone> Flights<K, V> {
    /// Joins the work for `key`, which `start` begins, with `stages`, if it is not under way. It goes on as long as one of those who
    /// joined waits for it, and is dropped with the last.
    pub fn join<F>(&self, key: K, stages: Stages, start: impl FnOnce(Stages) -> F) -> Flight<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut aloft = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        aloft.retain(|_, one| one.answer.upgrade().is_some_and(|answer| answer.peek().is_none()));
        if let Some(one) = aloft.get(&key)
            && let Some(answer) = one.answer.upgrade()
        {
            return Flight { answer, stages: one.stages.clone() };
        }
        let answer = start(stages.clone()).boxed().shared();
        // None only after it has ended, which it has not: nobody polled it.
        aloft.extend(answer.downgrade().map(|weak| (key, Aloft { answer: weak, stages: stages.clone() })));
        Flight { answer, stages }
    }
}

impl<K: Hash + Eq, T: Clone + Send + Sync + 'static> Flights<K, Result<T, Status>> {
    /// As [`Flights::join`], but the work ends whether or not anybody waits for it, and a panic is an answer: a caller that
    /// gave up leaves nothing half-made, and its next try finds the result.
    pub fn join_to_its_end<F>(
        &self,
        key: K,
        stages: Stages,
        start: impl FnOnce(Stages) -> F,
    ) -> Flight<Result<T, Status>>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let flight = self.join(key, stages, |stages| {
            let work = AssertUnwindSafe(start(stages)).catch_unwind();
            async { work.await.unwrap_or_else(|_| Err(Status::internal("the operation did not end: it panicked"))) }
        });
        // One that always waits.
        tokio::spawn(flight.answer.clone());
        flight
    }
}

impl<V: Clone> Flight<V> {
    /// The outcome.
    pub async fn answer(self) -> V {
        self.answer.await
    }
}

impl<T: Clone> Flight<Result<T, Status>> {
    /// The operation's answer, or after `patience` (forever if `None`) what it is at; it goes on then.
    ///
    /// # Errors
    /// What the operation failed with, or `DeadlineExceeded`.
    pub async fn answer_within(self, patience: Option<Duration>) -> Result<T, Status> {
        let Some(patience) = patience else { return self.answer.await };
        match tokio::time::timeout(patience, self.answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "still at: {}; it goes on, and asking again joins it",
                self.stages.doing()
            ))),
        }
    }
}

/// How long a caller waits, by its `grpc-timeout` header, less what an answer needs to reach it.
/// Source: gRPC over HTTP/2, "Timeout".
pub fn patience(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let whole = timeout(text)?;
    Some(whole.saturating_sub((whole / 20).min(Duration::from_secs(1))))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Notify, oneshot};

    fn stages() -> Stages {
        Stages::new("RunPodSandbox", "a pod")
    }

    #[tokio::test]
    async fn a_second_caller_joins_and_a_later_one_starts_anew() {
        let flights: Flights<&str, Result<u32, Status>> = Flights::default();
        let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            flights.join_to_its_end("pod", stages(), move |stages| async move {
                stages.run("network", gate.notified()).await;
                Ok(runs.fetch_add(1, Ordering::SeqCst) + 1)
            })
        };
        let first = ask();
        let gave_up = ask().answer_within(Some(Duration::from_millis(20))).await.unwrap_err();
        assert_eq!(gave_up.code(), tonic::Code::DeadlineExceeded);
        assert!(gave_up.message().starts_with("still at: network (for 0.0 s)"), "{}", gave_up.message());
        let second = ask();
        gate.notify_one();
        assert_eq!(first.answer().await.unwrap(), 1);
        assert_eq!(second.answer().await.unwrap(), 1);
        gate.notify_one();
        assert_eq!(ask().answer().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_frees_the_name() {
        let flights: Flights<&str, Result<u32, Status>> = Flights::default();
        let failed =
            flights.join_to_its_end("pod", stages(), |_| async { panic!("broken") }).answer().await.unwrap_err();
        assert_eq!(failed.code(), tonic::Code::Internal);
        assert_eq!(flights.join_to_its_end("pod", stages(), |_| async { Ok(7) }).answer().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_ends_though_nobody_waits() {
        let flights: Flights<&str, Result<(), Status>> = Flights::default();
        let (done, seen) = oneshot::channel();
        drop(flights.join_to_its_end("pod", stages(), |_| async move {
            tokio::task::yield_now().await;
            done.send(()).map_err(|()| Status::internal("nobody looks"))
        }));
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_dropped() {
        let flights = Flights::<&str, ()>::default();
        let (held, gone) = oneshot::channel::<()>();
        let first = flights.join("a", stages(), |_| async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let second = flights.join("a", stages(), |_| async {});
        let (mut first, second) = (Box::pin(first.answer()), second.answer());
        assert!(futures::poll!(&mut first).is_pending());
        drop((first, second));
        assert!(gone.await.is_err());
        flights.join("a", stages(), |_| async {}).answer().await;
    }

    #[tokio::test]
    async fn keys_do_not_wait_for_one_another() {
        let flights = Flights::<&str, u32>::default();
        let waiting = flights.join("a", stages(), |_| std::future::pending());
        assert_eq!(flights.join("b", stages(), |_| async { 1 }).answer().await, 1);
        assert!(futures::poll!(Box::pin(waiting.answer())).is_pending());
    }

    #[test]
    fn a_caller_waits_as_long_as_its_header_says() {
        assert_eq!(timeout("240S"), Some(Duration::from_secs(240)));
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!([timeout(""), timeout("S"), timeout("123456789S"), timeout("5x"), timeout("é")], [None; 5]);
    }
}
