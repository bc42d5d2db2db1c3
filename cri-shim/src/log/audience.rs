//! Those who are attached to a stream. Each gets every byte from the moment it attached on; one that stops reading holds
//! the container back, as a terminal does, but not for ever.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;

/// Pieces of output that wait for one who is attached.
const QUEUE: usize = 4;
/// How long the container waits for one who does not read.
const PATIENCE: Duration = Duration::from_secs(30);

/// The audience of one stream.
#[derive(Default)]
pub struct Audience(Mutex<Seats>);

#[derive(Default)]
struct Seats {
    taken: Vec<mpsc::Sender<Bytes>>,
    over: bool,
}

impl Audience {
    /// A seat: output until the stream is over, or until its holder took nothing for too long.
    pub fn attach(&self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut seats = self.seats();
        if !seats.over {
            seats.taken.push(sender);
        }
        receiver
    }

    pub fn is_empty(&self) -> bool {
        self.seats().taken.is_empty()
    }

    pub async fn show(&self, piece: Bytes) {
        self.show_within(PATIENCE, piece).await;
    }

    async fn show_within(&self, patience: Duration, piece: Bytes) {
        let taken = self.seats().taken.clone();
        let sent = join_all(taken.iter().map(|seat| seat.send_timeout(piece.clone(), patience))).await;
        for (seat, sent) in taken.iter().zip(sent) {
            if let Err(error) = sent {
                if matches!(error, SendTimeoutError::Timeout(_)) {
                    tracing::warn!(
                        "a client that was attached to a container did not read for {patience:?} and is left"
                    );
                }
                self.seats().taken.retain(|other| !other.same_channel(seat));
            }
        }
    }

    /// The stream is over.
    pub fn dismiss(&self) {
        let mut seats = self.seats();
        seats.over = true;
        seats.taken.clear();
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_sees_everything_and_the_sleeper_is_dropped() {
        let audience = Audience::default();
        let (mut reader, sleeper) = (audience.attach(), audience.attach());
        let seen = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(piece) = reader.recv().await {
                seen.extend_from_slice(&piece);
            }
            seen
        });
        for piece in 0..2 * QUEUE {
            audience.show_within(Duration::from_millis(50), format!("{piece}").into()).await;
        }
        audience.dismiss();
        assert_eq!(seen.await.unwrap(), b"01234567");
        assert_eq!(sleeper.len(), QUEUE);
        assert_eq!(audience.attach().recv().await, None, "nobody attaches to what is over");
    }
}
