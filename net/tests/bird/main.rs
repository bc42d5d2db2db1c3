//! The speaker beside BIRD 2, on the real kernel.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

mod bed;
mod failures;
mod process;
mod restart;
mod sessions;
mod tables;

/// Not a test: the process that the others start, kill and ask.
#[test]
fn speaker_process() {
    if std::env::var_os(bed::SPEAKER).is_some() {
        process::run();
    }
}
