//! NetworkPolicies in nftables.
//!
//! [`model`] is what the API says, [`decide`] what follows from it for one packet. [`plan`] makes [`rules`] and sets of
//! it, which [`table`] writes in nft's words, step by step.

pub mod decide;
pub mod model;
pub mod plan;
pub mod rules;
pub mod table;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::task::JoinSet;

use crate::control::{Answer, Answers, Request};
use crate::run::Ground;

/// Begins to keep the policies of this node's pods.
///
/// # Errors
/// Where the kernel's tables cannot be reached.
pub async fn start(_ground: Ground, _tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<dyn Answers>> {
    Ok(Arc::new(Policies))
}

struct Policies;

impl Answers for Policies {
    fn answer<'a>(&'a self, _request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(std::future::ready(None))
    }
}
