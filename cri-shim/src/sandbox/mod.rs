//! Pod sandboxes.

pub mod spec;
