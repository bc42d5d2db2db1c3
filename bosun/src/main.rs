//! The command: clusters on this machine, and every daemon as a subcommand.

mod checks;
mod cluster;
mod daemons;
mod down;
mod image;
mod kubeconfig;
mod net;
mod node;
mod relay;
mod status;
mod store;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kubernetes on this machine: clusters for development, and the daemons that make up a node and its control plane
#[derive(Parser)]
#[command(name = "bosun", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// A process holds one value of it, so its size is no matter.
#[allow(clippy::large_enum_variant)]
#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine, or resume it
    Up(up::Options),
    /// Remove a cluster of this machine and all that belongs to it
    Down(down::Options),
    /// Say how the clusters of this machine are
    Status(status::Options),
    /// Work with the images of a cluster's nodes
    #[command(subcommand)]
    Image(image::Command),
    /// Copy the objects of a cluster, and put them back
    #[command(subcommand)]
    Store(store::Command),
    #[command(flatten)]
    Daemon(daemons::Daemon),
    /// Lead packets to other nodes' pods and keep network policies (Calico, flannel); with a verb, ask the daemon that does
    Net(net::Command),
    /// PID 1 of a node: started by `up`
    #[command(hide = true)]
    Node(node::Options),
    /// Imports the images that bosun carries: started by a node
    #[command(hide = true)]
    NodeImages(node::images::Options),
    /// Writes how a cluster's pods reach one another, where nobody has: started by the first node
    #[command(hide = true)]
    NodePodNetwork(node::pod_network::Options),
    /// Joins a node's containerd to the registries that the host reaches: started by a node
    #[command(hide = true)]
    Relay(relay::Options),
}

fn main() -> ExitCode {
    // Before all else: the many flags of the others would be a keeper's largest piece of memory.
    if let Some(socket) = keeper(std::env::args_os().skip(1)) {
        return match cri_shim::keeper::serve(&socket) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bosun: {error}");
                ExitCode::FAILURE
            }
        };
    }
    // SAFETY: no other thread has been started.
    unsafe { kernel::process::find_administrators_programs() };
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|word| word == daemons::CRI) {
        // SAFETY: no other thread has been started. Where it fails, `cri` takes a little more memory.
        let _ = unsafe { kernel::process::without_thread_caches() };
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bosun: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The socket of `cri-keeper --socket PATH`.
fn keeper(mut words: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let is_keeper = words.next()? == daemons::CRI_KEEPER && words.next()? == "--socket";
    words.next().filter(|_| is_keeper).map(PathBuf::from)
}

fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    lifecycle::install_crypto();
    let mut commands = Vec::new();
    for words in arguments.split(|word| word == "+") {
        match Cli::try_parse_from(std::iter::once(&OsString::from("bosun")).chain(words)) {
            Ok(cli) => commands.push(cli.command),
            Err(said) => {
                said.print()?;
                return Ok(ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2)));
            }
        }
    }
    if commands.len() > 1 || commands.first().is_some_and(is_daemon) {
        let daemons: Option<Vec<_>> = commands.into_iter().map(daemon).collect();
        let daemons = daemons.ok_or_else(|| anyhow::anyhow!("only daemons may be joined by +"))?;
        return daemons::run(daemons).map(|()| ExitCode::SUCCESS);
    }
    commands.into_iter().try_for_each(alone).map(|()| ExitCode::SUCCESS)
}

fn is_daemon(command: &Command) -> bool {
    matches!(command, Command::Daemon(_) | Command::Net(net::Command { ask: None, .. }))
}

fn daemon(command: Command) -> Option<daemons::Daemon> {
    match command {
        Command::Daemon(daemon) => Some(daemon),
        Command::Net(net::Command { ask: None, daemon }) => Some(daemons::Daemon::Net(daemon)),
        _ => None,
    }
}

fn alone(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(options) => up::run(&options),
        Command::Down(options) => down::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Image(command) => image::run(&command),
        Command::Store(command) => store::run(&command),
        Command::Daemon(daemon) => daemons::run(vec![daemon]),
        Command::Net(command) => net::run(command),
        Command::Node(options) => node::run(&options),
        Command::NodeImages(options) => node::images::run(&options),
        Command::NodePodNetwork(options) => node::pod_network::run(&options),
        Command::Relay(options) => relay::run(&options),
    }
}
