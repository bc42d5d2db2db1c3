//! The keeper: one small process of a node that holds containers' output open, so that what is in a pipe when a container
//! ends while no `bosun cri` runs is there for the next.
//!
//! A pipe's bytes live as long as anyone holds either end open. The keeper opens the ends that read and never reads: a
//! writer is held up by a full pipe as ever, and whoever reads sees the end once the writers are gone. It knows nothing
//! that is not on disk: `bosun cri` starts one where none answers, tells it of all containers whose output is not in their
//! logs yet, and does so again when it was killed.
//!
//! A line asks and a line answers:
//!
//! | line | meaning |
//! |---|---|
//! | `hold ID` | open the outputs of container ID, `STATE/containers/ID/io/{stdout,stderr}`; again is fine |
//! | `drop ID` | close them; those that are not held are fine |
//! | `ok`, `error WHY` | the answers |
//!
//! An update of `bosun` meets the keeper of the older one: the lines above do not change their meaning.

mod client;
mod order;
mod server;

pub use client::Keeper;
pub use order::Order;
pub use server::{KeeperError, serve};
