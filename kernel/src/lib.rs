//! The Linux kernel as the parts see it: each subsystem a small trait or value, with a fake beside it.
//!
//! Only this crate names netlink or nix, or spawns a program. Everything is synchronous, so that the CNI
//! plugins need no runtime; a daemon calls it from a blocking thread.

pub mod cgroup;
pub mod conntrack;
pub mod exec;
pub mod fifo;
pub mod forwarding;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod mount;
pub mod namespaces;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod poll;
pub mod process;
pub mod selinux;
pub mod socket;
pub mod sysctl;

#[cfg(test)]
mod test;
