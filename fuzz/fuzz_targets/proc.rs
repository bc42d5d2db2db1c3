//! What the kernel tells in /proc, where processes and mounts have names that others chose, is read or passed over.
#![no_main]

use kernel::cgroup::Layout;
use kernel::mount::MountInfo;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    kernel::process::read_any(&text);
    let _ = text.lines().filter_map(MountInfo::parse).count();
    let _ = Layout::parse(&text);
});
