//! NetworkPolicies in nftables.
//!
//! [`model`] is what the API says, [`decide`] what follows from it for one packet. [`plan`] makes [`rules`], and sets of
//! [`groups`], of it, which [`table`] writes in nft's words, step by step, into the [`frame`] of hooks; [`sync`] keeps
//! the kernel there by what [`listing`] reads of it. [`flows`] says which connections a stricter policy ends, [`drops`] what
//! is told of dropped packets, and to whom. [`run`](start) is the loop around them: watches, and plugins that wait for a
//! pod's rules.

mod answers;
mod attach;
pub mod decide;
mod drops;
pub mod flows;
mod frame;
mod groups;
pub mod listing;
pub mod model;
pub mod plan;
pub mod rules;
mod run;
pub mod sync;
pub mod table;
#[cfg(test)]
mod tests;
mod watch;

pub use run::start;
