//! Which hierarchies there are and where they are mounted.

use std::path::{Path, PathBuf};

use crate::mount::MountInfo;

const V1_CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "freezer",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
];

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// Controllers of a version 1 hierarchy; empty for `name=systemd`, for the `unified` part of a hybrid layout,
    /// and for version 2, which has all.
    pub controllers: Vec<String>,
    v2: bool,
}

impl Hierarchy {
    /// Whether the hierarchy limits by this controller, as `memory`; version 2 is taken to have all.
    pub fn has(&self, controller: &str) -> bool {
        self.v2 || self.controllers.iter().any(|c| c == controller)
    }
}

/// All hierarchies of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Version 1, and what of version 2 is mounted beside it (hybrid).
    V1(Vec<Hierarchy>),
    /// Version 2 alone.
    V2([Hierarchy; 1]),
}

impl Layout {
    /// Version 1 with a folder for each controller below `root`.
    pub fn v1(root: &Path, controllers: &[&str]) -> Self {
        let one = |name: &&str| Hierarchy { mount: root.join(name), controllers: vec![(*name).into()], v2: false };
        Self::V1(controllers.iter().map(one).collect())
    }

    /// Version 2 mounted at `root`.
    pub fn v2(root: &Path) -> Self {
        Self::V2([Hierarchy { mount: root.to_owned(), controllers: Vec::new(), v2: true }])
    }

    /// Reads the text of a mountinfo file. `None` if no hierarchy with a usable controller is mounted.
    pub fn parse(mountinfo: &str) -> Option<Self> {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut unified = None;
        for mount in mountinfo.lines().filter_map(MountInfo::parse) {
            if mount.fs_type == "cgroup2" {
                unified.get_or_insert(mount.mount_point);
            } else if mount.fs_type == "cgroup" {
                let controllers: Vec<String> =
                    mount.super_options.split(',').filter(|o| V1_CONTROLLERS.contains(o)).map(String::from).collect();
                let again = v1.iter().any(|h| h.controllers == controllers && !controllers.is_empty());
                if !again {
                    v1.push(Hierarchy { mount: mount.mount_point, controllers, v2: false });
                }
            }
        }
        if v1.iter().any(|h| !h.controllers.is_empty()) {
            v1.extend(unified.map(|mount| Hierarchy { mount, controllers: Vec::new(), v2: false }));
            return Some(Self::V1(v1));
        }
        unified.map(|mount| Self::v2(&mount))
    }

    pub fn hierarchies(&self) -> &[Hierarchy] {
        match self {
            Self::V1(all) => all,
            Self::V2(one) => one,
        }
    }
}
