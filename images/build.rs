//! Compiles the two programs of the images with the compiler that builds the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

/// No start files and no libc; sections side by side, so that the file is hundreds of bytes and not pages.
const PAUSE: &[&str] = &[
    "-Copt-level=z",
    "-Crelocation-model=static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-Wl,-n,--build-id=none,--gc-sections,-z,norelro,-z,noseparate-code",
];
const ECHO: &[&str] = &["-Copt-level=s", "-Clto=fat", "-Ccodegen-units=1", "-Ctarget-feature=+crt-static"];

fn main() {
    compile("pause", PAUSE);
    compile("echo", ECHO);
}

fn compile(name: &str, flags: &[&str]) {
    let source = Path::new("programs").join(name).with_extension("rs");
    println!("cargo::rerun-if-changed={}", source.display());
    let output = PathBuf::from(variable("OUT_DIR")).join(name);
    let mut command = Command::new(variable("RUSTC"));
    command.args(["--edition=2024", "--crate-type=bin", "-Cpanic=abort", "-Cstrip=symbols", "-Dwarnings"]);
    command.args(["--target", &variable("TARGET")]).args(flags).arg("-o").arg(&output).arg(&source);
    match command.status() {
        Ok(status) if status.success() => {}
        failed => panic!("cannot compile {}: {command:?}: {failed:?}", source.display()),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo did not set {name}"))
}
