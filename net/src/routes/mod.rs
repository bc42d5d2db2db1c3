//! Routes to the pods of other nodes: by the same link, by VXLAN, or as BGP says.
//!
//! [`model`] is what the API and the interfaces say; [`plan`] decides what the kernel shall have; [`diff`] compares it
//! with what it has ([`state`], read by [`fabric`]) and says what to do in which order; [`worker`] is the loop. A daemon
//! that starts finds its own by the routes' protocol, the links' alias and the table's name, and changes nothing that
//! is right.

mod conflist;
mod diff;
mod events;
mod fabric;
mod model;
mod plan;
mod report;
mod rules;
mod state;
mod watch;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::control::{Answer, Answers, Request};
use crate::run::Ground;
use fabric::Fabric;
use report::Report;
use worker::Worker;

/// Begins to keep the routes of this node.
///
/// # Errors
/// Where the kernel cannot be reached.
pub async fn start(ground: Ground, tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<dyn Answers>> {
    let (sender, news) = mpsc::channel(1024);
    watch::kernel(sender.clone()).context("cannot watch the kernel")?;
    let fabric = Fabric::open().context("cannot reach the kernel's network")?;
    tasks.spawn(watch::nodes(ground.client.clone(), sender.clone()));
    tasks.spawn(watch::config(ground.client.clone(), sender));
    let report = Arc::new(Mutex::new(Report::default()));
    let worker = Worker::new(ground, fabric, Arc::clone(&report));
    tasks.spawn(worker.work(news));
    Ok(Arc::new(Routes { report }))
}

struct Routes {
    report: Arc<Mutex<Report>>,
}

impl Answers for Routes {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async move {
            if *request != Request::Routes {
                return None;
            }
            let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let present = tokio::task::spawn_blocking(|| Fabric::open()?.routes()).await;
            Some(match present {
                Ok(Ok(present)) => Answer::Ok(report::table(&report, &present).into()),
                Ok(Err(error)) => Answer::Error(error.to_string()),
                Err(error) => Answer::Error(format!("the look at the kernel's routes failed: {error}")),
            })
        })
    }
}

#[cfg(test)]
mod test;
