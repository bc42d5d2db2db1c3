//! `bosun store`: the objects of a cluster into a file and back, while the cluster runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;

use crate::cluster::{Cluster, DEFAULT_NAME, parse_name};
use crate::up::{client, say};

#[derive(Subcommand)]
pub enum Command {
    /// Copy all objects of a cluster into a new file
    Snapshot(Place),
    /// Put a cluster's objects back to what a snapshot holds
    Restore(Place),
}

#[derive(Args)]
pub struct Place {
    /// The snapshot
    file: PathBuf,
    /// The cluster
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    name: String,
}

/// The API server's path for this.
const STORE: &str = "/bosun/store";

/// How long the API server may take to begin with a restored store.
const PATIENCE: Duration = Duration::from_secs(60);

/// # Errors
/// Where the cluster does not run, or the file cannot be written, or is no snapshot.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let (Command::Snapshot(place) | Command::Restore(place)) = command;
    crate::checks::root()?;
    let cluster = Cluster::load(&place.name)?;
    let cluster = cluster.with_context(|| format!("there is no cluster {}: `bosun up --name {0}`", place.name))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(&cluster).await?;
        match command {
            Command::Snapshot(place) => snapshot(&client, &place.file).await,
            Command::Restore(place) => restore(&client, &place.file).await,
        }
    })
}

async fn snapshot(client: &kube::Client, path: &Path) -> anyhow::Result<()> {
    let mut file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    let copied = async {
        let answer = client.send(Request::get(STORE).body(Body::empty())?).await?;
        receive(answer, &mut file).await?;
        Ok(file.sync_all()?)
    };
    let copied: anyhow::Result<()> = copied.await;
    if copied.is_err() {
        // A snapshot that is there is a whole one.
        let _ = fs::remove_file(path);
    }
    copied.with_context(|| format!("copy the store to {}", path.display()))?;
    say(&format!("the objects are in {} ({} KiB)", path.display(), fs::metadata(path)?.len() >> 10));
    Ok(())
}

/// Writes an answer's body; what a failure says becomes the error.
async fn receive(answer: http::Response<Body>, to: &mut impl std::io::Write) -> anyhow::Result<()> {
    let (status, mut body) = (answer.status(), answer.into_body());
    let mut said = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(part) = frame?.into_data() else { continue };
        match status.is_success() {
            true => to.write_all(&part)?,
            false => said.extend_from_slice(&part),
        }
    }
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
    let why = said["message"].as_str().unwrap_or_default();
    anyhow::ensure!(status.is_success(), "the API server says {status}: {why}");
    Ok(())
}

async fn restore(client: &kube::Client, path: &Path) -> anyhow::Result<()> {
    let snapshot = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let answer = client.send(Request::put(STORE).body(Body::from(snapshot))?).await?;
    receive(answer, &mut std::io::sink()).await.with_context(|| format!("restore {}", path.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let ready = client.request_text(Request::get("/readyz").body(Vec::new())?).await;
        if ready.is_ok() {
            break;
        }
        anyhow::ensure!(Instant::now() < deadline, "the API server did not come back: see the logs");
    }
    say(&format!("the objects are those of {}", path.display()));
    Ok(())
}
