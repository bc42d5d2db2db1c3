//! Routes to the pods of other nodes: by the same link, by VXLAN, or as BGP says.
//!
//! [`model`] is what the API and the interfaces say; [`plan`] decides what the kernel shall have; [`diff`] compares it
//! with what it has ([`state`], read by [`fabric`]) and says what to do in which order; [`worker`] is the loop, [`peering`] the speaker's driver. A daemon
//! that starts finds its own by the routes' protocol, the links' alias and the table's name, and changes nothing that
//! is right.

mod advertise;
mod conflist;
mod diff;
mod events;
mod fabric;
mod learned;
mod model;
mod peering;
mod plan;
mod report;
mod rules;
mod state;
mod watch;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::control::{Answer, Answers, Request};
use crate::run::Ground;
pub use advertise::Ranges;
use fabric::Fabric;
pub use model::Node;
use peering::Driver;
pub use rules::is_listing;
use worker::{Shown, Worker, lock};

/// How long the speaker may take to say that this process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Begins to keep the routes of this node.
///
/// # Errors
/// Where the kernel cannot be reached.
pub async fn start(ground: Ground, tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<dyn Answers>> {
    let (sender, news) = mpsc::channel(1024);
    watch::kernel(sender.clone()).context("cannot watch the kernel")?;
    let fabric = Fabric::open().context("cannot reach the kernel's network")?;
    tasks.spawn(watch::nodes(ground.client.clone(), sender.clone()));
    tasks.spawn(watch::config(ground.client.clone(), sender.clone()));
    let (shown, speaker) = (Arc::new(Shown::default()), peering::Shared::default());
    let driver = Driver::new(ground.client.clone(), sender, Arc::clone(&speaker), &ground.state);
    tasks.spawn(Worker::new(ground, fabric, driver, Arc::clone(&shown)).work(news));
    Ok(Arc::new(Routes { shown, speaker }))
}

struct Routes {
    shown: Arc<Shown>,
    speaker: peering::Shared,
}

impl Routes {
    async fn routes(&self) -> Answer {
        let shown = Arc::clone(&self.shown);
        let look = move || {
            let present = Fabric::open()?.routes()?;
            let report = lock(&shown.report).clone();
            Ok::<_, fabric::Error>(report::table(&report, &lock(&shown.table).learned, &present))
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(text)) => Answer::Ok(text.into()),
            Ok(Err(error)) => Answer::Error(error.to_string()),
            Err(error) => Answer::Error(format!("the look at the kernel's routes failed: {error}")),
        }
    }

    async fn peers(&self) -> Answer {
        match self.speaker.lock().await.as_ref() {
            Some(handle) => Answer::Ok(report::peers(&handle.peers()).into()),
            None => Answer::Error("this node speaks BGP with nobody: that takes mode bgp".into()),
        }
    }
}

impl Answers for Routes {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async move {
            match request {
                Request::Routes => Some(self.routes().await),
                Request::Peers => Some(self.peers().await),
                _ => None,
            }
        })
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let end = async {
                if let Some(handle) = self.speaker.lock().await.as_ref() {
                    handle.end_bfd().await;
                }
            };
            // A speaker that is being changed ends as if it were killed.
            let _ = tokio::time::timeout(LAST_WORDS, end).await;
        })
    }
}

#[cfg(test)]
mod test;
