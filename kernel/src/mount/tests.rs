use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::detached::in_private_namespace;
use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("volumes-mount-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `work` on a thread with a mount namespace of its own, or says that it may not.
fn in_own_namespace(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(e) = own_namespace() {
            return eprintln!("skipped: {e}");
        }
        work();
    });
    thread.join().unwrap();
}

#[test]
fn a_line_with_escapes_and_optional_fields() {
    let line = "36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
    let info = MountInfo::parse(line).unwrap();
    assert_eq!((info.id, info.parent, info.mount_point.to_str()), (36, 35, Some("/a b")));
    assert_eq!((info.fs_type.as_str(), info.super_options.as_str()), ("ext3", "rw,errors=continue"));
    assert_eq!((info.shared, info.slave), (false, true));
    let both = MountInfo::parse("36 35 98:0 / / rw shared:7 master:1 - ext3 /dev/root rw").unwrap();
    assert_eq!((both.shared, both.slave), (true, true));
    assert_eq!(MountInfo::parse("nonsense"), None);
}

#[test]
fn links_that_stay_inside_resolve_and_those_that_leave_do_not() {
    let root = Scratch::new("beneath");
    let volume = root.0.join("volume");
    fs::create_dir_all(volume.join("..data_1")).unwrap();
    fs::write(volume.join("..data_1/key"), "v").unwrap();
    symlink("..data_1", volume.join("..data")).unwrap();
    symlink("..data/key", volume.join("key")).unwrap();
    symlink("/etc", volume.join("absolute")).unwrap();
    symlink("../outside", volume.join("relative")).unwrap();
    fs::create_dir(root.0.join("outside")).unwrap();
    let beneath = Beneath::open(&volume).unwrap();
    beneath.resolve(Path::new("key")).unwrap();
    for path in ["absolute", "relative", "relative/new", "absolute/passwd", "../outside", "/etc"] {
        let result = beneath.resolve_or_create(Path::new(path), 0o755);
        assert!(matches!(result, Err(Error::Escapes { .. })), "{path}: {result:?}");
    }
    beneath.resolve_or_create(Path::new("a/b"), 0o2770).unwrap();
    assert_eq!(fs::metadata(volume.join("a/b")).unwrap().permissions().mode() & 0o7777, 0o2770);
}

