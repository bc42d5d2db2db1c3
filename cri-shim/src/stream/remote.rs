//! Exec and attach on one connection: the streams are gathered, the work runs, its outcome goes out last.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use streams::channel::Protocol;
use streams::remote::{Outcome, StreamType};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::handshake::Version;
use super::mux::{Closed, Mux, Step};
use super::pipe::Reader;
use super::resize::Sizes;
use super::{Streams, Wanted};

/// How long a client may take to open its streams.
const GATHER: Duration = Duration::from_secs(30);
/// Sizes of a terminal that wait to be taken.
const SIZES: usize = 8;

/// Serves one request. The work goes on when the client leaves: it is told by its streams.
pub async fn serve<F>(mut mux: Mux, wanted: Wanted, speech: Speech, work: F)
where
    F: FnOnce(Streams) -> BoxFuture<'static, Outcome>,
{
    let expected = expected(wanted, speech.resizes());
    let ids = match gather(&mut mux, &expected, &speech).await {
        Ok(ids) => ids,
        Err(why) => {
            tracing::debug!("a client of exec or attach did not open its streams: {why}");
            return mux.close().await;
        }
    };
    if let Speech::Channels(_) = speech {
        greet(&mut mux, wanted);
    }
    let mut running = tokio::spawn(work(hand_out(&mut mux, &ids)));
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            step = mux.step() => match step {
                Step::Opened { id, .. } => mux.refuse(id),
                Step::Closed(closed) => {
                    if closed != Closed::Gone {
                        tracing::debug!("a stream of exec or attach is over: {closed:?}");
                    }
                    return;
                }
            },
        }
    };
    let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(format!("the server failed: {error}")));
    // What the work wrote goes first.
    mux.collect();
    for (kind, id) in &ids {
        match kind {
            StreamType::Error => {
                let told = speech.tell(&outcome);
                if !told.is_empty() {
                    mux.send(*id, told);
                }
                mux.finish(*id);
            }
            _ => mux.finish(*id),
        }
    }
    mux.close().await;
}

/// How a connection carries exec and attach.
#[derive(Debug, Clone, Copy)]
pub enum Speech {
    Spdy(Version),
    Channels(Protocol),
}

impl Speech {
    fn resizes(&self) -> bool {
        match self {
            Self::Spdy(version) => version.resize,
            Self::Channels(_) => true,
        }
    }

    /// What the error stream carries; empty where silence says it.
    fn tell(&self, outcome: &Outcome) -> Bytes {
        let status = match self {
            Self::Spdy(version) => version.status,
            Self::Channels(protocol) => protocol.status,
        };
        if status { outcome.to_status().to_string().into() } else { outcome.message().into() }
    }
}

/// The streams that a client opens.
fn expected(wanted: Wanted, resizes: bool) -> Vec<StreamType> {
    let all = [
        (StreamType::Error, true),
        (StreamType::Stdin, wanted.stdin),
        (StreamType::Stdout, wanted.stdout),
        (StreamType::Stderr, wanted.stderr && !wanted.tty),
        (StreamType::Resize, wanted.tty && resizes),
    ];
    all.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| kind).collect()
}

/// The numbers of the expected streams. Channels have theirs; over SPDY the client opens one after the other.
async fn gather(mux: &mut Mux, expected: &[StreamType], speech: &Speech) -> Result<Vec<(StreamType, u32)>, String> {
    if let Speech::Channels(_) = speech {
        return Ok(expected.iter().map(|kind| (*kind, kind.channel().into())).collect());
    }
    let mut ids: Vec<(StreamType, u32)> = Vec::new();
    let gathering = async {
        while ids.len() < expected.len() {
            match mux.step().await {
                Step::Opened { id, headers } => match StreamType::of_headers(&headers) {
                    Some(kind) if expected.contains(&kind) && ids.iter().all(|(known, _)| *known != kind) => {
                        mux.accept(id);
                        ids.push((kind, id));
                    }
                    _ => mux.refuse(id),
                },
                Step::Closed(closed) => return Err(format!("{closed:?}")),
            }
        }
        Ok(())
    };
    tokio::time::timeout(GATHER, gathering).await.map_err(|_| "it took too long".to_owned())??;
    Ok(ids)
}

/// An empty message on the lowest channel to the client, by which it knows that the connection stands.
fn greet(mux: &mut Mux, wanted: Wanted) {
    let channel = match wanted {
        Wanted { stdout: true, .. } => StreamType::Stdout,
        Wanted { stderr: true, .. } => StreamType::Stderr,
        _ => StreamType::Error,
    };
    mux.send(channel.channel().into(), Bytes::new());
}

fn hand_out(mux: &mut Mux, ids: &[(StreamType, u32)]) -> Streams {
    let (sizes, resize) = mpsc::channel(SIZES);
    let mut streams = Streams { stdin: None, stdout: None, stderr: None, resize, gone: mux.gone() };
    for (kind, id) in ids {
        match kind {
            StreamType::Stdin => streams.stdin = Some(Box::new(mux.reader(*id))),
            StreamType::Stdout => streams.stdout = Some(Box::new(mux.writer(*id))),
            StreamType::Stderr => streams.stderr = Some(Box::new(mux.writer(*id))),
            StreamType::Resize => drop(tokio::spawn(read_sizes(mux.reader(*id), sizes.clone()))),
            StreamType::Error => {}
        }
    }
    streams
}

/// Ends with the connection, or when nobody takes the sizes any more.
async fn read_sizes(mut from: Reader, to: mpsc::Sender<(u16, u16)>) {
    let (mut sizes, mut chunk) = (Sizes::default(), [0; 256]);
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        let Ok(fed) = sizes.feed(&chunk[..read]) else { return };
        for size in fed {
            if to.send(size).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_output_and_sizes_where_the_version_has() {
        let tty = Wanted { stdin: true, stdout: true, stderr: true, tty: true };
        use StreamType::{Error, Resize, Stderr, Stdin, Stdout};
        assert_eq!(expected(tty, true), [Error, Stdin, Stdout, Resize]);
        assert_eq!(expected(tty, false), [Error, Stdin, Stdout]);
        assert_eq!(expected(Wanted { tty: false, stdin: false, ..tty }, true), [Error, Stdout, Stderr]);
    }

    #[test]
    fn outcomes_are_a_status_from_version_4_on() {
        let spdy = |status| Speech::Spdy(Version { status, resize: true });
        let exited = Outcome::Exited(3);
        assert_eq!(Outcome::of_error_stream(&spdy(true).tell(&exited)), exited);
        assert!(!spdy(true).tell(&Outcome::Success).is_empty());
        assert_eq!(spdy(false).tell(&Outcome::Success), "");
        assert_eq!(spdy(false).tell(&Outcome::Failed("no".into())), "no");
    }
}
