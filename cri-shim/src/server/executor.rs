//! What clients of the stream server ask for: a command, a container's own streams, a port of a pod.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::{AttachRequest, ExecRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::container::exec::{Command, Wanted, target};
use crate::containerd::tasks::ProcessId;
use crate::error::{Error, Result};
use crate::log::{CommandIo, InputEnd};
use crate::sandbox::namespaces::dial;
use crate::sandbox::record::Phase;
use crate::shim::Shim;
use crate::stream::{Connection, Executor, Outcome, Streams};

/// What a client that is slow may take to read the last output of a command that has ended.
const DRAIN: Duration = Duration::from_secs(60);
/// How long the output of a command that has ended may stay open before whoever else holds it is not waited for.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// What a terminal's processes are told when it is gone.
const SIGHUP: u32 = 1;

/// Does what clients ask for on this node.
#[derive(Clone)]
pub struct NodeExecutor(pub Arc<Shim>);

impl Executor for NodeExecutor {
    fn exec(&self, request: ExecRequest, streams: Streams) -> BoxFuture<'static, Outcome> {
        let shim = self.0.clone();
        async move {
            match exec(&shim, request, streams).await {
                Ok(0) => Outcome::Success,
                Ok(code) => Outcome::Exited(code),
                Err(error) => Outcome::Failed(error.to_string()),
            }
        }
        .boxed()
    }

    fn attach(&self, request: AttachRequest, streams: Streams) -> BoxFuture<'static, std::result::Result<(), String>> {
        let shim = self.0.clone();
        async move { attach(&shim, &request, streams).await.map_err(|error| error.to_string()) }.boxed()
    }

    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
        stream: Box<dyn Connection>,
    ) -> BoxFuture<'static, std::result::Result<(), String>> {
        let (shim, sandbox) = (self.0.clone(), sandbox.to_owned());
        async move { port_forward(&shim, &sandbox, port, stream).await.map_err(|error| error.to_string()) }.boxed()
    }
}

async fn exec(shim: &Arc<Shim>, request: ExecRequest, streams: Streams) -> Result<i32> {
    let (container, _) = target(shim, &request.container_id)?;
    let wanted = Wanted { words: request.cmd, stdin: request.stdin, tty: request.tty, awaited: false };
    let command = Command::prepare(shim, &container.record().id, &wanted).await?;
    let done = run(shim, &command, &wanted, streams).await;
    match done {
        Ok((code, mut output)) => {
            // The process is deleted when its output has been read: with it the shim drops what it holds of that after a
            // time. It is deleted meanwhile where others hold the output open, since only then the shim lets it go.
            match tokio::time::timeout(LAST_OUTPUT, &mut output).await {
                Ok(()) => command.discard().await,
                Err(_) => {
                    let (read, ()) = tokio::join!(tokio::time::timeout(DRAIN, output), command.discard());
                    if read.is_err() {
                        tracing::debug!("a client did not read the last output of its command");
                    }
                }
            }
            Ok(code)
        }
        Err(error) => {
            command.discard().await;
            Err(error)
        }
    }
}

/// The exit code, and what is still to be copied then.
async fn run(
    shim: &Arc<Shim>,
    command: &Command,
    wanted: &Wanted,
    streams: Streams,
) -> Result<(i32, BoxFuture<'static, ()>)> {
    let failed = Error::part("cannot open a command's pipes");
    let io = CommandIo::open(&command.paths).map_err(failed)?;
    command.create(wanted).await?;
    command.start().await?;
    let gone = streams.gone.clone();
    let (streams, sizes) = streams.split();
    let (container, exec) = (command.process().container.to_owned(), command.id.clone());
    let end = close_input(shim, container.clone(), Some(exec.clone()));
    let mut output = io.relay(streams, InputEnd::Close(end)).boxed();
    let resized = resize(shim.clone(), container, Some(exec), sizes);
    let hang_up = async {
        gone.cancelled().await;
        if wanted.tty {
            let _ = shim.containerd.kill_process(command.process(), SIGHUP).await;
        }
        std::future::pending::<()>().await;
    };
    let wait = command.wait();
    tokio::pin!(wait, resized, hang_up);
    let mut copied = false;
    loop {
        tokio::select! {
            code = &mut wait => {
                let rest = if copied { std::future::ready(()).boxed() } else { output };
                return Ok((code?, rest));
            }
            () = &mut output, if !copied => copied = true,
            () = &mut resized => {}
            () = &mut hang_up => {}
        }
    }
}

async fn attach(shim: &Arc<Shim>, request: &AttachRequest, streams: Streams) -> Result<()> {
    let (container, _) = target(shim, &request.container_id)?;
    let record = container.record();
    let Some(io) = container.io() else {
        return Err(Error::State(format!("the pipes of container {} are not open", record.id)));
    };
    let end = match record.config.stdin_once {
        true => InputEnd::Close(close_input(shim, record.id.clone(), None)),
        false => InputEnd::Detach,
    };
    let (streams, sizes) = streams.split();
    tokio::select! {
        () = io.attach(streams, end) => {}
        () = resize(shim.clone(), record.id.clone(), None, sizes) => {}
    }
    Ok(())
}

fn close_input(shim: &Arc<Shim>, container: String, exec: Option<String>) -> BoxFuture<'static, ()> {
    let containerd = shim.containerd.clone();
    async move {
        let process = ProcessId { container: &container, exec: exec.as_deref() };
        if let Err(error) = containerd.close_stdin(process).await {
            tracing::debug!("a process does not see the end of its input: {error}");
        }
    }
    .boxed()
}

/// Passes sizes of the client's terminal on, for ever.
async fn resize(shim: Arc<Shim>, container: String, exec: Option<String>, mut sizes: mpsc::Receiver<(u16, u16)>) {
    while let Some(size) = sizes.recv().await {
        let process = ProcessId { container: &container, exec: exec.as_deref() };
        if let Err(error) = shim.containerd.resize_terminal(process, size).await {
            tracing::debug!("a terminal keeps its size: {error}");
        }
    }
    std::future::pending().await
}

async fn port_forward(shim: &Arc<Shim>, id: &str, port: u16, mut stream: Box<dyn Connection>) -> Result<()> {
    let sandbox = shim.sandboxes.find(id)?;
    if sandbox.phase() != Phase::Ready {
        return Err(Error::State(format!("pod sandbox {} has stopped", sandbox.record.id)));
    }
    let netns = shim.folders.sandbox(&sandbox.record.id).netns();
    let netns = (!sandbox.record.host_network()).then_some(netns);
    let attempt = format!("cannot connect to port {port} of pod sandbox {}", sandbox.record.id);
    let mut connection = dial(netns.as_deref(), port).await.map_err(Error::part(attempt))?;
    // Either side may end its direction; an error of the copy is a peer that has left.
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut connection).await {
        tracing::debug!("a forwarded connection ended: {error}");
    }
    Ok(())
}
