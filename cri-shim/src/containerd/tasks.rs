//! Tasks: the processes of containers, run by one shim for each pod. Source: containerd, api/services/tasks/v1.

use std::time::Duration;

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CheckpointTaskRequest, CloseIoRequest, CreateTaskRequest, DeleteProcessRequest, DeleteResponse, DeleteTaskRequest,
    ExecProcessRequest, GetRequest, KillRequest, ListTasksRequest, PauseTaskRequest, ResizePtyRequest,
    ResumeTaskRequest, StartRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Process;
use prost_types::{Any, Timestamp};
use tonic::Request;
use tonic::transport::Channel;

use super::{Containerd, Error, MAX_MESSAGE, Result, request, unbounded};

/// For calls in which the OCI runtime works: on a busy machine it is not quick.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(180);

/// Paths of the FIFOs of a process; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// How a process ended, as the one who waited for it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 128 and the signal's number where a signal ended it.
    pub code: u32,
    /// Nanoseconds since 1970.
    pub at: i64,
}

/// A process in a container: its first one, or one that was added by exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId<'a> {
    pub container: &'a str,
    pub exec: Option<&'a str>,
}

impl<'a> ProcessId<'a> {
    pub fn init(container: &'a str) -> Self {
        Self { container, exec: None }
    }

    pub fn exec(container: &'a str, exec: &'a str) -> Self {
        Self { container, exec: Some(exec) }
    }

    fn exec_id(self) -> String {
        self.exec.unwrap_or_default().to_owned()
    }
}

impl std::fmt::Display for ProcessId<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exec {
            Some(exec) => write!(f, "process {exec} of container {}", self.container),
            None => write!(f, "the task of container {}", self.container),
        }
    }
}

/// Nanoseconds since 1970; 0 where containerd gave no time.
pub fn nanos(time: Option<&Timestamp>) -> i64 {
    time.map_or(0, |t| t.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nanos)))
}

fn slow<T>(message: T) -> Request<T> {
    let mut request = unbounded(message);
    request.set_timeout(RUNTIME_DEADLINE);
    request
}

