//! A local cluster as it is written down, and where its parts stand.

mod lock;
mod paths;
mod state;
mod topology;

pub use lock::Lock;
pub use paths::{Paths, ROOT};
pub use state::{Cluster, Cri, Node, Settings, all};
pub use topology::{MOST_NODES, MOST_RACKS, Rack, check as check_size, network};

/// The name of a cluster where none is given.
pub const DEFAULT_NAME: &str = "dev";

/// A cluster's name as the command line takes it: a DNS label, short enough for what is made of it.
///
/// # Errors
/// What a name must be.
pub fn parse_name(text: &str) -> Result<String, String> {
    let made_of = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let ends = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > 40 || !made_of || ends {
        return Err("a name is 1 to 40 lower-case letters, digits and '-', which is neither first nor last".into());
    }
    Ok(text.to_owned())
}
