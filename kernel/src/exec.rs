//! A program run to its end with bytes on its standard input: how CNI plugins are called.

mod bounded;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use bounded::{Bounds, Finished, run_bounded};

/// A program that could not be run.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {program}: {source}")]
pub struct Error {
    pub program: PathBuf,
    pub source: io::Error,
}

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs `program` with `environment` added to the caller's.
///
/// # Errors
/// Where it cannot be started. A failure of the program itself is in [`Output::success`].
pub fn run(program: &Path, environment: &[(&str, &str)], stdin: &[u8]) -> Result<Output, Error> {
    finish(program, Command::new(program).envs(environment.iter().copied()), stdin)
}

/// Runs `program` with `words` as its arguments.
///
/// # Errors
/// Where it cannot be started. A failure of the program itself is in [`Output::success`].
pub fn run_with(program: &Path, words: &[&str], stdin: &[u8]) -> Result<Output, Error> {
    finish(program, Command::new(program).args(words), stdin)
}

fn finish(program: &Path, command: &mut Command, stdin: &[u8]) -> Result<Output, Error> {
    let failed = |source| Error { program: program.to_owned(), source };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // A program that ends without reading all of its input has said why on its output.
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(stdin));
    let output = child.wait_with_output().map_err(failed)?;
    Ok(Output { success: output.status.success(), stdout: output.stdout, stderr: output.stderr })
}
