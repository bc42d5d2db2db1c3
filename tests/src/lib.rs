//! What the tests on a real machine share: clusters of their own, kubectl, a look at what leaks.

pub mod api_server;
pub mod bed;
pub mod bird;
pub mod counts;
pub mod leaks;
pub mod leftover;
pub mod runner;
pub mod traffic;
