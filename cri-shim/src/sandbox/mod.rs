//! Pod sandboxes.

pub mod spec;
//! A pod sandbox.

pub mod namespaces;
