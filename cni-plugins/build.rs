//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // As bosun is: the loader of a program that lives for milliseconds has less to read.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
