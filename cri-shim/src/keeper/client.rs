//! `bosun cri`'s side: a task that speaks to the keeper, starts one where none answers, and tells it everything again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kernel::process::Detached;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::order::Order;

/// How long a container's start waits for the keeper, and a keeper may take for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries to have a keeper.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether one that was started listens, and how many there are.
const LISTENS: (Duration, u32) = (Duration::from_millis(10), 200);

/// The keeper of this node. Without one, containers run all the same; their output is less safe.
pub struct Keeper(mpsc::UnboundedSender<Told>);

/// An order, and whom to tell that it was carried out.
type Told = (Order, oneshot::Sender<()>);

impl Keeper {
    /// Begins to look after a keeper on `socket`; `words` and then `--socket PATH` start one. Within a tokio runtime.
    pub fn start(socket: PathBuf, words: Vec<OsString>) -> Self {
        let (orders, told) = mpsc::unbounded_channel();
        let words = words.into_iter().chain(["--socket".into(), socket.clone().into()]).collect();
        tokio::spawn(Minder { socket, words, held: BTreeSet::new(), started: None }.run(told));
        Self(orders)
    }

    /// Returns once the outputs of a container, which are there, are held.
    pub async fn hold(&self, id: &str) {
        let done = self.tell(Order::Hold(id.to_owned()));
        if !matches!(timeout(PATIENCE, done).await, Ok(Ok(()))) {
            let lost = "output that it has not written when both it and bosun cri end would be lost";
            tracing::warn!(id, "no keeper holds the container's output yet: {lost}");
        }
    }

    /// The outputs of a container are needed no more.
    pub fn let_go(&self, id: &str) {
        drop(self.tell(Order::Drop(id.to_owned())));
    }

    fn tell(&self, order: Order) -> oneshot::Receiver<()> {
        let (done, when) = oneshot::channel();
        // The minder ends with the runtime only; then nobody waits either.
        let _ = self.0.send((order, done));
        when
    }
}

struct Minder {
    socket: PathBuf,
    words: Vec<OsString>,
    /// The containers whose outputs are to be held.
    held: BTreeSet<String>,
    /// The keeper, where it is one that we started.
    started: Option<Detached>,
}

type Link = BufStream<UnixStream>;

impl Minder {
    async fn run(mut self, mut told: mpsc::UnboundedReceiver<Told>) {
        let mut known = false;
        loop {
            let begun = Instant::now();
            let Err(error) = self.converse(&mut told).await else { return };
            if !known {
                tracing::warn!("there is no keeper of containers' output, another is started: {error}");
            }
            // One that was killed is replaced at once, one that never works is not tried all the time.
            known = begun.elapsed() < AGAIN;
            if known {
                sleep(AGAIN).await;
            }
        }
    }

    /// Speaks to a keeper until it is gone, or until nobody has orders any more.
    async fn converse(&mut self, told: &mut mpsc::UnboundedReceiver<Told>) -> io::Result<()> {
        let mut link = self.link().await?;
        for id in &self.held {
            refused(&exchange(&mut link, &Order::Hold(id.clone())).await?, id);
        }
        loop {
            let (order, done) = tokio::select! {
                next = told.recv() => match next {
                    Some(next) => next,
                    None => return Ok(()),
                },
                // It says nothing unasked: this is its end.
                said = link.fill_buf() => {
                    let _ = said?;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            };
            let (Order::Hold(id) | Order::Drop(id)) = &order;
            match &order {
                Order::Hold(_) => self.held.insert(id.clone()),
                Order::Drop(_) => self.held.remove(id),
            };
            if !refused(&exchange(&mut link, &order).await?, id) {
                // Whoever asked may have lost patience.
                let _ = done.send(());
            }
        }
    }

    async fn link(&mut self) -> io::Result<Link> {
        if let Ok(stream) = UnixStream::connect(&self.socket).await {
            return Ok(BufStream::new(stream));
        }
        let (former, words) = (self.started.take(), self.words.clone());
        let start = move || {
            former.map_or(Ok(()), Detached::end)?;
            Detached::start(&words)
        };
        let started = tokio::task::spawn_blocking(start).await.map_err(io::Error::other)??;
        tracing::info!(pid = started.pid(), "started a keeper of containers' output");
        self.started = Some(started);
        for _ in 0..LISTENS.1 {
            if let Ok(stream) = UnixStream::connect(&self.socket).await {
                return Ok(BufStream::new(stream));
            }
            sleep(LISTENS.0).await;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "a keeper was started and does not answer"))
    }
}

/// Sends an order and returns the answer.
async fn exchange(link: &mut Link, order: &Order) -> io::Result<String> {
    let exchanged = timeout(PATIENCE, async {
        link.write_all(format!("{order}\n").as_bytes()).await?;
        link.flush().await?;
        let mut answer = String::new();
        match link.read_line(&mut answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer),
        }
    });
    exchanged.await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer")))
}

/// Whether the keeper could not do it; then it is in the log.
fn refused(answer: &str, id: &str) -> bool {
    let answer = answer.trim_end();
    if answer != "ok" {
        tracing::warn!(id, "the keeper does not hold the container's output: {answer}");
    }
    answer != "ok"
}
