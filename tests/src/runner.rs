//! Cases one after the other, in one process, so that they share a cluster and it is removed at the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A test by its name. A name that is given on the command line selects those that contain it.
pub struct Case<'a> {
    pub name: &'a str,
    pub run: Box<dyn Fn() + 'a>,
}

impl<'a> Case<'a> {
    pub fn new(name: &'a str, run: impl Fn() + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

/// Whether the command line selects a case.
pub fn is_selected(name: &str) -> bool {
    let mut wanted = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    wanted.peek().is_none() || wanted.any(|part| name.contains(&part))
}

/// Runs what is selected; the names of those that failed.
pub fn run(cases: &[Case<'_>]) -> Vec<String> {
    let mut failed = Vec::new();
    for case in cases.iter().filter(|case| is_selected(case.name)) {
        let start = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| (case.run)())).is_ok();
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {} ... {verdict} ({:.1}s)", case.name, start.elapsed().as_secs_f64());
        if !passed {
            failed.push(case.name.to_owned());
        }
    }
    failed
}

/// What the process ends with.
pub fn verdict(failed: &[String]) -> ExitCode {
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
