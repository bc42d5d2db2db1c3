//! What kinds of object there are. One `Resource` row declares a kind, and every verb works for it.

pub mod resource;

pub use resource::{Column, Resource, Strategy, Subresource};
