//! What tests on the real kernel share.

/// Whether the test may make namespaces; says so aloud when not.
pub fn root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {what}: needs root");
    }
    root
}
