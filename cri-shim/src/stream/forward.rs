//! Port-forward on one connection. Over SPDY each connection to a port is a pair of streams, one for data and one for an
//! error, which a request id joins. Over WebSocket channels each port is one connection, with two channels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use streams::forward::{ForwardError, ForwardStream};
use streams::spdy::Headers;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Executor;
use super::mux::{Closed, Mux, Step};

/// How long a stream waits for the other of its pair.
const PAIR: Duration = Duration::from_secs(30);

/// Both streams of a connection to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    port: u16,
    data: u32,
    error: u32,
}

/// Streams that wait for their other half, by request id. Pure.
#[derive(Debug, Default)]
struct Halves(BTreeMap<String, Half>);

#[derive(Debug)]
struct Half {
    stream: ForwardStream,
    id: u32,
    expires: Instant,
}

impl Halves {
    /// A new stream; its pair, where it completes one.
    ///
    /// # Errors
    /// Where its headers are wrong, or its request has such a stream already. Refuse it then.
    fn add(&mut self, id: u32, headers: &Headers, now: Instant) -> Result<Option<Pair>, ForwardError> {
        let mut stream = ForwardStream::of_headers(headers)?;
        if stream.request_id.is_empty() {
            // Clients before Kubernetes 1.1 open the error stream, and then the data stream (httpstream's own rule).
            let error = if stream.error { id } else { id.saturating_sub(2) };
            stream.request_id = format!("stream {error}");
        }
        let Some(other) = self.0.get(&stream.request_id) else {
            self.0.insert(stream.request_id.clone(), Half { stream, id, expires: now + PAIR });
            return Ok(None);
        };
        if other.stream.error == stream.error || other.stream.port != stream.port {
            return Err(ForwardError::Type(format!("second stream of request {}", stream.request_id)));
        }
        let (data, error) = if stream.error { (other.id, id) } else { (id, other.id) };
        self.0.remove(&stream.request_id);
        Ok(Some(Pair { port: stream.port, data, error }))
    }

    /// Those that waited too long.
    fn expire(&mut self, now: Instant) -> Vec<u32> {
        let late: Vec<u32> = self.0.values().filter(|half| half.expires <= now).map(|half| half.id).collect();
        self.0.retain(|_, half| half.expires > now);
        late
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.0.values().map(|half| half.expires).min()
    }
}

/// The connections to ports that run.
struct Running {
    sandbox: String,
    executor: Arc<dyn Executor>,
    tasks: JoinSet<(Pair, Result<(), String>)>,
}

impl Running {
    fn start(&mut self, mux: &mut Mux, pair: Pair) {
        let stream = Box::new(tokio::io::join(mux.reader(pair.data), mux.writer(pair.data)));
        let work = self.executor.port_forward(&self.sandbox, pair.port, stream);
        self.tasks.spawn(async move { (pair, work.await) });
    }

    /// What is said to the client of one that has ended.
    fn end(&self, mux: &mut Mux, pair: Pair, result: Result<(), String>) {
        mux.collect();
        if let Err(why) = result {
            let (port, sandbox) = (pair.port, &self.sandbox);
            mux.send(pair.error, format!("error forwarding port {port} to pod sandbox {sandbox}: {why}").into());
        }
        for id in [pair.data, pair.error] {
            mux.finish(id);
            mux.forget(id);
        }
    }
}

/// Serves SPDY until the client leaves. Connections to ports end with it.
pub async fn serve(mut mux: Mux, sandbox: String, executor: Arc<dyn Executor>) {
    let mut halves = Halves::default();
    let mut running = Running { sandbox, executor, tasks: JoinSet::new() };
    loop {
        let expiry = halves.next_expiry();
        tokio::select! {
            step = mux.step() => match step {
                Step::Opened { id, headers } => match halves.add(id, &headers, Instant::now()) {
                    Ok(pair) => {
                        mux.accept(id);
                        if let Some(pair) = pair {
                            running.start(&mut mux, pair);
                        }
                    }
                    Err(why) => {
                        tracing::debug!("a stream of port-forward is refused: {why}");
                        mux.refuse(id);
                    }
                },
                Step::Closed(closed) => {
                    if closed != Closed::Gone {
                        tracing::debug!("a port-forward is over: {closed:?}");
                    }
                    return;
                }
            },
            Some(ended) = running.tasks.join_next() => {
                if let Ok((pair, result)) = ended {
                    running.end(&mut mux, pair, result);
                }
            }
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                for id in halves.expire(Instant::now()) {
                    mux.refuse(id);
                }
            }
        }
    }
}

/// Serves WebSocket channels, two for each port of the request: data, and an error. Each begins with the port's number,
/// little-endian. Source: kubelet's portforward over WebSocket.
pub async fn serve_channels(mut mux: Mux, sandbox: String, ports: &[u16], executor: Arc<dyn Executor>) {
    let mut running = Running { sandbox, executor, tasks: JoinSet::new() };
    let pairs: Vec<Pair> =
        (0u32..).step_by(2).zip(ports).map(|(data, port)| Pair { port: *port, data, error: data + 1 }).collect();
    for pair in &pairs {
        for id in [pair.data, pair.error] {
            mux.send(id, Bytes::copy_from_slice(&pair.port.to_le_bytes()));
        }
    }
    for pair in pairs {
        running.start(&mut mux, pair);
    }
    loop {
        tokio::select! {
            step = mux.step() => match step {
                Step::Opened { id, .. } => mux.refuse(id),
                Step::Closed(_) => return,
            },
            ended = running.tasks.join_next() => match ended {
                Some(Ok((pair, result))) => running.end(&mut mux, pair, result),
                Some(Err(_)) => {}
                None => return mux.close().await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(port: u16, request_id: &str, error: bool) -> Headers {
        ForwardStream { port, request_id: request_id.into(), error }.headers()
    }

    #[tokio::test]
    async fn streams_pair_by_request_in_either_order() {
        let (mut halves, now) = (Halves::default(), Instant::now());
        assert_eq!(halves.add(1, &headers(80, "0", true), now), Ok(None));
        assert_eq!(halves.add(3, &headers(81, "1", false), now), Ok(None));
        assert_eq!(halves.add(5, &headers(80, "0", false), now), Ok(Some(Pair { port: 80, data: 5, error: 1 })));
        assert_eq!(halves.add(7, &headers(81, "1", true), now), Ok(Some(Pair { port: 81, data: 3, error: 7 })));
        assert_eq!(halves.next_expiry(), None);
    }

    #[tokio::test]
    async fn streams_without_a_request_pair_by_number() {
        let (mut halves, now) = (Halves::default(), Instant::now());
        assert_eq!(halves.add(1, &headers(80, "", true), now), Ok(None));
        assert_eq!(halves.add(3, &headers(80, "", false), now), Ok(Some(Pair { port: 80, data: 3, error: 1 })));
    }

    #[tokio::test]
    async fn wrong_halves_are_refused_and_lonely_ones_expire() {
        let (mut halves, now) = (Halves::default(), Instant::now());
        assert_eq!(halves.add(1, &headers(80, "0", true), now), Ok(None));
        assert!(halves.add(3, &headers(80, "0", true), now).is_err());
        assert!(halves.add(5, &headers(99, "0", false), now).is_err());
        assert!(halves.add(7, &Headers::default(), now).is_err());
        assert_eq!(halves.expire(now), [0; 0]);
        assert_eq!(halves.expire(now + PAIR), [1]);
        assert_eq!(halves.next_expiry(), None);
    }
}