impl Containerd {
    fn tasks_client(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Makes the container's first process, which waits to be started. Returns its id as containerd numbers processes.
    ///
    /// # Errors
    /// What containerd, the shim or the OCI runtime said.
    pub async fn create_task(&self, id: &str, rootfs: Vec<Mount>, stdio: Stdio) -> Result<u32> {
        let Stdio { stdin, stdout, stderr, terminal } = stdio;
        let container_id = id.to_owned();
        let message =
            CreateTaskRequest { container_id, rootfs, stdin, stdout, stderr, terminal, ..CreateTaskRequest::default() };
        let answer = self.tasks_client().create(slow(message)).await;
        Ok(answer.map_err(Error::of(format!("create the task of container {id}")))?.into_inner().pid)
    }

    /// Lets a process that was made begin. Returns its id as containerd numbers processes.
    ///
    /// # Errors
    /// What the OCI runtime said, such as that there is no such program.
    pub async fn start_process(&self, process: ProcessId<'_>) -> Result<u32> {
        let message = StartRequest { container_id: process.container.to_owned(), exec_id: process.exec_id() };
        let answer = self.tasks_client().start(slow(message)).await;
        Ok(answer.map_err(Error::of(format!("start {process}")))?.into_inner().pid)
    }

    /// Returns when the process has ended. At once where it has already.
    ///
    /// # Errors
    /// `NotFound` where it is gone, `Unavailable` where containerd went away meanwhile.
    pub async fn wait_process(&self, process: ProcessId<'_>) -> Result<Exit> {
        let message = WaitRequest { container_id: process.container.to_owned(), exec_id: process.exec_id() };
        let answer = self.tasks_client().wait(unbounded(message)).await;
        let answer = answer.map_err(Error::of(format!("wait for {process}")))?.into_inner();
        Ok(Exit { code: answer.exit_status, at: nanos(answer.exited_at.as_ref()) })
    }

    /// Deletes a process that has ended, with what the shim holds for it. `None` where it is gone.
    ///
    /// # Errors
    /// `FailedPrecondition` where it runs.
    pub async fn delete_process(&self, process: ProcessId<'_>) -> Result<Option<Exit>> {
        let container_id = process.container.to_owned();
        let mut client = self.tasks_client();
        let answer = match process.exec {
            Some(exec) => {
                let exec_id = exec.to_owned();
                client.delete_process(slow(DeleteProcessRequest { container_id, exec_id })).await
            }
            None => client.delete(slow(DeleteTaskRequest { container_id })).await,
        };
        match answer.map_err(Error::of(format!("delete {process}"))) {
            Ok(answer) => {
                let DeleteResponse { exit_status, exited_at, .. } = answer.into_inner();
                Ok(Some(Exit { code: exit_status, at: nanos(exited_at.as_ref()) }))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal. A process that has ended or is gone is success.
    ///
    /// # Errors
    /// What the shim said.
    pub async fn kill_process(&self, process: ProcessId<'_>, signal: u32) -> Result<()> {
        let (container_id, exec_id) = (process.container.to_owned(), process.exec_id());
        let message = KillRequest { container_id, exec_id, signal, all: false };
        let answer = self.tasks_client().kill(request(message)).await;
        match answer.map(drop).map_err(Error::of(format!("send signal {signal} to {process}"))) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// `None` where the container has no task, or the task no such process.
    ///
    /// # Errors
    /// What the shim said.
    pub async fn process(&self, process: ProcessId<'_>) -> Result<Option<Process>> {
        let message = GetRequest { container_id: process.container.to_owned(), exec_id: process.exec_id() };
        match self.tasks_client().get(request(message)).await.map_err(Error::of(format!("look at {process}"))) {
            Ok(answer) => Ok(answer.into_inner().process),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All tasks of our namespace.
    ///
    /// # Errors
    /// What containerd said.
    pub async fn tasks(&self) -> Result<Vec<Process>> {
        let answer = self.tasks_client().list(request(ListTasksRequest::default())).await;
        Ok(answer.map_err(Error::of("list tasks"))?.into_inner().tasks)
    }

    /// Adds a process to a running task; it waits to be started. `spec` is an OCI process.
    ///
    /// # Errors
    /// What the shim said.
    pub async fn create_exec(&self, id: &str, exec_id: &str, stdio: Stdio, spec: Any) -> Result<()> {
        let Stdio { stdin, stdout, stderr, terminal } = stdio;
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let spec = Some(spec);
        let message = ExecProcessRequest { container_id, exec_id, stdin, stdout, stderr, terminal, spec };
        let answer = self.tasks_client().exec(slow(message)).await;
        answer.map(drop).map_err(Error::of(format!("add a process to container {id}")))
    }

    /// Sets the size of a process's terminal, in characters.
    ///
    /// # Errors
    /// What the shim said.
    pub async fn resize_terminal(&self, process: ProcessId<'_>, (width, height): (u16, u16)) -> Result<()> {
        let (container_id, exec_id) = (process.container.to_owned(), process.exec_id());
        let message = ResizePtyRequest { container_id, exec_id, width: width.into(), height: height.into() };
        let answer = self.tasks_client().resize_pty(request(message)).await;
        answer.map(drop).map_err(Error::of(format!("resize the terminal of {process}")))
    }

    /// Lets a process see the end of its input once our side of the FIFO is closed as well: the shim holds it open.
    ///
    /// # Errors
    /// What the shim said.
    pub async fn close_stdin(&self, process: ProcessId<'_>) -> Result<()> {
        let (container_id, exec_id) = (process.container.to_owned(), process.exec_id());
        let message = CloseIoRequest { container_id, exec_id, stdin: true };
        let answer = self.tasks_client().close_io(request(message)).await;
        answer.map(drop).map_err(Error::of(format!("close the input of {process}")))
    }

    /// Changes the resources of a running task. `resources` are OCI Linux resources.
    ///
    /// # Errors
    /// What the OCI runtime said, such as that the kernel refused a value.
    pub async fn update_task(&self, id: &str, resources: Any) -> Result<()> {
        let message = UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(resources),
            ..UpdateTaskRequest::default()
        };
        let answer = self.tasks_client().update(slow(message)).await;
        answer.map(drop).map_err(Error::of(format!("update the resources of container {id}")))
    }

    /// Stops the clock of a task's processes.
    ///
    /// # Errors
    /// What the OCI runtime said.
    pub async fn pause_task(&self, id: &str) -> Result<()> {
        let message = PauseTaskRequest { container_id: id.to_owned() };
        self.tasks_client().pause(slow(message)).await.map(drop).map_err(Error::of(format!("pause container {id}")))
    }

    /// Lets the processes of a paused task go on.
    ///
    /// # Errors
    /// What the OCI runtime said.
    pub async fn resume_task(&self, id: &str) -> Result<()> {
        let message = ResumeTaskRequest { container_id: id.to_owned() };
        self.tasks_client().resume(slow(message)).await.map(drop).map_err(Error::of(format!("resume container {id}")))
    }

    /// Checkpoints a running task by criu. `options` are those of [`super::runc`].
    ///
    /// # Errors
    /// What the OCI runtime or criu said.
    pub async fn checkpoint_task(&self, id: &str, options: Any, timeout: Option<Duration>) -> Result<()> {
        let message = CheckpointTaskRequest {
            container_id: id.to_owned(),
            options: Some(options),
            ..CheckpointTaskRequest::default()
        };
        let mut request = unbounded(message);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let answer = self.tasks_client().checkpoint(request).await;
        answer.map(drop).map_err(Error::of(format!("checkpoint container {id}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_nanoseconds_and_none_is_zero() {
        assert_eq!(nanos(Some(&Timestamp { seconds: 2, nanos: 5 })), 2_000_000_005);
        assert_eq!(nanos(None), 0);
    }

    #[test]
    fn a_process_is_named_for_people() {
        assert_eq!(ProcessId::init("c1").to_string(), "the task of container c1");
        assert_eq!(ProcessId::exec("c1", "e1").to_string(), "process e1 of container c1");
    }
}
