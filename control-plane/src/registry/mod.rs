//! What kinds of object there are. One `Resource` row declares a kind, and every verb works for it.

pub mod events;
pub mod kinds;
pub mod resource;
pub mod storage;

use std::collections::HashMap;

pub use resource::{Column, Deletion, Plain, Resource, Strategy, Subresource};

/// All rows, found by path.
pub struct Registry {
    rows: Vec<&'static Resource>,
    by_path: HashMap<(&'static str, &'static str, &'static str), &'static Resource>,
}

impl Registry {
    /// `rows` in the order in which discovery lists them.
    pub fn new(rows: Vec<&'static Resource>) -> Self {
        let by_path = rows.iter().map(|&row| ((row.group, row.version, row.plural), row)).collect();
        Self { rows, by_path }
    }

    pub fn rows(&self) -> &[&'static Resource] {
        &self.rows
    }

    /// The row of `/apis/GROUP/VERSION/PLURAL`; `group` is empty for `/api`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        self.by_path.get(&(group, version, plural)).copied()
    }

    /// The first row for a plural in a group, whatever its version.
    pub fn resource(&self, group: &str, plural: &str) -> Option<&'static Resource> {
        self.rows.iter().copied().find(|r| r.group == group && r.plural == plural)
    }

    /// The first row for a kind in a group.
    pub fn kind(&self, group: &str, kind: &str) -> Option<&'static Resource> {
        self.rows.iter().copied().find(|r| r.group == group && r.kind == kind)
    }
}
