//! HTTP: from a request's path, headers and body to a verb, and from its result to an answer.

pub mod negotiate;

pub use negotiate::{Format, Media, Shape};
