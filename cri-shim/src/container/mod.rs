//! A container: its record, its state, and what happens to it from create to remove.

pub mod cgroup;
pub mod checkpoint;
pub mod create;
pub mod exec;
pub mod exec_sync;
pub mod exit;
pub(crate) mod labelled;
pub(crate) mod mapped;
pub mod record;
pub mod remove;
pub mod spec;
pub mod start;
pub mod status;
pub mod stop;
pub mod update;
pub(crate) mod volumes;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::watch;

use crate::log::ContainerIo;
use crate::trace::Kept;
use record::{ContainerRecord, Exit};

/// The signal that no process withstands.
pub(crate) const SIGKILL: u32 = 9;

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Created,
    Running(Running),
    Exited(Exit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Nanoseconds since 1970.
    pub started_at: i64,
    /// As containerd numbers processes.
    pub pid: u32,
}

/// A container that containerd has a record of.
pub struct Container {
    record: RwLock<Arc<ContainerRecord>>,
    state: watch::Sender<State>,
    /// Start, update and remove happen one at a time.
    pub turn: tokio::sync::Mutex<()>,
    /// Whether its stop signal was sent.
    asked_to_stop: tokio::sync::Mutex<bool>,
    /// Its pipes and its log, while they are followed.
    io: Mutex<Option<ContainerIo>>,
    /// Of its creation, until it begins.
    pub trace: Kept,
}

impl Container {
    pub fn new(record: ContainerRecord, state: State) -> Self {
        Self {
            record: RwLock::new(Arc::new(record)),
            state: watch::Sender::new(state),
            turn: tokio::sync::Mutex::default(),
            asked_to_stop: tokio::sync::Mutex::default(),
            io: Mutex::default(),
            trace: Kept::default(),
        }
    }

    pub fn record(&self) -> Arc<ContainerRecord> {
        self.record.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn replace_record(&self, record: ContainerRecord) {
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn enter(&self, state: State) {
        self.state.send_replace(state);
    }

    /// The process that runs, if one does.
    pub fn running(&self) -> Option<Running> {
        match *self.state.borrow() {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Returns once no process of it runs.
    pub async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| !matches!(state, State::Running(_))).await;
    }

    pub fn io(&self) -> Option<ContainerIo> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_io(&self, io: Option<ContainerIo>) {
        *self.io.lock().unwrap_or_else(PoisonError::into_inner) = io;
    }

    /// Asks it to end, unless that was done: once, whoever wants it to end, and again where it failed or was cut off.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn ask_to_stop<E>(&self, ask: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let mut asked = self.asked_to_stop.lock().await;
        if !*asked {
            ask.await?;
            *asked = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn it_is_asked_to_end_until_that_was_heard_and_once() {
        let container = Container::new(record::tests::record(), State::Created);
        let asked = Cell::new(0);
        let ask = async |answer: Result<(), &'static str>| {
            asked.set(asked.get() + 1);
            answer
        };
        assert_eq!(container.ask_to_stop(ask(Err("containerd is away"))).await, Err("containerd is away"));
        // A caller that leaves before there is an answer.
        let cut_off = container.ask_to_stop(std::future::pending::<Result<(), ()>>());
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), cut_off).await.is_err());
        for _ in 0..2 {
            assert_eq!(container.ask_to_stop(ask(Ok(()))).await, Ok(()));
        }
        assert_eq!(asked.get(), 2);
    }
}
