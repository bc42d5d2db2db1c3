//! Pods: what runs, what should, and how one becomes the other.

mod admit;
pub mod backoff;
mod bring_up;
mod clean;
mod conditions;
mod context;
mod decide;
pub mod lookup;
mod manager;
mod publish;
mod report;
mod shared;
pub mod spec;
mod start;
mod status_patch;
mod status_writer;
mod stop;
pub mod view;
mod wind_down;
mod worker;

pub use context::{Context, Host};
pub use lookup::{ContainerPhase, ContainerRef, Pods};
pub use manager::Manager;
