//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Tables of pointers are adjusted wherever the program is loaded. The list of where is a megabyte, read whole at each
    // start and kept in each process's memory; packed it is 38 kB. Debian 12's loader (glibc 2.36) is the first that reads it.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
