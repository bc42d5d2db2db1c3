//! What the part answers: plugins that wait for a pod's rules, traces, and the page of metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use futures::future::BoxFuture;
use hyper::{Response, StatusCode};
use kernel::nftables::Nft;
use lifecycle::http::listen;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::attach;
use super::drops::{self, Counts};
use super::plan::Dropped;
use super::run::News;
use super::sync::Keeper;
use crate::control::{Answer, Answers, Request};
use crate::run::Ground;
use crate::trace::{self, Question};

/// What asks the worker.
pub struct Policies {
    pub news: mpsc::Sender<News>,
    pub ground: Ground,
}

impl Answers for Policies {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async move {
            match request {
                Request::Attach { .. } => Some(match attach::read(request)? {
                    Ok(attachment) => self.ask(|answer| News::Attach(attachment, answer)).await,
                    Err(wrong) => Answer::Error(wrong),
                }),
                Request::Detach { container, link } => {
                    let gone = News::Detach { container: container.clone(), link: link.clone() };
                    let _ = self.news.send(gone).await;
                    Some(Answer::Ok(Value::Null))
                }
                Request::Trace { from, to } => Some(match self.trace(from, to).await {
                    Ok(text) => Answer::Ok(Value::String(text)),
                    Err(error) => Answer::Error(format!("{error:#}")),
                }),
                Request::Ends { from, to } => Some(match self.path(from, to).await {
                    Ok(path) => json(&path.ends()),
                    Err(error) => Answer::Error(format!("{error:#}")),
                }),
                Request::Drops => Some(json(&counts().await)),
                Request::Peers | Request::Routes => None,
            }
        })
    }
}

impl Policies {
    async fn ask(&self, news: impl FnOnce(oneshot::Sender<Answer>) -> News) -> Answer {
        let (answer, answered) = oneshot::channel();
        let _ = self.news.send(news(answer)).await;
        answered.await.unwrap_or_else(|_| Answer::Error("the net daemon is ending".into()))
    }

    /// Serves metrics. The rules are kept without them, too.
    pub async fn serve(self: Arc<Self>, address: SocketAddr, tasks: &mut JoinSet<()>) {
        match listen(address, move |path| Arc::clone(&self).page(path)).await {
            Ok(server) => drop(tasks.spawn(server)),
            Err(error) => tracing::warn!("no metrics are served: {error:#}"),
        }
    }

    async fn page(self: Arc<Self>, path: String) -> Response<String> {
        let (status, body) = match path.as_str() {
            "/metrics" => match self.metrics().await {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")),
            },
            _ => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response
    }

    /// The metrics' page.
    async fn metrics(&self) -> anyhow::Result<String> {
        let known = self.look(|keeper| owned(&keeper.planner.dropped())).await?;
        Ok(drops::page(&known, &counts().await))
    }

    /// What a question finds in the present state.
    async fn look<T: Send + 'static>(&self, question: impl FnOnce(&Keeper) -> T + Send + 'static) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        let look = News::Look(Box::new(move |keeper| drop(answer.send(question(keeper)))));
        let _ = self.news.send(look).await;
        answered.await.context("the net daemon is ending")
    }

    async fn path(&self, from: &str, to: &str) -> anyhow::Result<trace::Path> {
        let question = Question::parse(from, to)?;
        let service = trace::service(&self.ground.client, &question).await?;
        self.look(move |keeper| trace::path(keeper.planner.model(), &question, service.as_ref())).await?
    }

    async fn trace(&self, from: &str, to: &str) -> anyhow::Result<String> {
        let path = self.path(from, to).await?;
        let before = counts().await;
        let to_probe = path.clone();
        let found = tokio::task::spawn_blocking(move || trace::probe(&to_probe)).await?;
        let dropped = trace::risen(&before, &counts().await);
        Ok(trace::text(&path, &found, &dropped))
    }
}

fn json(value: &impl Serialize) -> Answer {
    serde_json::to_value(value).map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok)
}

/// What the kernel has counted; nothing where it does not say.
pub async fn counts() -> Counts {
    let drops = tokio::task::spawn_blocking(|| super::sync::drops(&Nft)).await;
    drops.ok().and_then(Result::ok).unwrap_or_default()
}

fn owned(dropped: &BTreeMap<&str, &Dropped>) -> BTreeMap<String, Dropped> {
    dropped.iter().map(|(who, dropped)| ((*who).to_owned(), (*dropped).clone())).collect()
}
