//! Routes to the pods of other nodes: by the same link, by VXLAN, or as BGP says.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::task::JoinSet;

use crate::control::{Answer, Answers, Request};
use crate::run::Ground;

/// Begins to keep the routes of this node.
///
/// # Errors
/// Where the kernel cannot be reached.
pub async fn start(_ground: Ground, _tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<dyn Answers>> {
    Ok(Arc::new(Routes))
}

struct Routes;

impl Answers for Routes {
    fn answer<'a>(&'a self, _request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(std::future::ready(None))
    }
}
