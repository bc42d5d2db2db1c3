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
mod volumes;

use std::sync::atomic::{AtomicBool, Ordering};
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
    stop_asked: AtomicBool,
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
            stop_asked: AtomicBool::new(false),
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

    /// Whether this is the first time that it is asked to end.
    pub fn ask_to_stop(&self) -> bool {
        !self.stop_asked.swap(true, Ordering::SeqCst)
    }
}
