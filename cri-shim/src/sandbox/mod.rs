//! A pod sandbox: a pod's pinned namespaces, its files, its network, and what happens to them from run to remove.

pub mod files;
pub mod level;
pub mod namespaces;
pub mod network;
pub mod pause;
pub mod record;
pub mod run;
pub mod spec;
pub mod status;
pub mod stop;

use std::sync::{PoisonError, RwLock};

use record::{Life, Phase, SandboxRecord};

use crate::trace::Kept;

/// A pod sandbox that is known: made, half-made or torn down.
#[derive(Debug)]
pub struct Sandbox {
    pub record: SandboxRecord,
    life: RwLock<Life>,
    /// Stop and remove happen one at a time (write); containers are made in it beside each other (read).
    pub turn: tokio::sync::RwLock<()>,
    /// Of its making, until its first container begins.
    pub trace: Kept,
}

impl Sandbox {
    pub fn new(life: Life) -> Self {
        Self {
            record: life.record.clone(),
            life: RwLock::new(life),
            turn: tokio::sync::RwLock::default(),
            trace: Kept::default(),
        }
    }

    pub fn life(&self) -> Life {
        self.life.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn phase(&self) -> Phase {
        self.life.read().unwrap_or_else(PoisonError::into_inner).phase
    }

    pub fn live(&self, change: impl FnOnce(&mut Life)) -> Life {
        let mut life = self.life.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut life);
        life.clone()
    }
}
