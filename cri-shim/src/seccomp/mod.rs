//! Filters of system calls: the runtime's default one, and profiles from files.

mod default;
mod profile;

pub use default::runtime_default;
pub use profile::{Profile, ProfileError};
