//! Watches: one hub for each kind takes the store's changes, decodes and encodes each once, and shares them with all
//! who watch. A watcher that falls too far behind is cut and begins again from its last revision.

mod change;
mod hub;
mod selection;

pub use change::{Change, FrameKey};
pub use hub::{Hubs, Message, Subscription};
pub use selection::Selection;

/// What a watch event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl Kind {
    /// The event's `type`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }
}
