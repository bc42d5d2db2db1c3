//! Container events as they happen, to whoever listens, none left out.
//!
//! A listener that does not read is not waited for and costs bounded memory: when its queue is full its stream ends with
//! an error, so that it knows that it has to list again. It never misses an event without being told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cri::v1::ContainerEventResponse;
use futures::Stream;
use futures::stream;
use tokio::sync::mpsc;
use tonic::Status;

/// How many events may wait for one listener: those of some thousand containers starting at once.
const QUEUE: usize = 8192;

/// Where events come together.
#[derive(Debug)]
pub struct Events {
    listeners: Mutex<Vec<Listener>>,
    queue: usize,
}

#[derive(Debug)]
struct Listener {
    events: mpsc::Sender<ContainerEventResponse>,
    overrun: Arc<AtomicBool>,
}

impl Default for Events {
    fn default() -> Self {
        Self { listeners: Mutex::default(), queue: QUEUE }
    }
}

impl Events {
    /// Tells all listeners. `event` is made only if there are any.
    pub fn publish(&self, event: impl FnOnce() -> ContainerEventResponse) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| !listener.events.is_closed());
        if listeners.is_empty() {
            return;
        }
        let event = event();
        listeners.retain(|listener| match listener.events.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                listener.overrun.store(true, Ordering::SeqCst);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    /// All events from now on.
    pub fn listen(&self) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + use<> {
        let (events, queue) = mpsc::channel(self.queue);
        let overrun = Arc::new(AtomicBool::new(false));
        let listener = Listener { events, overrun: overrun.clone() };
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        stream::unfold(Some((queue, overrun)), |state| async {
            let (mut queue, overrun) = state?;
            match queue.recv().await {
                Some(event) => Some((Ok(event), Some((queue, overrun)))),
                None if overrun.load(Ordering::SeqCst) => {
                    let why = "events came faster than they were read and the stream ends here: list again";
                    Some((Err(Status::data_loss(why)), None))
                }
                None => None,
            }
        })
    }

    /// Ends all streams, in good order: what was published before is still read.
    pub fn close(&self) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn event(id: &str) -> ContainerEventResponse {
        ContainerEventResponse { container_id: id.to_owned(), ..ContainerEventResponse::default() }
    }

    #[tokio::test]
    async fn every_listener_gets_every_event_in_order() {
        let events = Events::default();
        events.publish(|| unreachable!("nobody listens"));
        let (a, b) = (events.listen(), events.listen());
        for id in ["1", "2", "3"] {
            events.publish(|| event(id));
        }
        events.close();
        for stream in [a.boxed(), b.boxed()] {
            let ids: Vec<_> = stream.map(|event| event.unwrap().container_id).collect().await;
            assert_eq!(ids, ["1", "2", "3"]);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_is_told_after_the_events_that_it_has() {
        let events = Events { queue: 2, ..Events::default() };
        let slow = events.listen().boxed();
        for id in ["1", "2", "3"] {
            events.publish(|| event(id));
        }
        let all: Vec<_> = slow.collect().await;
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].as_ref().unwrap().container_id, "2");
        assert_eq!(all[2].as_ref().unwrap_err().code(), tonic::Code::DataLoss);
    }
}
