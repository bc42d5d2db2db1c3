//! A command in a running container: one more process of its task.

use std::sync::Arc;

use super::spec::{self, PROCESS};
use super::update::spec_of;
use super::{Container, Running, SIGKILL};
use crate::containerd::tasks::ProcessId;
use crate::error::{Error, Result};
use crate::folders::names;
use crate::log::IoPaths;
use crate::record::new_id;
use crate::shim::{Shim, blocking};

/// The ids of commands whose caller waits for them begin with this: nobody does after a restart of ours.
const AWAITED: &str = "sync-";

/// A command that is added to a container and not started yet.
pub struct Command {
    shim: Arc<Shim>,
    container: String,
    pub id: String,
    pub paths: IoPaths,
}

/// How a command is to be run.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub words: Vec<String>,
    pub stdin: bool,
    pub tty: bool,
    /// It is ended where its caller leaves.
    pub awaited: bool,
}

/// The container and its process, if it runs.
///
/// # Errors
/// `NotFound`, or `State` for one that does not run.
pub fn target(shim: &Shim, id: &str) -> Result<(Arc<Container>, Running)> {
    let container = shim.containers.find(id)?;
    let running = container.running().ok_or_else(|| {
        let now = super::status::state(&container.state()).as_str_name();
        Error::State(format!("container {} does not run: it is {now}", container.record().id))
    })?;
    Ok((container, running))
}

impl Command {
    /// Makes the pipes of the command; the caller opens them before [`Command::create`].
    ///
    /// # Errors
    /// Where the disk refuses.
    pub async fn prepare(shim: &Arc<Shim>, container: &str, wanted: &Wanted) -> Result<Self> {
        let id = if wanted.awaited { format!("{AWAITED}{}", new_id()) } else { new_id() };
        let paths = IoPaths::of(&shim.folders.container(container).io(), &id, wanted.stdin, wanted.tty);
        let made = paths.clone();
        let attempt = format!("cannot make the pipes of a command in container {container}");
        blocking("make a command's pipes", move || made.make().map_err(Error::part(attempt))).await?;
        Ok(Self { shim: shim.clone(), container: container.to_owned(), id, paths })
    }

    /// Adds the command to the task; it waits to be started.
    ///
    /// # Errors
    /// What the spec or the shim refuses.
    pub async fn create(&self, wanted: &Wanted) -> Result<()> {
        let stored = self.shim.containerd.container(&self.container).await?;
        let process = spec::exec_process(&spec_of(&stored)?, &wanted.words, wanted.tty)?;
        let failed = Error::part(format!("cannot write the command for container {}", self.container));
        let process = spec::encode(PROCESS, &process).map_err(failed)?;
        let stdio = super::start::stdio(&self.paths, wanted.tty);
        Ok(self.shim.containerd.create_exec(&self.container, &self.id, stdio, process).await?)
    }

    /// The commands whose pipes are there, for a container that was found: what an earlier run of ours did not see the end of.
    pub fn left_behind(shim: &Arc<Shim>, container: &str) -> Vec<Self> {
        let folder = shim.folders.container(container).io();
        let found = ids(&names(&folder)).into_iter().map(|id| {
            // Those that it has not are removed all the same.
            let paths = IoPaths::of(&folder, &id, true, false);
            Self { shim: shim.clone(), container: container.to_owned(), id, paths }
        });
        found.collect()
    }

    /// Whether nobody can hear of it any more once its caller has left.
    pub fn is_awaited(&self) -> bool {
        self.id.starts_with(AWAITED)
    }

    pub fn process(&self) -> ProcessId<'_> {
        ProcessId::exec(&self.container, &self.id)
    }

    /// Starts the command and returns its number as containerd has it.
    ///
    /// # Errors
    /// What the runtime said, such as that there is no such program.
    pub async fn start(&self) -> Result<u32> {
        Ok(self.shim.containerd.start_process(self.process()).await?)
    }

    /// Waits for its end and returns its exit code.
    ///
    /// # Errors
    /// What containerd said.
    pub async fn wait(&self) -> Result<i32> {
        let exit = self.shim.containerd.wait_process(self.process()).await?;
        Ok(i32::try_from(exit.code).unwrap_or(255))
    }

    /// Ends it, if it is there.
    pub async fn kill(&self) {
        if let Err(error) = self.shim.containerd.kill_process(self.process(), SIGKILL).await {
            tracing::warn!(container = self.container, "a command in a container was not ended: {error}");
        }
    }

    /// Removes what is left of it; what cannot be removed goes with the container.
    pub async fn discard(self) {
        if let Err(error) = self.shim.containerd.delete_process(self.process()).await {
            tracing::warn!(container = self.container, "a command stays in its container's task: {error}");
        }
        if let Err(error) = self.paths.remove() {
            tracing::warn!(container = self.container, "a command's pipes stay until its container goes: {error}");
        }
    }
}

/// The ids of commands from the names of pipes. A container's own pipe is of none.
fn ids(pipes: &[String]) -> Vec<String> {
    pipes.iter().filter_map(|name| name.strip_suffix("-stdout")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_tell_of_commands() {
        let names = ["stdin", "stdout", "ab-stdout", "ab-stderr", "sync-cd-stdout"].map(str::to_owned);
        assert_eq!(ids(&names), ["ab", "sync-cd"]);
    }
}
