//! Pods: what runs, what should, and how one becomes the other.

pub mod lookup;

pub use lookup::{ContainerPhase, ContainerRef, Pods};
