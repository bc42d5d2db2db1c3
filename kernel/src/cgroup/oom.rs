//! Whether the kernel had to kill for want of memory.

use std::fs;

use super::Cgroups;

impl Cgroups {
    /// How many processes of the group the kernel has killed because its memory was used up. `None` where the group is
    /// gone or the kernel does not count (version 1 does since 4.13). Source: cgroup-v1/memory.rst, cgroup-v2.rst.
    pub fn oom_kills(&self, path: &str) -> Option<u64> {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        count(&fs::read_to_string(self.dir("memory", path)?.join(file)).ok()?)
    }
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;

    #[test]
    fn both_versions_count() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(count("low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn the_group_is_asked_by_its_path() {
        let dir = std::env::temp_dir().join(format!("cgroup-oom-{}", std::process::id()));
        fs::create_dir_all(dir.join("pod/c1")).unwrap();
        fs::write(dir.join("pod/c1/memory.events"), "oom_kill 2\n").unwrap();
        let cgroups = Cgroups::new(Layout::v2(&dir));
        assert_eq!(cgroups.oom_kills("/pod/c1"), Some(2));
        assert_eq!(cgroups.oom_kills("/pod/c2"), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
