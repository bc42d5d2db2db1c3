//! One connection and its streams: moves bytes between the peer, and the readers and writers of its streams.
//!
//! Reading from the peer stops while the readers hold much, writing never waits for a reader. SPDY as Kubernetes speaks it
//! has no windows, so one reader that stands still stops them all, as it does upstream.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use streams::spdy::Headers;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::pipe::{self, Backlog, Inlet, Reader, Sent, Writer};
use super::transport::Transport;
use super::wire::{Incoming, Wire};

/// So much in one direction stops what fills it.
const FULL: usize = 256 * 1024;

/// What the owner of a connection has to see to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The peer opened a stream: accept or refuse it.
    Opened { id: u32, headers: Headers },
    /// The peer is gone, broke the protocol, or nothing moved for too long.
    Closed(Closed),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    Gone,
    Broke(String),
    Idle,
}

enum Turn {
    Came(Option<Bytes>),
    Sent(u32, Sent),
    Wrote(io::Result<()>),
}

pub struct Mux {
    transport: Transport,
    wire: Wire,
    out: VecDeque<Bytes>,
    /// The transport may hold bytes that are not flushed.
    unflushed: bool,
    inlets: HashMap<u32, Inlet>,
    /// Of streams that were opened and whose reader nobody has asked for yet.
    unclaimed: HashMap<u32, Reader>,
    backlog: Arc<Backlog>,
    sender: UnboundedSender<(u32, Sent)>,
    sent: UnboundedReceiver<(u32, Sent)>,
    steps: VecDeque<Step>,
    idle: Duration,
    gone: CancellationToken,
    _gone: DropGuard,
}

impl Mux {
    /// `idle` is how long nothing may move in either direction.
    pub fn new(transport: Transport, wire: Wire, idle: Duration) -> Self {
        let (sender, sent) = unbounded_channel();
        let gone = CancellationToken::new();
        Self {
            transport,
            wire,
            out: VecDeque::new(),
            unflushed: false,
            inlets: HashMap::new(),
            unclaimed: HashMap::new(),
            backlog: Arc::default(),
            sender,
            sent,
            steps: VecDeque::new(),
            idle,
            _gone: gone.clone().drop_guard(),
            gone,
        }
    }

    /// Says when the connection is over.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Accepts a stream that the peer opened; its ends are asked for by [`Mux::reader`] and [`Mux::writer`].
    pub fn accept(&mut self, id: u32) {
        self.wire.accept(id);
    }

    pub fn refuse(&mut self, id: u32) {
        self.wire.refuse(id);
        self.forget(id);
    }

    /// Nobody here cares any more about what the peer sends on a stream.
    pub fn forget(&mut self, id: u32) {
        self.unclaimed.remove(&id);
        self.inlets.remove(&id);
        self.wire.forget(id);
    }

    /// What the peer sends on a stream, from its opening on; over channels from now on.
    pub fn reader(&mut self, id: u32) -> Reader {
        self.unclaimed.remove(&id).unwrap_or_else(|| self.open(id))
    }

    fn open(&mut self, id: u32) -> Reader {
        let (inlet, reader) = pipe::inbound(self.backlog.clone());
        self.inlets.insert(id, inlet);
        reader
    }

    pub fn writer(&self, id: u32) -> Writer {
        Writer::new(id, self.sender.clone())
    }

    pub fn send(&mut self, id: u32, data: Bytes) {
        self.wire.send(id, data);
    }

    pub fn finish(&mut self, id: u32) {
        self.wire.finish(id);
    }

    /// Moves bytes until there is something to see to. Cancelled, it loses nothing.
    pub async fn step(&mut self) -> Step {
        loop {
            if let Some(step) = self.turn().await {
                return step;
            }
        }
    }

    /// Sends what all writers have handed in and what is said after it, then ends the connection. The peer may take its time
    /// as long as something moves.
    pub async fn close(mut self) {
        self.collect();
        while !self.out.is_empty() || self.wire.queued() > 0 || self.unflushed {
            match self.turn().await {
                // It comes too late.
                Some(Step::Opened { id, .. }) => self.refuse(id),
                Some(Step::Closed(_)) => return,
                None => {}
            }
        }
        self.transport.part().await;
    }

    async fn turn(&mut self) -> Option<Step> {
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        let idle = self.idle;
        match tokio::time::timeout(idle, poll_fn(|cx| self.poll(cx))).await {
            Ok(Turn::Came(Some(piece))) => match self.wire.receive(piece) {
                Ok(incoming) => incoming.into_iter().for_each(|one| self.came(one)),
                Err(why) => return Some(Step::Closed(Closed::Broke(why))),
            },
            Ok(Turn::Sent(id, sent)) => self.pass_on(id, sent),
            Ok(Turn::Wrote(Ok(()))) => {}
            Ok(Turn::Came(None) | Turn::Wrote(Err(_))) => return Some(Step::Closed(Closed::Gone)),
            Err(_) => return Some(Step::Closed(Closed::Idle)),
        }
        None
    }

    /// Hands to the wire what the writers have sent so far.
    pub fn collect(&mut self) {
        while let Ok((id, sent)) = self.sent.try_recv() {
            self.pass_on(id, sent);
        }
        self.out.extend(self.wire.take_output());
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.backlog.waker.register(cx.waker());
        for (id, inlet) in &self.inlets {
            match inlet.take_consumed() {
                0 => {}
                len => self.wire.consumed(*id, len),
            }
        }
        self.out.extend(self.wire.take_output());
        if !self.out.is_empty() || self.unflushed || self.transport.wants_flush() {
            self.unflushed = true;
            if let Poll::Ready(wrote) = self.transport.poll_send(cx, &mut self.out) {
                self.unflushed = false;
                return Poll::Ready(Turn::Wrote(wrote));
            }
        }
        let waiting = self.out.iter().map(Bytes::len).sum::<usize>();
        if self.backlog.len() < FULL
            && waiting < FULL
            && let Poll::Ready(piece) = self.transport.poll_next(cx)
        {
            return Poll::Ready(Turn::Came(piece));
        }
        if waiting + self.wire.queued() < FULL
            && let Poll::Ready(Some((id, sent))) = self.sent.poll_recv(cx)
        {
            return Poll::Ready(Turn::Sent(id, sent));
        }
        Poll::Pending
    }

    fn came(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Opened { id, headers } => {
                // Data may follow at once.
                let reader = self.open(id);
                self.unclaimed.insert(id, reader);
                self.steps.push_back(Step::Opened { id, headers });
            }
            Incoming::Data { id, data } => match self.inlets.get(&id) {
                Some(inlet) => inlet.push(data),
                None => self.wire.consumed(id, data.len()),
            },
            Incoming::Finished { id } => {
                if let Some(inlet) = self.inlets.get(&id) {
                    inlet.finish();
                }
            }
            Incoming::Reset { id } => drop(self.inlets.remove(&id)),
        }
    }

    fn pass_on(&mut self, id: u32, sent: Sent) {
        match sent {
            Sent::Data(data, _permit) => self.wire.send(id, data),
            Sent::Finish => self.wire.finish(id),
        }
    }
}