/// A thread swaps a folder of the volume for a link to the outside and back while the path is resolved and created.
#[test]
fn a_swapped_folder_never_leads_outside() {
    let root = Scratch::new("race");
    let volume = root.0.join("volume");
    let outside = root.0.join("outside");
    fs::create_dir_all(volume.join("dir")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "").unwrap();
    fs::write(volume.join("dir/plain"), "").unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    &volume.join("dir"),
                    nix::fcntl::AT_FDCWD,
                    &volume.join("link"),
                    nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                );
            }
        });
        let beneath = Beneath::open(&volume).unwrap();
        let mut found = 0;
        for round in 0..3000 {
            assert!(beneath.resolve(Path::new("dir/secret")).is_err());
            found += usize::from(beneath.resolve(Path::new("dir/plain")).is_ok());
            let _ = beneath.resolve_or_create(&PathBuf::from(format!("dir/new{}", round % 50)), 0o755);
        }
        done.store(true, Ordering::Relaxed);
        assert!(found > 0);
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn mounts_come_and_go_in_a_namespace_of_their_own() {
    let root = Scratch::new("live");
    let dir = root.0.clone();
    in_own_namespace(move || {
        let (volume, target) = (dir.join("volume"), dir.join("target"));
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(&target).unwrap();
        tmpfs(&volume, Some(1 << 20), 0o700).unwrap();
        assert!(space(&volume).unwrap().capacity <= 1 << 20);
        fs::create_dir(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/file"), "inside").unwrap();
        let sub = Beneath::open(&volume).unwrap().resolve(Path::new("sub")).unwrap();
        // What is mounted is what was opened, not what the name means now.
        fs::rename(volume.join("sub"), volume.join("moved")).unwrap();
        symlink("/etc", volume.join("sub")).unwrap();
        bind_descriptor(&sub, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "inside");
        remount_read_only(&target).unwrap();
        assert!(fs::write(target.join("file"), "no").is_err());
        assert!(is_mount_point(&target).unwrap());
        drop(sub);
        unmount_below(&dir).unwrap();
        assert!(!mounts().unwrap().iter().any(|m| m.mount_point.starts_with(&dir)));
        unmount(&target).unwrap();
        unmount_lazy(&dir.join("absent")).unwrap();
    });
}

#[test]
fn in_a_root_of_its_own_every_link_stays_inside() {
    use std::io::Read;
    let root = Scratch::new("in-root");
    fs::create_dir_all(root.0.join("usr/etc")).unwrap();
    fs::write(root.0.join("usr/etc/passwd"), "root").unwrap();
    symlink("/usr/etc", root.0.join("etc")).unwrap();
    symlink("../../../../../../etc/hostname", root.0.join("up")).unwrap();
    symlink("/proc/self/root/etc", root.0.join("magic")).unwrap();
    nix::unistd::mkfifo(&root.0.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let beneath = Beneath::open(&root.0).unwrap();
    let mut text = String::new();
    beneath.open_file_in_root(Path::new("/etc/passwd")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "root");
    for path in ["up", "magic/passwd", "/etc/shadow"] {
        let error = beneath.open_file_in_root(Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), Some(io::ErrorKind::NotFound), "{path}: {error}");
    }
    let error = beneath.open_file_in_root(Path::new("fifo")).unwrap_err();
    assert_eq!(error.kind(), Some(io::ErrorKind::InvalidInput), "{error}");
}

#[test]
fn a_detached_overlay_is_seen_by_its_descriptor_alone() {
    let scratch = Scratch::new("detached");
    // More folders than one option string of the new calls holds.
    let lower: Vec<PathBuf> = (0..6).map(|n| scratch.0.join(format!("{}{n}", "long".repeat(20)))).collect();
    for (n, dir) in lower.iter().enumerate() {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(format!("f{n}")), "x").unwrap();
        fs::write(dir.join("same"), format!("{n}")).unwrap();
    }
    let before = mounts().unwrap().len();
    let root = match detached_overlay(&lower) {
        Err(e) if e.kind() == Some(io::ErrorKind::PermissionDenied) => {
            return eprintln!("SKIPPED detached overlay: {e}");
        }
        other => other.unwrap(),
    };
    assert_eq!(mounts().unwrap().len(), before);
    let beneath = Beneath::of(root, Path::new("the image"));
    let read = |name: &str| std::io::read_to_string(beneath.open_file_in_root(Path::new(name)).unwrap()).unwrap();
    assert_eq!((read("same").as_str(), read("f5").as_str()), ("0", "x"));
    let spare = in_private_namespace(&lower).unwrap();
    assert_eq!(mounts().unwrap().len(), before);
    let beneath = Beneath::of(spare, Path::new("the image"));
    let file = beneath.open_file_in_root(Path::new("same")).unwrap();
    assert_eq!(std::io::read_to_string(file).unwrap(), "0");
}

#[test]
fn shared_memory_is_for_data() {
    in_own_namespace(|| {
        let scratch = Scratch::new("shared-memory");
        let (memory, program) = (scratch.0.join("shm"), scratch.0.join("shm/program"));
        fs::create_dir(&memory).unwrap();
        shared_memory(&memory, 1 << 20).unwrap();
        assert_eq!(fs::metadata(&memory).unwrap().permissions().mode() & 0o7777, 0o1777);
        fs::copy("/bin/true", &program).unwrap();
        let refused = std::process::Command::new(&program).status().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        let flags = nix::sys::statvfs::statvfs(&memory).unwrap().flags();
        assert!(
            flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID | nix::sys::statvfs::FsFlags::ST_NODEV),
            "{flags:?}"
        );
        unmount_lazy(&memory).unwrap();
    });
}
