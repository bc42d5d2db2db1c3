//! Operations in flight, by name: whoever asks for the same again joins the one that runs and gets its answer.
//!
//! An operation runs in a task of its own and ends whether or not its callers wait, so that a caller that gave up leaves
//! nothing half-made, and its next try finds the result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tonic::Status;

use crate::trace::Stages;

type Answer<T> = Shared<BoxFuture<'static, Result<T, Status>>>;

/// The operations of one kind.
#[derive(Clone)]
pub struct Flights<T: Clone> {
    /// The CRI's name of what flies.
    call: &'static str,
    flying: Arc<Mutex<HashMap<String, Flight<T>>>>,
}

/// An operation that runs, as one of its callers sees it.
#[derive(Clone)]
pub struct Flight<T: Clone> {
    answer: Answer<T>,
    pub stages: Stages,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub fn new(call: &'static str) -> Self {
        Self { call, flying: Arc::default() }
    }

    /// Joins the operation `key`, which `start` begins if it does not run.
    pub fn join<F>(&self, key: &str, start: impl FnOnce(Stages) -> F) -> Flight<T>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flying.get(key) {
            return flight.clone();
        }
        let stages = Stages::new(self.call, key);
        let work = start(stages.clone());
        let (all, name) = (self.flying.clone(), key.to_owned());
        let task = tokio::spawn(async move {
            // Dropped when the work ends, panics or is dropped itself: the name is free again in any case.
            let _landing = Landing { all, name };
            work.await
        });
        let answer = async move {
            task.await.unwrap_or_else(|error| Err(Status::internal(format!("the operation did not end: {error}"))))
        };
        let flight = Flight { answer: answer.boxed().shared(), stages };
        flying.insert(key.to_owned(), flight.clone());
        flight
    }
}

impl<T: Clone> Flight<T> {
    /// The operation's answer, or after `patience` (forever if `None`) what it is at; it goes on then.
    ///
    /// # Errors
    /// What the operation failed with, or `DeadlineExceeded`.
    pub async fn answer(self, patience: Option<Duration>) -> Result<T, Status> {
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

struct Landing<T: Clone> {
    all: Arc<Mutex<HashMap<String, Flight<T>>>>,
    name: String,
}

impl<T: Clone> Drop for Landing<T> {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
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
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn a_second_caller_joins_and_a_later_one_starts_anew() {
        let flights: Flights<u32> = Flights::new("RunPodSandbox");
        let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            flights.join("pod", move |stages| async move {
                stages.run("network", gate.notified()).await;
                Ok(runs.fetch_add(1, Ordering::SeqCst) + 1)
            })
        };
        let first = ask();
        let gave_up = ask().answer(Some(Duration::from_millis(20))).await.unwrap_err();
        assert_eq!(gave_up.code(), tonic::Code::DeadlineExceeded);
        assert!(gave_up.message().starts_with("still at: network (for 0.0 s)"), "{}", gave_up.message());
        let second = ask();
        gate.notify_one();
        assert_eq!(first.answer(None).await.unwrap(), 1);
        assert_eq!(second.answer(None).await.unwrap(), 1);
        gate.notify_one();
        assert_eq!(ask().answer(None).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_frees_the_name() {
        let flights: Flights<u32> = Flights::new("RunPodSandbox");
        let failed = flights.join("pod", |_| async { panic!("broken") }).answer(None).await.unwrap_err();
        assert_eq!(failed.code(), tonic::Code::Internal);
        assert_eq!(flights.join("pod", |_| async { Ok(7) }).answer(None).await.unwrap(), 7);
    }

    #[test]
    fn a_caller_waits_as_long_as_its_header_says() {
        assert_eq!(timeout("240S"), Some(Duration::from_secs(240)));
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!([timeout(""), timeout("S"), timeout("123456789S"), timeout("5x"), timeout("é")], [None; 5]);
    }
}
